"""Selection and recovery with calibration inputs: statistics, greedy narrowing in rounds, repair, and the comparison
that decides which network ships.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune import criteria
from onnxprune.allocate import Allocation
from onnxprune.analysis import Analysis, Mask
from onnxprune.calibration import RATE, Calibration
from onnxprune.clock import Progress
from onnxprune.cost import CostModel
from onnxprune.cut import cut
from onnxprune.errors import DataError, UsageError
from onnxprune.graph import Model
from onnxprune.origin import Origin
from onnxprune.recover import weights
from onnxprune.recover.accuracy import accuracy, unused
from onnxprune.recover.agreement import Agreement, agreement, divergence
from onnxprune.recover.layers import sites
from onnxprune.recover.program import Feeds, Program, Store, outputs, program, write_back
from onnxprune.recover.reference import Reference, overflowing, reference, samples
from onnxprune.recover.result import Recovery
from onnxprune.recover.sensitivity import LEVELS, POWER, POWERS, Curve, curves, greedy
from onnxprune.recover.sequence import LayerRecovery, Repaired, repair
from onnxprune.recover.statistics import Reader, readers

Reals = NDArray[np.float64]
METHODS = ("auto", "none", "absorb", "merge", "fold", "moments", "ridge", "least-squares", "joint")
DEFAULT = "joint"  # of "auto", and of the rounds of selection
WITHOUT_INPUTS = frozenset({"none", "absorb", "merge", "fold"})
ALLOCATIONS = ("uniform", "global", "threshold", "greedy", "search")
BY_TABLE = frozenset({"greedy", "search"})
_INPUTS = 192  # inputs on which candidates are compared
_FEWEST = 16
_STORED, _OUTPUTS = 3 / 8, 1 / 16  # of the memory, for tensors between layers, and for a network's outputs
_TOGETHER = 0.5  # share of the time that refits of several layers may take, by `RATE`, which is a low one
_LOG = logging.getLogger("onnxprune")
Allocate = Callable[[Reals, bool, float], Allocation]


@dataclass
class Known:
    """What earlier calls for the same model and inputs have found, which later ones need not find again.

    tables: of sensitivity, which serve all targets, by what else they depend on; values: of an optimiser's candidates,
    by a digest of what is optimised, in the order of the candidates; noted: is called when there are more of these.
    """

    tables: dict[tuple[object, ...], list[Curve]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    noted: Callable[[], None] = lambda: None


@dataclass
class Study:
    """The original on the calibration inputs, looked at once and used by every stage.

    memory: bytes for activations and statistics; seconds: what the whole may take; what is thinned to keep to it goes
    into `notes`. shipped, new_biases: the repair of what ships, of `METHODS`, and whether it may add biases: candidates
    of "search" are compared after it. origin, before: where earlier cuts made the model, what they were made from, and
    the study of that, whose inputs and outputs are taken.
    """

    analysis: Analysis
    calibration: Calibration
    seed: int = 0
    memory: float = 4e9
    seconds: float = 600.0
    notes: list[str] = field(default_factory=list)
    known: Known = field(default_factory=Known)
    shipped: str = "auto"
    new_biases: bool = True
    origin: Origin | None = None
    before: Study | None = None

    def __post_init__(self) -> None:
        self.program = program(self.analysis.model, self.analysis.shapes)
        before = self.before
        self.store: Store = before.store if before else Store(self.memory * _STORED)
        # What was trained since has found other ways to the same answers: its layers are what the next repair aims at.
        self._aim = self.origin if before and self.origin and not self.origin.trained else None
        self._first: Program = before.program if before and self._aim else self.program
        self.reference: Reference = before.reference if before and self._aim else self._look(sums=True)
        if before is None:
            self._check()
        else:
            self.reference = replace(self.reference, outputs=before.reference.outputs)
        self._full: Mask = np.ones(self.analysis.classes + 1, bool)

    def _check(self) -> None:
        """Raise DataError where the inputs are too large for statistics of what they make in the network."""
        if found := overflowing(self.reference):
            node, value = found
            told = "not a finite number" if not np.isfinite(value) else f"up to {value:.0e}"
            raise DataError(
                f"{self.calibration.name}: what layer {node!r} of the model gives there is {told}, too large to be "
                "fitted; are the inputs scaled as the model takes them (--preprocess)?"
            )

    @property
    def caveats(self) -> list[str]:
        """What to know of the inputs, and of what was thinned so far."""
        made_up = ["what leaves was chosen on SYNTHETIC INPUTS, since no --data were given"]
        notes = (*self.calibration.notes, *self.notes)
        return list(dict.fromkeys([*(made_up if self.calibration.synthetic else ()), *notes]))

    def _look(self, *, sums: bool) -> Reference:
        _LOG.info("the original on %d calibration inputs", self.calibration.samples)
        return reference(
            self._first,
            sites(self._first)[0],
            self.calibration.batches,
            self.calibration.held,
            seed=self.seed,
            memory=self.memory,
            store=self.store,
            sums=sums,
        )

    def readers(self, kept: Mask, narrow: Program) -> list[Reader]:
        """Statistics of what every layer of a program, cut to `kept`, reads."""
        _LOG.info("statistics of the layers' inputs")
        return readers(self.analysis, kept, narrow, sites(narrow)[0], self.reference)

    def readers_of_original(self) -> list[Reader]:
        """Statistics of what the layers of the original read."""
        return self.readers(self._full, self.program)

    def scores(self, method: str, found: Sequence[Reader]) -> Reals:
        """Scores of a criterion, on this state of the network where it looks at data."""
        statistics = [r.inputs for r in found]
        return criteria.score(method, self.analysis, seed=self.seed, statistics=statistics)

    # ---- selection ---------------------------------------------------------------------------------------------------

    def select(
        self, method: str, allocation: str, target: float, cost: CostModel, free: Mask, allocate: Allocate
    ) -> Allocation:
        """Decide what leaves.

        free: [classes + 1] bool, what may leave; allocate: (scores, whether they are divided per group, target) ->
        the choice.
        """
        if target >= 1:  # nothing has to leave
            return allocate(np.ones(self.analysis.classes + 1), False, target)
        if allocation not in BY_TABLE:
            found = self.readers_of_original() if criteria.needs_data(method) else []
            scores = self.scores(method, found)
            return by_ranking(self.analysis, scores, allocation, lambda s, flat: allocate(s, flat, target))
        powers = POWERS if allocation == "search" else (POWER,)
        return self._in_rounds(method, target, cost, free, allocate, powers)

    def _in_rounds(
        self,
        method: str,
        target: float,
        cost: CostModel,
        free: Mask,
        allocate: Allocate,
        powers: Sequence[float],
    ) -> Allocation:
        """Half of the way (by ratio) first, repaired and looked at again: what is redundant changes as others leave. In
        the last round the choice of each power gets the repair that ships, and the one that agrees best is taken.
        """
        images, levels, rounds = self._effort(cost)
        kept, gone = self._full, np.zeros(0, np.intp)
        for number in range(rounds):
            told = f"sensitivity, round {number + 1} of {rounds}"
            table = self._table(method, kept, free, images, levels, told)
            last = number + 1 == rounds
            choices = []
            for power in powers if last else (POWER,):
                ranks = greedy(kept, table, cost, power)
                ranks[gone] = 0.0
                choices.append(allocate(ranks, False, target ** ((number + 1) / rounds)))
            if last:
                return self._best(choices, method)
            kept = choices[0].kept
            gone = np.flatnonzero(~kept)
        raise AssertionError("there is at least one round")

    def _table(
        self, method: str, kept: Mask, free: Mask, images: int, levels: Sequence[float], told: str
    ) -> list[Curve]:
        """The table of the network cut to `kept` and repaired, on so many inputs; made once.

        The repair is the default one whatever ships: the table asks what a network that works can do without, and a
        bare cut, which mostly works no more, does not tell. So one table serves all repairs.
        """
        key = (method, kept.tobytes(), free.tobytes(), images, tuple(levels))
        if key not in self.known.tables:
            narrow = self.program if kept.all() else self.repaired(kept, DEFAULT).program
            found = self.readers(kept, narrow)
            self.known.tables[key] = curves(
                self.analysis,
                kept,
                narrow,
                found,
                self.scores(method, found),
                *self.first(images),
                free=free,
                levels=levels,
                store=self.store,
                told=told,
            )
        return self.known.tables[key]

    def _best(self, choices: Sequence[Allocation], method: str) -> Allocation:
        """The choice, by a criterion, whose network diverges least from the original after the repair that ships; equal
        choices are tried once.
        """
        different = list({c.kept.tobytes(): c for c in choices}.values())
        if len(different) == 1:
            return different[0]
        found, batches = [], self.reference.batches
        takers = partners(self.analysis, method, self.seed) if self.shipped == "merge" else None
        for choice in Progress("repair of candidate", len(different)).over(different):
            smaller = cut(self.analysis, choice.kept)
            network = self.network(choice.kept, smaller, self.shipped, self.new_biases, takers)[0]
            found.append(divergence(self.reference.outputs, outputs(network, batches)))
        self.notes.append(f"best of {len(different)} candidates: divergence {min(found):.3g}, worst {max(found):.3g}")
        return different[int(np.argmin(found))]

    def _effort(self, cost: CostModel) -> tuple[int, Sequence[float], int]:
        """Inputs, levels and rounds of the table that fit into less than half of the time."""
        groups, macs = len(self.analysis.groups), cost.original.macs
        whole = [(images, LEVELS, 2) for images in (_INPUTS, 96, 48)]
        for images, levels, rounds in (*whole, (48, LEVELS[1::2], 2), (32, LEVELS[1::2], 1)):
            if self._table_seconds(groups, macs, images, levels, rounds) < 0.5 * self.seconds:
                break
        else:
            images, levels, rounds = _FEWEST, LEVELS[1::2], 1
        if (images, rounds) != (_INPUTS, 2):
            self.notes.append(
                f"to keep to the time, candidates are compared on {images} inputs at {len(levels)} widths, "
                f"in {rounds} round{'s' * (rounds > 1)}"
            )
        return images, levels, rounds

    @staticmethod
    def _table_seconds(groups: int, macs: int, images: int, levels: Sequence[float], rounds: int) -> float:
        """Estimate: half of the network runs for every group and level."""
        return groups * len(levels) * rounds * images * macs / 2 / RATE

    # ---- repair ------------------------------------------------------------------------------------------------------

    def network(
        self, kept: Mask, smaller: Model, method: str, new_biases: bool, partners: criteria.Partners | None = None
    ) -> tuple[Program, list[LayerRecovery]]:
        """A cut model, which is not changed, after a repair of `METHODS`, and what became of its layers."""
        if method == "none":
            return program(smaller), []
        if method in weights.METHODS:
            copy = smaller.copy()
            layers = weights.repair(method, self.analysis, kept, copy, self.readers_of_original(), partners=partners)
            return program(copy), layers
        done = self.repaired(kept, DEFAULT if method == "auto" else method, smaller, new_biases=new_biases)
        return done.program, list(done.layers)

    def repaired(self, kept: Mask, method: str, smaller: Model | None = None, *, new_biases: bool = True) -> Repaired:
        """Refit the layers of a cut model, which is not changed; `method` as in `sequence.repair`."""
        narrow = program(cut(self.analysis, kept) if smaller is None else smaller)
        wanted = self._look(sums=False) if method == "moments" else self.reference  # these match layers, not sums
        done = repair(
            self.analysis,
            kept,
            narrow,
            wanted,
            method=method,
            store=self.store,
            new_biases=new_biases,
            memory=self.memory,
            work=_TOGETHER * self.seconds * RATE,
            left=self._aim.outputs if self._aim else None,
        )
        self.notes += [n for n in done.notes if n not in self.notes]
        return done

    def outputs(self, network: Program) -> list[Feeds]:
        """Outputs of a network on the held inputs (on all, where there is only one batch)."""
        keep = Store(self.memory * _OUTPUTS).keep
        found = outputs(network, self.held_of(self.reference.batches))
        return [{n: keep(a) for n, a in batch.items()} for batch in found]

    def original(self) -> list[Feeds]:
        """The original's outputs on the same inputs."""
        return self.held_of(self.reference.outputs)

    def compared(self, networks: Mapping[str, Program]) -> tuple[dict[str, Agreement], dict[str, float] | None]:
        """Agreement of networks with the original on the same inputs, and the accuracy of all, where there are labels.

        Every network runs from its start: what is compared is what is written.
        """
        found = {"original": self.original()} | {n: self.outputs(network) for n, network in networks.items()}
        metric = accuracy(self.calibration.labels, found)
        return {n: agreement(found["original"], found[n]) for n in networks}, metric

    def first(self, count: int) -> tuple[Sequence[Feeds], Sequence[Feeds]]:
        """The first batches that fits see, of `count` inputs or a few more, and the original's outputs on them."""
        taken = np.cumsum([samples(b) for b in self.reference.batches[: self.reference.train]])
        stop = int(np.searchsorted(taken, count)) + 1
        return self.reference.batches[: min(stop, len(taken))], self.reference.outputs[: min(stop, len(taken))]

    @property
    def held(self) -> Sequence[Feeds]:
        """Inputs that no fit may see, in batches; none where there is only one batch."""
        return self.reference.batches[self.reference.train :]

    def held_of(self, batches: Sequence[Feeds]) -> list[Feeds]:
        """Those of the batches that fits are checked on."""
        return [batches[b] for b in self.reference.checks]


def recover(
    analysis: Analysis,
    kept: Mask,
    smaller: Model,
    method: str,
    study: Study | None,
    *,
    new_biases: bool = True,
    partners: criteria.Partners | None = None,
) -> Recovery:
    """Repair a cut model in place; it stays as it is where the cut agrees better with the original on held inputs.

    study: the original on calibration inputs; without it only "merge", "fold" and "absorb" can be done, unchecked.
    new_biases: whether layers without a place for a bias may get one. partners: for "merge", the class that takes the
    place of each one, as the criterion found it.
    """
    if study is None:
        layers = weights.repair(method, analysis, kept, smaller, [], partners=partners)
        return Recovery(method, None, tuple(layers), None, None, "repaired")
    method = DEFAULT if method == "auto" else method
    bare = program(smaller)
    narrow, layers = study.network(kept, smaller, method, new_biases, partners)
    found, metric = study.compared({"cut": bare, "repaired": narrow})
    better = found["repaired"].divergence <= found["cut"].divergence
    if better:
        write_back(narrow, smaller)
    return Recovery(
        method,
        study.calibration.as_dict(),
        tuple(layers),
        found["cut"],
        found["repaired"],
        "repaired" if better else "cut",
        metric,
        tuple(dict.fromkeys((*study.notes, *unused(study.calibration.labels, metric)))),
    )


def partners(analysis: Analysis, name: str, seed: int) -> criteria.Partners | None:
    """What a criterion, if it looks at weights alone, says can take the place of each class."""
    if name.partition(":")[0] not in criteria.NAMES or criteria.needs_data(name):
        return None
    return criteria.rank(name, analysis, seed=seed).partners


def looks_at_inputs(method: str, given: bool) -> bool:
    """Whether a repair looks at inputs, or is at least compared on those that are given."""
    return method not in WITHOUT_INPUTS or (given and method != "none")


def by_ranking(
    analysis: Analysis, scores: Reals, allocation: str, decide: Callable[[Reals, bool], Allocation]
) -> Allocation:
    """The choice of "uniform" (the same share of every group), "global" (one ranking of scores in units of their
    group's mean) or "threshold" (one ranking of the scores as they are).
    """
    if allocation == "uniform":
        return decide(criteria.uniform(analysis, scores), False)
    return decide(scores, allocation == "global")


def check_method(name: str) -> None:
    """Raise UsageError for an unknown repair."""
    if name not in METHODS:
        raise UsageError(f"--recover {name!r} is not known; choose one of: {', '.join(METHODS)}")
