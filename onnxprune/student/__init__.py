"""A pruned ONNX graph as a torch module, trained to give what the original gives.

The only package that imports torch, an optional dependency: nothing outside imports it but inside functions.
"""

from __future__ import annotations

from onnxprune.student import elementwise, layers, movement, reductions
from onnxprune.student.network import Network
from onnxprune.student.table import op

__all__ = ["Network", "elementwise", "layers", "movement", "op", "reductions"]
