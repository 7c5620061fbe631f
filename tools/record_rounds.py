"""Record what models measure beside themselves, as `bench` does it, with the noise of this machine.

Usage: python tools/record_rounds.py OUT.npz MODEL... [--again 3]

OUT holds per model, and number of the measurement, the seconds [rounds, 3] of its sessions, and as `about` JSON: the
processor, versions, and load when each began. All that was measured is written, whatever it says.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from onnxprune.runtime import CPU
from onnxprune.validation.environment import environment
from onnxprune.validation.feeds import made_up
from onnxprune.validation.latency import How, loaded, measure, verdict


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--again", type=int, default=3, help="measurements of each model")
    args = parser.parse_args()
    times, loads = {}, {}
    for seed in range(args.again):
        for path in args.models:
            name, model = f"{path.stem}.{seed}", loaded(path)
            feeds = made_up(model, None, None, seed)
            loads[name] = round(os.getloadavg()[0], 1)
            found = measure([model, model], [feeds, feeds], How(seed=seed))
            times[name] = found.times.astype(np.float32)
            speedup, noise = found.speedup(1), found.noise
            said = verdict(speedup, noise)
            told = f"{name}: {len(found.times)} rounds, load {loads[name]}"
            print(f"{told}: {speedup.low:.3f} to {speedup.high:.3f}, noise {noise.low:.3f} to {noise.high:.3f}: {said}")
    about = {k: v for k, v in environment(1, CPU).items() if k in {"cpu", "cpus", "governor", "onnxruntime"}}
    np.savez_compressed(args.out, about=json.dumps(about | {"load": loads}), **times)


if __name__ == "__main__":
    main()
