"""Sizes of functions and files: a function over 60 lines or a file over 400 fails; median and 95th percentile are
printed.

Usage: python tools/sizes.py [FOLDER ...]     (default: onnxprune tools)
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

FUNCTION, FILE = 60, 400
ROOT = Path(__file__).resolve().parent.parent


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, first line, lines of code) of each function; the docstring does not count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            body = node.body
            text = body[0] if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else None
            documentation = (text.end_lineno or 0) - text.lineno + 1 if text is not None else 0
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1 - documentation


def main(folders: list[str]) -> int:
    """Print the distribution and every excess; 1 if there is one."""
    files = [f for folder in folders or ["onnxprune", "tools"] for f in sorted((ROOT / folder).rglob("*.py"))]
    found = [(f, name, line, size) for f in files for name, line, size in functions(f)]
    excess = [f"{f.relative_to(ROOT)}:{line} {name}: {size} lines" for f, name, line, size in found if size > FUNCTION]
    lengths = [(f, len(f.read_text(encoding="utf-8").splitlines())) for f in files]
    excess += [f"{f.relative_to(ROOT)}: {n} lines" for f, n in lengths if n > FILE]
    sizes = [size for *_, size in found]
    p95 = quantiles(sizes, n=20)[-1]
    shape = f"median {median(sizes):g} lines, 95th percentile {p95:g}, longest {max(sizes)}"
    print(f"{len(sizes)} functions in {len(files)} files: {shape}")
    print("\n".join(excess) if excess else f"none over {FUNCTION} lines, no file over {FILE}")
    return 1 if excess else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
