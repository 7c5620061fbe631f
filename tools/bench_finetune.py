"""Accuracy after fine-tuning, and its curve over the epochs; one row at a time, resumable.

    python tools/bench_finetune.py MODELS TRAIN.npz TEST.npz WORK              every row that is not there yet
    python tools/bench_finetune.py ... --row resnet56_0.2                      some rows
    python tools/bench_finetune.py ... --list
    python tools/bench_finetune.py ... --spec '{"model": "vgg", "flops": 0.54, "epochs": 10}'   a row of your own

MODELS holds the networks (NAME.onnx); TRAIN the training images as uint8 with labels; TEST the test set as the networks
take it, with labels. WORK keeps cut models, trained ones, from which some rows start, and checkpoints: an interrupted
row goes on where it stopped. Results go to tools/results/finetune.json. The last epoch counts, not the best; nothing is
chosen on the test set.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from recovery_row import calibration

import onnxprune
from onnxprune import runtime
from onnxprune.finetuning.settings import TuneOptions
from onnxprune.finetuning.trainable import with_weights
from onnxprune.finetuning.tune import tune
from onnxprune.plan import dumps

RESULTS = Path(__file__).parent / "results" / "finetune.json"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "cifar10"  # networks that MODELS does not hold
PREPROCESS = "layout=nchw,scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225"
R20, R56, VGG = "cifar10_resnet20_jpegft", "cifar10_resnet56_jpegft", "cifar10_vgg"
LABELS, PLAIN = {"labels": True, "alpha": 0.9}, {"labels": True, "alpha": 0.0}
FREE = {"align": 1}  # any widths, as in the tables of recovery
Spec = dict[str, Any]
# name -> what differs from `spec`; flops None: the network itself, trained by the same recipe
ROWS: dict[str, Spec] = {
    "resnet56_0.2": {"model": R56, "flops": 0.2, **FREE},
    "resnet56_0.2_t2": {"model": R56, "flops": 0.2, "temperature": 2.0, **FREE},
    "resnet56_0.2_hybrid": {"model": R56, "flops": 0.2, "method": "hybrid", **FREE},
    "resnet56_0.2_hybrid_greedy": {"model": R56, "flops": 0.2, "method": "hybrid", "allocate": "greedy", **FREE},
    "resnet56_0.2_blocks_frozen": {"model": R56, "flops": 0.2, "lr": 2e-3, "temperature": 2.0, "norm": "frozen"},
    "resnet20_0.35": {"model": R20, "flops": 0.35, **FREE},
    "resnet20_0.2": {"model": R20, "flops": 0.2, **FREE},
    "resnet20_0.35_hybrid": {"model": R20, "flops": 0.35, "method": "hybrid", **FREE},
    "resnet20_0.35_moments": {"model": R20, "flops": 0.35, "recover": "moments", **FREE},
    "resnet20_0.35_cut": {"model": R20, "flops": 0.35, "recover": "none", **FREE},
    "resnet20_0.2_moments": {"model": R20, "flops": 0.2, "recover": "moments", **FREE},
    "resnet20_0.2_cut": {"model": R20, "flops": 0.2, "recover": "none", **FREE},
    "resnet20_labels": {"model": R20, "flops": None, **LABELS},
    "resnet20_0.35_labels": {"model": R20, "flops": 0.35, **FREE, **LABELS},
    "resnet20_0.2_labels": {"model": R20, "flops": 0.2, **FREE, **LABELS},
    "vgg_0.54": {"model": VGG, "flops": 0.54},
    "vgg_0.54_30": {"model": VGG, "flops": 0.54, "epochs": 30},
    "vgg_0.54_lr1e-3": {"model": VGG, "flops": 0.54, "lr": 1e-3},
    "vgg_0.54_lr3e-4": {"model": VGG, "flops": 0.54, "lr": 3e-4},
    "vgg_0.54_labels": {"model": VGG, "flops": 0.54, **LABELS},
    "vgg_labels": {"model": VGG, "flops": None, **LABELS},
    "densenet_0.3": {"model": "cifar10_densenet", "flops": 0.3},
    "mobilenet_size": {"model": "cifar10_mobilenet", "size": 0.7392, **LABELS},
    "mobilenet_size_plain": {"model": "cifar10_mobilenet", "size": 0.7392, **PLAIN},
    # the network of fixtures/ could learn more: these start from what `mobilenet_plain` makes of it
    "mobilenet_plain": {"model": "cifar10_mobilenet", "flops": None, **PLAIN},
    "mobilenet_trained_size": {"model": "mobilenet_plain.tuned", "size": 0.7392, "epochs": 5, **LABELS},
    "mobilenet_trained_size_plain": {"model": "mobilenet_plain.tuned", "size": 0.7392, "epochs": 5, **PLAIN},
}


def spec(given: Spec) -> Spec:
    """All settings of a row."""
    cut = {"flops": None, "params": None, "size": None, "method": None, "allocate": None, "recover": "auto"}
    cut |= {"align": "auto"}
    training = {"epochs": 10, "labels": False, "alpha": 1.0, "optimizer": "adam", "batch": 128, "views": 4}
    training |= {"limit": None, "norm": "batch"}
    training |= {"lr": 3e-3, "temperature": 4.0}  # best of a few on training images of ResNet-20 that were held out
    return {"seed": 0} | cut | training | given


def accuracy(model: onnx.ModelProto, test: dict[str, Any]) -> float:
    """Top-1 in percent on the test set."""
    session = runtime.session(model, optimize=True)
    name, right = session.inputs[0], 0
    for start in range(0, len(test["labels"]), 256):
        part = slice(start, start + 256)
        scores = session.run({name: test["input"][part]})[session.outputs[0]]
        right += int((scores.argmax(1) == test["labels"][part]).sum())
    return round(100 * right / len(test["labels"]), 2)


def cut_model(s: Spec, teacher: Path, calib: Path, place: Path) -> onnx.ModelProto:
    """The network cut and repaired; kept in a file."""
    if not place.exists():
        targets = {k: s[k] for k in ("flops", "params", "size") if s[k] is not None}
        if not targets:
            return onnxprune.clean(teacher)
        chosen = {k: s[k] for k in ("method", "allocate", "recover", "align", "seed") if s[k] is not None}
        data = calibration({"model": teacher, "data": calib})
        result = onnxprune.compress(teacher, data=data, **targets, **chosen)
        onnx.save(result.model, place)
        place.with_suffix(".plan.json").write_text(dumps(result.plan), encoding="utf-8")
    return onnx.load(place)


def command(s: Spec, model: str) -> str:
    """The same on the command line: the cut, if there is one, and the training."""
    chosen = ("flops", "size", "method", "allocate", "recover", "align")
    how = " ".join(f"--{k} {s[k]}" for k in chosen if s[k] is not None)
    cut = f"onnxprune compress {model} {how} --data CALIB.npz --seed {s['seed']} -o small.onnx"
    untouched = all(s[k] is None for k in ("flops", "size"))
    return training(s, model) if untouched else f"{cut} && {training(s, model)}"


def training(s: Spec, model: str) -> str:
    """The training on the command line."""
    names = ("epochs", "batch", "optimizer", "lr", "temperature", "alpha", "views", "limit", "norm", "seed")
    flags = [f"--{k} {s[k]}" for k in names if s[k] is not None]
    flags += ["--labels"] if s["labels"] else []
    line = f"onnxprune finetune small.onnx --teacher {model} --data TRAIN.npz --preprocess {PREPROCESS}"
    return " ".join([line, *flags, "--take last -o tuned.onnx"])


def measure(name: str, s: Spec, given: argparse.Namespace) -> Spec:
    """One row: cut, repair, train, with the accuracy after every epoch."""
    places = [folder / f"{s['model']}.onnx" for folder in (given.models, FIXTURES, given.work)]
    teacher, place = next((p for p in places if p.exists()), places[0]), given.work / f"{name}.onnx"
    with np.load(given.test) as held:
        test = dict(held)
    start = time.perf_counter()
    student = cut_model(s, teacher, given.calib, place)
    cut_seconds = time.perf_counter() - start
    curve_file = given.work / f"{name}.curve.json"
    checkpoint = given.work / f"{name}.checkpoint"
    curve = json.loads(curve_file.read_text()) if checkpoint.exists() and curve_file.exists() else {}
    if not curve:
        curve["0"] = accuracy(student, test)

    def after(epoch: int, weights: Any) -> None:
        curve[str(epoch)] = accuracy(with_weights(student, weights), test)
        curve_file.write_text(json.dumps(curve))
        print(f"{name}: epoch {epoch} of {s['epochs']}: {curve[str(epoch)]:.2f}", flush=True)

    taken = ("epochs", "labels", "temperature", "alpha", "optimizer", "lr", "batch", "views", "limit", "norm", "seed")
    options = TuneOptions(
        teacher=teacher,
        data=given.train,
        preprocess=PREPROCESS,
        take="last",
        patience=10**6,
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        **{k: s[k] for k in taken},
    )
    tuned = tune(student, options, after)
    if tuned.report.interrupted:
        raise KeyboardInterrupt
    checkpoint.unlink(missing_ok=True)
    onnx.save(tuned.model, given.work / f"{name}.tuned.onnx")
    report = tuned.report.as_dict()
    baseline, final = accuracy(onnx.load(teacher), test), accuracy(tuned.model, test)
    shares = {k: round(v / max(report["seconds"], 1e-9), 3) for k, v in report["shares"].items()}
    return s | {
        "name": name,
        "baseline": baseline,
        "start": curve["0"],
        "final": final,
        "drop": round(baseline - final, 2),
        "curve": [curve[str(e)] for e in range(s["epochs"] + 1)],
        "agreement": [round(100 * e["agreement"], 2) for e in report["history"]],
        "seconds": report["seconds"],
        "cut_seconds": round(cut_seconds, 1),
        "images_per_second": report["images_per_second"],
        "shares": shares,
        "proof": report["proof"],
        "command": command(s, teacher.name),
    }


def main() -> None:
    """Measure the rows that are missing, and write each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--calib", type=Path, help="calibration inputs (default: cifar10_calib.npz beside TRAIN)")
    parser.add_argument("--row", action="append", choices=[*ROWS], help="only these rows")
    parser.add_argument("--spec", action="append", default=[], help="further rows, as JSON")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    given.calib = given.calib or given.train.with_name("cifar10_calib.npz")
    given.work.mkdir(exist_ok=True, parents=True)
    rows = {} if given.spec and not given.row else {n: ROWS[n] for n in given.row or ROWS}
    for text in given.spec:
        own = json.loads(text)
        rows[own.pop("name", "_".join(shlex.quote(str(v)).strip("'") for v in own.values()))] = own
    done = json.loads(given.results.read_text()) if given.results.exists() else []
    for name, wanted in rows.items():
        s = spec(wanted)
        known = any(r["name"] == name and all(r.get(k) == v for k, v in s.items()) for r in done)
        print(f"{name}: {'done' if known else s}", flush=True)
        if known or given.list:
            continue
        row = measure(name, s, given)
        done = [r for r in done if r["name"] != name] + [row]
        given.results.parent.mkdir(exist_ok=True)
        given.results.write_text(json.dumps(done, indent=1) + "\n")
        print(f"{name}: {row['start']:.2f} -> {row['final']:.2f} of {row['baseline']:.2f}", flush=True)


if __name__ == "__main__":
    main()
