"""Fine-tuning: distillation of the original into the pruned model; its weights go back into the same graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxprune import files, runtime
from onnxprune.data import open_data
from onnxprune.errors import UnsupportedError, UsageError, VerificationError
from onnxprune.finetuning.features import pre_classifier, scores_tensor
from onnxprune.finetuning.samples import Arrays, Room, Samples, Teacher, load
from onnxprune.finetuning.settings import Source, TuneOptions
from onnxprune.finetuning.trainable import check_signature, with_weights
from onnxprune.graph import Array
from onnxprune.report.tuning import TuneReport
from onnxprune.runtime import InputSpec, input_specs, random_inputs
from onnxprune.signature import taking

if TYPE_CHECKING:
    from onnxprune.student.loss import Objective
    from onnxprune.student.network import Network
    from onnxprune.student.training import Course, Training

OnEpoch = Callable[[int, Mapping[str, Array]], None]
AGREE = 1e-4  # relative difference between torch and onnxruntime that float noise explains
_ROWS = 1024  # samples that are digested at once
_LOOK = 64  # samples that show what kind of outputs there are


@dataclass(frozen=True, slots=True)
class Tuned:
    """A fine-tuned model (ONNX, in memory) and the report."""

    model: onnx.ModelProto
    report: TuneReport

    def __repr__(self) -> str:
        return f"Tuned({self.report.model!r}, epoch {self.report.epoch} of {self.report.settings['epochs']})"


@taking(TuneOptions)
def finetune(model: Source, options: TuneOptions) -> Tuned:
    """Train a pruned model to give what its original gives, without labels or with them; the graph stays as it is.

    model: the pruned one, a path or a ModelProto (not modified); teacher: the original. data: training inputs, as
    `data.open_data` takes them; preprocess: how raw images become inputs. labels: whether the labels of the data are
    used, too. epochs, batch, optimizer ("adam", "sgd"), lr (the largest; warm-up, then a cosine down to 0), seed, clip
    (norm of the gradient). temperature, alpha, beta: of the loss, see `student.loss.Objective`; beta needs the plan
    where the classifier's input was pruned. loss: "kl", "mse", or "auto" by the shape of the outputs.
    norm: "batch" puts normalisations by batch behind convolutions for the time of training, see `student.norms`;
    "frozen" does not. views: so many
    fixed views of every image, 1..8; augment: "auto", "both", "flip", "shift", "none". A tenth of the data is held
    out: with take="best" those weights are taken that are best there, with "last" those of the last epoch; patience:
    epochs without progress before it stops. limit: samples used; memory: bytes, beyond which temporary files are used.
    checkpoint: a file, written after every epoch; resume: go on from there. Raises UsageError (also where torch is not
    installed), UnsupportedError (an operator that torch has no function for, or no weights), ModelError, DataError.
    """
    return tune(model, options)


def tune(
    model: Source, options: TuneOptions, on_epoch: OnEpoch | None = None, apart: Sequence[Mapping[str, Array]] = ()
) -> Tuned:
    """As `finetune`; `on_epoch` hears of the number and the weights after every epoch. apart: inputs, in batches, that
    are not trained on where the data have them.
    """
    options.check()
    require_torch()
    from onnxprune.student import Network
    from onnxprune.student.training import Training

    student, original = _read(model), _read(options.teacher)
    specs = input_specs(student)
    check_signature(student, original)
    data = open_data(options.data, specs, preprocess=options.preprocess)
    network = Network(student)
    if not network.weights:
        raise UnsupportedError(
            "no initializer of the model is read by a layer as its weight: there is nothing to train. If its weights "
            "are Constant nodes, train what `onnxprune clean` writes"
        )
    room = Room(options.memory / 2)
    samples = load(data, room, options, _chunk(specs, input_specs(original)), apart)
    shapes = {s.name: _shape(s, samples.inputs[s.name]) for s in specs}
    proof = {"before": prove(network, student, shapes, options.seed)}
    names, objective = _objective(student, original, samples, options)
    teacher = Teacher(original, names, room)
    training = Training(network, objective, samples, teacher, options, _key(student, original, samples, options))
    course = training.run(on_epoch)
    epoch = course.best_epoch if options.take == "best" or course.stopped else course.epoch
    network.cpu()
    tuned = with_weights(student, network.arrays() if epoch else {})
    proof["after"] = prove(network, tuned, shapes, options.seed + 1)
    return Tuned(tuned, _report(model, samples, training, course, proof, epoch))


def require_torch() -> None:
    """Raise UsageError, with the one command that helps, where torch is not installed."""
    if find_spec("torch") is None:
        raise UsageError(
            "fine-tuning needs torch, which is not installed: pip install 'onnxprune[finetune]'. Without it, "
            "`onnxprune handoff` and `onnxprune absorb` let any other training code do the work"
        )


def prove(network: Network, proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int) -> float:
    """Largest relative difference of an output between torch and onnxruntime on random inputs.

    shapes: of the inputs, by name. Raises VerificationError over `AGREE`, or over ten times what float32 itself loses
    in that network.
    """
    import torch

    feeds = random_inputs(proto, shapes, seed)
    wanted = runtime.session(proto).run(feeds)
    with torch.no_grad():
        made = network({n: torch.from_numpy(a) for n, a in feeds.items()})
    apart = {n: _difference(made[n].numpy(), wanted[n]) for n in network.outputs}
    worst = max(apart, key=lambda n: apart[n])
    if not (apart[worst] <= AGREE or apart[worst] <= 10 * _noise(network, feeds, worst)):
        raise VerificationError(
            f"torch and onnxruntime differ by {apart[worst]:.1e} relative in the output '{worst}' on random inputs "
            f"(at most {AGREE:g} is float noise): this model cannot be fine-tuned here; please report it"
        )
    return apart[worst]


def _noise(network: Network, feeds: Arrays, output: str) -> float:
    """How far float32 and float64 are apart in an output: badly conditioned networks magnify rounding."""
    import torch

    tensors = {n: torch.from_numpy(a) for n, a in feeds.items()}
    with torch.no_grad():
        single = network(tensors, [output])[output].numpy()
        double = deepcopy(network).double()({n: x.double() if x.is_floating_point() else x for n, x in tensors.items()})
    return _difference(single, double[output].numpy())


def _shape(spec: InputSpec, array: Array) -> tuple[int, ...]:
    """What the model takes at once: two samples where it takes any number."""
    first = spec.dims[0] if spec.dims else None
    return (first if isinstance(first, int) else 2, *array.shape[1:])


def _difference(a: Array, b: Array) -> float:
    x, y = (np.asarray(v, np.float64) for v in (a, b))
    if x.shape != y.shape:
        return float("inf")
    return float(np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-12))


def _read(model: Source) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        files.check_model(model)
        return model
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        return files.read_model(model)
    raise UsageError(f"a model must be a path or a ModelProto, not {type(model).__name__}")


def _chunk(*specs: Sequence[InputSpec]) -> int:
    """Least number of samples that both networks take."""
    fixed = [s.dims[0] for each in specs for s in each if s.dims and isinstance(s.dims[0], int)]
    return int(np.lcm.reduce([1, *fixed]))


def _objective(
    student: onnx.ModelProto, original: onnx.ModelProto, samples: Samples, options: TuneOptions
) -> tuple[list[str], Objective]:
    """The teacher's tensors to ask for, and what is done with them."""
    from onnxprune.student.loss import Feature, Objective, check_labels, kinds

    outputs = [o.name for o in original.graph.output]
    chunk = _chunk(input_specs(original))
    rows = samples.held[: max(min(_LOOK, len(samples.held)) // chunk, 1) * chunk]
    told = Teacher(original, outputs, Room(0)).answers(samples.batch(rows, None))
    scores, certain, dense = kinds(told, options.loss)
    check_labels(samples.labels, told, scores, samples.name)
    feature = None
    if options.beta:
        feature = Feature(*pre_classifier(student, original, (scores or list(dense))[0], options.plan))
    temperature = options.temperature
    if temperature is None:  # more classes: flatter distributions are compared
        temperature = 2.0 if all(told[n].shape[1] <= 10 for n in scores) else 4.0
    return [*outputs, *([feature.teacher] if feature else [])], Objective(
        temperature,
        options.weight,
        options.beta,
        {name: scores_tensor(student, name) for name in scores},
        certain,
        dense,
        feature,
    )


def _key(student: onnx.ModelProto, teacher: onnx.ModelProto, samples: Samples, options: TuneOptions) -> str:
    """Digest of all that a run depends on, every input included; "" where no checkpoint will hold it."""
    if options.checkpoint is None:
        return ""
    state = hashlib.sha256(json.dumps(options.settings(), sort_keys=True, default=str).encode())
    for model in (student, teacher):
        state.update(files.digest(model).encode())
    for name, array in samples.inputs.items():
        state.update(f"{name} {array.shape} {array.dtype}".encode())
        for start in range(0, len(array), _ROWS):
            state.update(np.ascontiguousarray(array[start : start + _ROWS]).data)
    if samples.labels is not None:
        state.update(np.ascontiguousarray(samples.labels).data)
    return state.hexdigest()


def _report(
    model: Source,
    samples: Samples,
    training: Training,
    course: Course,
    proof: dict[str, float],
    epoch: int,
) -> TuneReport:
    options = training.options

    def name(source: Source) -> str:
        return source.graph.name if isinstance(source, onnx.ModelProto) else str(source)

    return TuneReport(
        model=name(model),
        teacher=name(options.teacher),
        data=samples.name,
        samples=len(samples.train),
        held=len(samples.held),
        weights=len(training.network.weights),
        settings=options.settings(),
        history=tuple(course.history),
        epoch=epoch,
        stopped=course.stopped,
        failed=course.failed,
        interrupted=course.interrupted,
        shares=dict(course.shares),
        images=course.images,
        proof=proof,
        device=str(training.device),
        normalised=training.normalised,
        teacher_accuracy=training.teacher_accuracy(),
        notes=samples.notes,
    )


__all__ = ["AGREE", "Tuned", "finetune", "prove", "require_torch", "tune"]
