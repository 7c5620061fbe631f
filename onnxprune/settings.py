"""What the library can be told: the options of `compress` and `make_plan`, with their defaults and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from onnxprune import criteria, recovery
from onnxprune.allocate import Target
from onnxprune.calibration import Augment
from onnxprune.cost import Kind
from onnxprune.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]
DEFAULT_METHOD = {True: "obs", False: "group_norm"}  # with data, without
DEFAULT_ALLOCATION = {True: "greedy", False: "global"}


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
class Options(Inputs):
    """What `compress` and `make_plan` can be told; `compress` says what each of them means."""

    flops: float | None = None
    params: float | None = None
    size: float | None = None
    method: str | None = None
    allocate: str | None = None
    min_keep: float = 0.1
    align: int | Literal["auto"] = "auto"
    keep: Sequence[str] = ()
    inexact: bool = False
    best_effort: bool = False

    @property
    def criterion(self) -> str:
        """The method, or the default one."""
        return self.method or DEFAULT_METHOD[self.data is not None]

    @property
    def allocation(self) -> str:
        """The allocation, or the default one."""
        return self.allocate or DEFAULT_ALLOCATION[self.data is not None]

    @property
    def patterns(self) -> tuple[str, ...]:
        """`keep`, which may be a single pattern."""
        return (self.keep,) if isinstance(self.keep, str) else tuple(self.keep)

    def target(self) -> Target:
        """The budget. Raises UsageError unless exactly one is given, within (0, 1]."""
        kinds: tuple[Kind, ...] = ("flops", "params", "size")
        given = [(kind, getattr(self, kind)) for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise UsageError(f"give exactly one of --flops, --params and --size, not {len(given)} of them")
        return Target(*given[0])

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the model."""
        self.target()
        if self.criterion not in criteria.NAMES:
            near = get_close_matches(self.criterion, criteria.NAMES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UsageError(f"--method {self.method!r} is not known{hint} Methods: {', '.join(criteria.NAMES)}")
        recovery.check_allocation(self.allocation)
        self.check_inputs()

    @property
    def looks_at_inputs(self) -> bool:
        """Whether the choice of what leaves depends on calibration inputs."""
        return self.allocation in recovery.BY_TABLE or criteria.needs_data(self.criterion)

    def settings(self) -> dict[str, Any]:
        """What a plan records of them."""
        names = ["flops", "params", "size", "min_keep", "align", "inexact", "seed"]
        chosen = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        chosen |= {"method": self.criterion, "allocate": self.allocation, "keep": list(self.patterns)}
        if self.looks_at_inputs:
            names = ["calibration_size", "augment", "preprocess", "memory", "time_budget"]
            chosen |= {n: getattr(self, n) for n in names if getattr(self, n) is not None} | {"data": self.source}
            chosen |= {"input_range": list(self.input_range)} if self.input_range else {}
        return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressOptions(Options):
    """What `compress` can be told beyond what decides what leaves."""

    recover: str = "auto"

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the model."""
        Options.check(self)
        recovery.check_method(self.recover)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions(Inputs):
    """What `apply_plan` can be told: only the cut is replayed, unless `recover` names a repair."""

    recover: str = "none"

    def check(self) -> None:
        """Raise UsageError for what is wrong whatever the model."""
        recovery.check_method(self.recover)
        self.check_inputs()
