"""The picture of the README: what a cut leaves of every layer, and the accuracy that recovery keeps.

    python tools/picture.py            writes tools/results/picture.svg

Left, a network of fixtures/, compressed here; right, rows of tools/results/recovery.jsonl (tools/bench_recovery.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import onnxprune
from onnxprune.drawing import COLOURS, Axis, Mark, Series, heights, plot, strip

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tools" / "results"
MODEL, CALIB, FLOPS = "resnet_bn_dynamo.onnx", "digits_calib.npz", 0.5
NETWORK = "cifar10_resnet56_jpegft"
RATIO, RANKING = "Torch-Pruning: l2, one ratio, inner channels", "Torch-Pruning: l2, one ranking, inner channels"
BN = ", BN re-estimated"
ROWS = {"onnxprune": ("default",), "BN re-estimated*": (RATIO + BN, RANKING + BN), "cut only*": (RATIO, RANKING)}
WIDTH, HEIGHT, PANEL = 940, 330, 330  # of the picture; of the left half


def curves() -> tuple[list[Series], float]:
    """Accuracy in percent by the share of the MACs that is kept, and the original's."""
    lines = (RESULTS / "recovery.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [r for r in map(json.loads, lines) if r["network"] == NETWORK and r.get("result")]
    whole = next(r for r in rows if r["kind"] == "original")["result"]
    top = 100 * whole["correct"] / whole["n"]
    found = []
    for name, labels in ROWS.items():
        best = {1.0: top}
        for r in (r for r in rows if r["label"] in labels and r["align"] == 1):
            best[r["keep"]] = max(best.get(r["keep"], 0.0), 100 * r["result"]["correct"] / r["result"]["n"])
        found.append(Series(name, [Mark(x, y) for x, y in sorted(best.items())]))
    return found, top


def bars() -> str:
    """Filters per layer of the fixture before and after, as a picture to place inside another."""
    result = onnxprune.compress(ROOT / "fixtures" / MODEL, flops=FLOPS, data=ROOT / "fixtures" / CALIB)
    widths = [x.outputs for x in result.report.layers if x.outputs]
    most = max(before for before, _ in widths)
    drawn = strip(heights([b for b, _ in widths], most), heights([a for _, a in widths], most), (), "filters per layer")
    return drawn.replace("<svg ", f'<svg x="24" y="70" width="{PANEL - 60}" height="190" ', 1)


def text(x: float, y: float, words: str, size: int = 13, weight: str = "normal") -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="#222">{words}</text>'


def picture() -> str:
    """Both halves."""
    series, top = curves()
    shown = plot(
        series,
        Axis("share of the MACs that is kept", 0.15, 1.03, lambda v: f"{100 * v:.0f} %"),
        Axis("", 0.0, 100.0, lambda v: f"{v:.0f}"),
        alone=True,
    )
    place = f'<svg x="{PANEL}" y="30" width="{WIDTH - PANEL}" height="{HEIGHT - 60}" color="#222" '
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="white"/>',
        text(24, 28, f"compress {MODEL} --flops {FLOPS}", 14, "bold"),
        text(24, 48, "filters of every layer:"),
        f'<rect x="160" y="38" width="12" height="12" fill="#c3d3e2"/>{text(176, 48, "before")}',
        f'<rect x="226" y="38" width="12" height="12" fill="{COLOURS[0]}"/>{text(242, 48, "after")}',
        bars(),
        text(24, 284, "layers that add into one residual stream"),
        text(24, 301, "lose the same filters (height: square root)"),
        text(PANEL + 20, 28, f"ResNet-56 on CIFAR-10, top-1 of {top:.1f} %, after the cut: no training", 14, "bold"),
        shown.replace("<svg ", place, 1),
        text(
            PANEL + 20,
            318,
            "* Torch-Pruning, L2 norm, the better of two settings; the same kept MACs and test images",
            11,
        ),
    ]
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img"'
    return f'<svg {box} aria-label="Filters per layer, and accuracy by kept MACs">\n' + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    (RESULTS / "picture.svg").write_text(picture(), encoding="utf-8")
    print(RESULTS / "picture.svg")
