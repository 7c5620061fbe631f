"""What the library can be told: the options of `compress` and `make_plan`, with their defaults and checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from onnxprune import criteria, recovery, searching
from onnxprune.calibration import Augment
from onnxprune.cost import Kind
from onnxprune.errors import UsageError
from onnxprune.sparse import sparsify as sparse
from onnxprune.sparse.masks import parse_pattern
from onnxprune.target import Target
from onnxprune.validation.bench import Given
from onnxprune.validation.environment import check_int8

Shapes = Mapping[str, tuple[int, ...]]
DEFAULT_METHOD = {True: "obs", False: "group_norm"}  # with data, without
DEFAULT_ALLOCATION = {True: "greedy", False: "global"}
# Methods that are more than a criterion: their criterion, and their allocation.
PRESETS = {
    "cluster": ("cluster", "threshold"),
    "diversity": ("diversity", "threshold"),
    "hybrid": ("cluster", "pairs"),
    "evolve": ("l2", "evolve"),
}
ALLOCATIONS = (*recovery.ALLOCATIONS, *searching.ALLOCATIONS)
DEFAULT_PROXY, DEFAULT_OPTIMISER, DEFAULT_BUDGET = "kl", "evolution", 60
OF_INPUTS = ("data", "preprocess", "calibration_size", "augment", "input_range")
_LOOKING = "--allocate greedy or search, or --method obs or activation"
DEFAULT_MASKS = 300  # candidates of `sparsify` per layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The inputs that selection and recovery look at, and what the look may cost; `compress` says what each means."""

    data: Any = None
    preprocess: str | None = None
    augment: Augment = "auto"
    input_range: tuple[float, float] | None = None
    calibration_size: int = 512
    memory: float = 4e9
    time_budget: float = 600.0
    seed: int = 0
    input_shapes: Shapes | None = None

    def check_inputs(self) -> None:
        """Raise UsageError for what is wrong whatever the model and the data."""
        if self.calibration_size < 16:
            raise UsageError(f"--calibration-size {self.calibration_size}: give at least 16")
        if self.preprocess is not None and self.data is None:
            raise UsageError("--preprocess says how to read --data, which is not given")
        if self.augment not in get_args(Augment):
            raise UsageError(f"--augment {self.augment!r} is not known; choose one of: {', '.join(get_args(Augment))}")
        if self.input_range is not None:
            self._check_range(self.input_range)
        if not (self.memory > 0 and self.time_budget > 0):
            raise UsageError("--memory and --time-budget must be above 0")

    def check_used(self, used: Collection[str], users: str) -> None:
        """Raise UsageError for options of inputs that would be ignored.

        used: names of those that are not; users: what would look at inputs. --memory and --time-budget only bound work.
        """
        defaults = {f.name: f.default for f in fields(Inputs)}
        ignored = [n for n in OF_INPUTS if n not in used and getattr(self, n) is not defaults[n]]
        ignored = [n for n in ignored if n == "data" or getattr(self, n) != defaults[n]]
        if ignored:
            names = ", ".join(f"--{n.replace('_', '-')}" for n in ignored)
            raise UsageError(
                f"{names} would be ignored, since nothing here looks at inputs: leave out, or give {users}"
            )

    def _check_range(self, span: tuple[float, float]) -> None:
        if self.data is not None:
            raise UsageError("--input-range says how to make up inputs, but --data are given")
        if not (len(span) == 2 and -np.inf < span[0] < span[1] < np.inf):
            raise UsageError(f"--input-range {span}: the lowest value must be below the highest, and both finite")

    @property
    def source(self) -> str:
        """What a plan says of the data."""
        if self.data is None:
            return "synthetic"
        return Path(self.data).name if isinstance(self.data, str | Path) else type(self.data).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Inputs):
    """How it is decided what leaves, whatever the criterion and the target."""

    allocate: str | None = None
    max_rate: Sequence[str | float] = ()
    proxy: str | None = None
    optimiser: str | None = None
    budget: int | None = None
    min_keep: float = 0.1
    align: int | Literal["auto"] = "auto"
    keep: Sequence[str] = ()
    inexact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Choice):
    """What `compress` and `make_plan` can be told; `compress` says what each of them means."""

    flops: float | None = None
    params: float | None = None
    size: float | None = None
    latency: float | None = None
    threads: int | None = None
    method: str | None = None
    best_effort: bool = False

    @property
    def criterion(self) -> str:
        """The criterion of the method, or the default one, with its options (`name:option,option`)."""
        base, colon, options = (self.method or DEFAULT_METHOD[self.data is not None]).partition(":")
        return (PRESETS[base][0] if base in PRESETS else base) + colon + options

    @property
    def allocation(self) -> str:
        """The allocation that is asked for, or else that of the method."""
        base = (self.method or "").partition(":")[0]
        return self.allocate or (PRESETS[base][1] if base in PRESETS else DEFAULT_ALLOCATION[self.data is not None])

    @property
    def search(self) -> searching.Search:
        """How an allocation that tries many choices goes about it."""
        return searching.Search(
            self.proxy or DEFAULT_PROXY,
            self.optimiser or DEFAULT_OPTIMISER,
            DEFAULT_BUDGET if self.budget is None else self.budget,
            self.seed,
        )

    @property
    def rates(self) -> list[tuple[str, float]]:
        """`max_rate` as (pattern, rate). Raises UsageError."""
        given = (self.max_rate,) if isinstance(self.max_rate, str | float | int) else self.max_rate
        return [_rate(x) for x in given]

    @property
    def patterns(self) -> tuple[str, ...]:
        """`keep`, which may be a single pattern."""
        return (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)

    def target(self) -> Target:
        """The budget. Raises UsageError unless exactly one is given, within (0, 1]."""
        kinds: tuple[Kind, ...] = ("flops", "params", "size", "latency")
        given = [(kind, getattr(self, kind)) for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise UsageError(f"give exactly one of --flops, --params, --size and --latency, not {len(given)} of them")
        return Target(*given[0])

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the model."""
        self.target()
        if self.threads is not None and self.latency is None:
            raise UsageError("--threads says how --latency is measured, which is not given")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: give at least 1")
        base = (self.method or "").partition(":")[0]
        if self.method is not None and base not in methods():
            raise UsageError(_unknown("--method", self.method, methods(), base))
        criteria.check(self.criterion, self.method)
        if self.allocation not in ALLOCATIONS:
            raise UsageError(_unknown("--allocate", self.allocation, ALLOCATIONS))
        self._check_search()
        self.check_inputs()

    def _check_search(self) -> None:
        """Options of an allocation that is not the one at work are contradictions."""
        for option, value, owner, names in (
            ("--proxy", self.proxy, "pairs", searching.PROXIES),
            ("--optimiser", self.optimiser, "evolve", tuple(searching.OPTIMISERS)),
            ("--budget", self.budget, "evolve", None),
        ):
            if value is None:
                continue
            if self.allocation != owner:
                raise UsageError(f"{option} belongs to --allocate {owner}, but the allocation is {self.allocation!r}")
            if names is not None and value not in names:
                raise UsageError(_unknown(option, str(value), names))
        if self.budget is not None and self.budget < 1:
            raise UsageError(f"--budget {self.budget}: give at least 1 candidate")
        if self.allocation in ("threshold", "pairs") and not criteria.is_comparable(self.criterion):
            raise UsageError(
                f"--allocate {self.allocation} wants a criterion whose numbers mean the same in every layer "
                f"({', '.join(criteria.comparable())}), not {self.criterion!r}"
            )
        self.rates  # noqa: B018 - raises

    @property
    def looks_at_inputs(self) -> bool:
        """Whether the choice of what leaves depends on calibration inputs."""
        how = self.allocation
        judged = how == "evolve" or (how == "pairs" and self.search.proxy != "none")
        return judged or how in recovery.BY_TABLE or criteria.needs_data(self.criterion)

    @property
    def new_biases(self) -> bool:
        """As `may_add_biases` says."""
        return may_add_biases({self.target().kind})

    def check_inputs_used(self) -> None:
        """Raise UsageError for options of inputs that a plan of these would ignore."""
        self.check_used(OF_INPUTS if self.looks_at_inputs else (), _LOOKING)

    def settings(self) -> dict[str, Any]:
        """What a plan records of them."""
        names = ["flops", "params", "size", "latency", "threads", "min_keep", "align", "inexact", "seed"]
        chosen = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        chosen |= {"method": self.criterion, "allocate": self.allocation, "keep": list(self.patterns)}
        if self.max_rate:
            chosen["max_rate"] = [list(r) for r in self.rates]
        if self.allocation == "pairs":
            chosen["proxy"] = self.search.proxy
        if self.allocation == "evolve":
            chosen |= {"optimiser": self.search.optimiser, "budget": self.search.budget}
        if self.looks_at_inputs:
            names = ["calibration_size", "augment", "preprocess", "memory", "time_budget"]
            chosen |= {n: getattr(self, n) for n in names if getattr(self, n) is not None} | {"data": self.source}
            chosen |= {"input_range": list(self.input_range)} if self.input_range else {}
        return chosen


def may_add_biases(given: Collection[str]) -> bool:
    """Whether a repair may add biases: where parameters or bytes are counted they would exceed what is promised.

    given: names of options, the target among them.
    """
    return "params" not in given and "size" not in given


def methods() -> tuple[str, ...]:
    """Every name that --method takes, criteria of others among them."""
    return tuple(sorted({*criteria.NAMES, *PRESETS}))


def _rate(text: str | float) -> tuple[str, float]:
    """0.5 or `0.5` of every layer, `PATTERN=0.5` of some. Raises UsageError."""
    pattern, _, number = str(text).rpartition("=")
    try:
        rate = float(number)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise UsageError(f"--max-rate {text!r}: give a share from 0 to 1, such as 0.7 or PATTERN=0.7")
    return pattern or "*", rate


def _unknown(option: str, value: str, names: Sequence[str], base: str | None = None) -> str:
    near = get_close_matches(base or value, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{option} {value!r} is not known{hint} Choose one of: {', '.join(names)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressOptions(Options):
    """What `compress` can be told beyond what decides what leaves."""

    recover: str = "auto"
    int8: bool = False

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the model, TargetError where int8 gains nothing here."""
        Options.check(self)
        recovery.check_method(self.recover)
        if self.int8 and self.data is None:
            raise UsageError("--int8 needs --data: inputs like those of use, on which the ranges are measured")
        if self.int8 and not self.best_effort:
            check_int8()

    @property
    def runs_inputs(self) -> bool:
        """Whether the choice or the repair looks at inputs."""
        return self.looks_at_inputs or recovery.looks_at_inputs(self.recover, self.data is not None)

    def check_inputs_used(self) -> None:
        """Raise UsageError for options of inputs that would be ignored."""
        of_int8 = ("data", "preprocess", "calibration_size") if self.int8 else ()
        self.check_used(OF_INPUTS if self.runs_inputs else of_int8, f"a --recover that looks at them, {_LOOKING}")

    @property
    def given(self) -> Given:
        """The same inputs, to calibrate and measure int8 with."""
        return Given(self.data, self.preprocess, self.calibration_size, self.input_shapes, self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsifyOptions(Inputs):
    """What `sparsify` can be told; it says what each of them means."""

    sparsity: float | None = None
    method: sparse.Method = "evolve"
    pattern: str | None = None
    scope: sparse.Scope = "tensor"
    optimiser: str | None = None
    budget: int | None = None
    recover: str = "auto"
    keep: Sequence[str] = ()

    def checked(self) -> sparse.Settings:
        """The choice of weights. Raises UsageError for what is wrong whatever the model."""
        if (self.sparsity is None) == (self.pattern is None):
            raise UsageError("give one of --sparsity and --pattern")
        self._check_ignored()
        pattern = None if self.pattern is None else parse_pattern(self.pattern)
        sparsity = self.sparsity if pattern is None else 1 - pattern.n / pattern.m
        assert sparsity is not None
        settings = sparse.Settings(
            sparsity=sparsity,
            method=self.method,
            pattern=pattern,
            scope=self.scope,
            optimiser=self.optimiser or DEFAULT_OPTIMISER,
            budget=DEFAULT_MASKS if self.budget is None else self.budget,
            recover=self.recover,
            keep=(self.keep,) if isinstance(self.keep, str) else tuple(self.keep),
            seed=self.seed,
            seconds=self.time_budget,
        )
        sparse.check(settings)
        self.check_inputs()
        self.check_used(OF_INPUTS if self.looks_at_inputs else (), "--data, --method evolve or --recover least-squares")
        return settings

    def _check_ignored(self) -> None:
        """Options that would be ignored are contradictions."""
        if self.pattern is not None and self.scope == "global":
            raise UsageError("--scope global belongs to --sparsity: a --pattern is the same in every layer")
        for option, value in (("--optimiser", self.optimiser), ("--budget", self.budget)):
            if value is not None and self.method == "magnitude":
                raise UsageError(f"{option} belongs to --method evolve, but the method is 'magnitude'")

    @property
    def looks_at_inputs(self) -> bool:
        """Whether the model has to be run."""
        return self.method != "magnitude" or self.data is not None or self.recover == "least-squares"

    def settings(self) -> dict[str, Any]:
        """What the report records of them."""
        names = ("sparsity", "pattern", "method", "scope", "recover", "seed")
        chosen = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        if self.method == "evolve":
            given = self.checked()
            chosen |= {"optimiser": given.optimiser, "budget": given.budget}
        keep = [self.keep] if isinstance(self.keep, str) else list(self.keep)
        return chosen | {"keep": keep} | ({"data": self.source} if self.looks_at_inputs else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions(Inputs):
    """What `apply_plan` can be told: only the cut is replayed, unless `recover` names a repair."""

    recover: str = "none"

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the model."""
        recovery.check_method(self.recover)
        self.check_inputs()
        self.check_used(OF_INPUTS if self.runs_inputs else (), "--recover auto: without it, only the cut is replayed")

    @property
    def runs_inputs(self) -> bool:
        """Whether the repair looks at inputs."""
        return recovery.looks_at_inputs(self.recover, self.data is not None)
