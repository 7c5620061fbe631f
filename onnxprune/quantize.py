"""int8: static quantization by onnxruntime, calibrated on the same inputs as recovery.

The only module besides runtime.py that imports onnxruntime, for its quantization tools.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from onnx import ModelProto

from onnxprune.errors import OnnxpruneError, UnsupportedError
from onnxprune.files import read_model, write_model
from onnxprune.graph import Array

_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")  # instructions that multiply int8 and add up


def has_int8(flags: Iterable[str]) -> bool | None:
    """Whether a processor multiplies int8 faster than floats, by its instruction sets; None where they are unknown."""
    known = set(flags)
    return bool(known.intersection(_INT8)) if known else None


class _Feeds:
    """What onnxruntime.quantization calls a CalibrationDataReader."""

    def __init__(self, batches: Iterable[Mapping[str, Array]]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        found = next(self._left, None)
        return None if found is None else dict(found)


def quantize(model: ModelProto, batches: Iterable[Mapping[str, Array]]) -> ModelProto:
    """The model with int8 weights, per channel, and int8 activations, as QuantizeLinear and DequantizeLinear.

    model: not changed. batches: inputs by name; their least and greatest activations set the scales. Batch
    normalisation is folded first. The operator set stays, but for what QuantizeLinear needs. Raises UnsupportedError
    where onnxruntime cannot quantize it.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="onnxprune") as folder, _quietly():
        plain, prepared, done = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        write_model(model, plain)
        try:
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(done),
                _Feeds(batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
        except OnnxpruneError:
            raise
        except Exception as error:  # its errors have no common base
            told = " ".join(str(error).split())[:300]
            raise UnsupportedError(f"onnxruntime cannot quantize the model ({type(error).__name__}: {told})") from error
        found = read_model(done)
    return _tidied(found, model)


@contextmanager
def _quietly() -> Iterator[None]:
    """The tools log advice, and failures that are raised anyway, to the root logger; our own logger goes on."""
    own = logging.getLogger("onnxprune")
    before, level = logging.root.level, own.level
    own.setLevel(own.getEffectiveLevel())
    logging.root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.root.setLevel(before)
        own.setLevel(level)


def _tidied(found: ModelProto, model: ModelProto) -> ModelProto:
    """Without the tools' traces: operator sets that no node uses, their name as the producer, their marks."""
    used = {n.domain for n in found.graph.node} | {n.domain for f in found.functions for n in f.node} | {""}
    opsets = [o for o in found.opset_import if o.domain in used]
    found.ClearField("opset_import")
    found.opset_import.extend(opsets)
    found.producer_name, found.producer_version = model.producer_name, model.producer_version
    found.ClearField("metadata_props")
    found.metadata_props.extend(model.metadata_props)
    found.graph.name = model.graph.name
    return found
