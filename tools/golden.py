"""Golden class counts of the fixtures: what coupling finds must not change unnoticed.

Usage: python tools/golden.py            rewrites fixtures/golden.json; review the difference like code
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def golden(path: Path) -> dict[str, Any]:
    """Classes, inexact ones, filters of the largest, frozen filters, and the widths of the groups of one model."""
    import onnxprune

    analysis = onnxprune.analyze(path)
    counts = [int((analysis.group == g + 1).sum()) for g in range(len(analysis.groups))]
    return {
        "classes": analysis.classes,
        "inexact": int(analysis.inexact.sum()),
        "largest": analysis.largest,
        "frozen": sum(f.positions for f in analysis.frozen),
        "groups": counts,
    }


def main() -> int:
    """Write the file."""
    paths = [*sorted(FIXTURES.glob("*.onnx")), *sorted(FIXTURES.glob("*/*.onnx"))]
    found = {f.relative_to(FIXTURES).as_posix(): golden(f) for f in paths}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
    (FIXTURES / "golden.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
