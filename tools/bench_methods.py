"""Methods beside each other, by repair and by what is kept; writes tools/results/methods.md and .jsonl.

Usage: python tools/bench_methods.py MODELS DATA [--only PATTERN] [--again | --failed] [--threads N]

MODELS and DATA as for tools/bench_recovery.py, which does the work; networks that MODELS does not hold are taken from
fixtures/cifar10. The journal makes a run resumable.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import bench_recovery as bench
import recovery_table as tables
from methods_grid import NETWORKS, rows

JOURNAL, TABLE = bench.TOOLS / "results" / "methods.jsonl", bench.TOOLS / "results" / "methods.md"
FIXTURES = bench.TOOLS.parent / "fixtures" / "cifar10"
HEAD = """# Methods

Top-1 accuracy in percent after one cut, without training and without labels, by the share of the MACs that is kept:
repair and method. `random`, `l2`, `geometric_median` and `activation` rank all filters (`--allocate global`), `obs,
greedy` is the choice by default with data, the others have an allocation of their own. Widths are free (`--align 1`);
seed 0; random with least squares on ResNet-20: mean of the seeds 0, 1, 2 and their range. What `hybrid` and `evolve`
choose does not depend on the repair that ships: it is chosen once (`plan`), then repaired in each way (`apply`).
Seconds: of both, at 0.5, beside other work. Written by `python tools/bench_methods.py MODELS DATA`; the journal beside
it has options, seconds per stage, commit and machine of every row.
""".splitlines()


def write(found: tables.Lines) -> None:
    """Write the tables."""
    lines = [*HEAD, "", *tables.provenance(found)]
    for network in NETWORKS:
        lines += tables.accuracy(network, [r for r in found.values() if r["network"] == network.name])
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Parse, run, write."""
    args = bench.arguments(__doc__)
    todo = bench.chosen(rows(), args, JOURNAL)
    if args.list:
        print("\n".join(r.key for r in todo))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        runner = bench.Runner(args.models, args.data, FIXTURES, None, args.threads, Path(scratch), NETWORKS)
        bench.measure(todo, runner.run, args.threads, JOURNAL)
    write(bench.journal(JOURNAL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
