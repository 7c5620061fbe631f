"""Calibration and evaluation data of every kind, read in batches that fit a model; see `open_data`."""

from __future__ import annotations

from onnxprune.data.inputs import fitting
from onnxprune.data.preprocess import PRESETS, Preprocess, parse_preprocess
from onnxprune.data.readers import Batch, Data, Feeds, Reader, as_reader, open_data

__all__ = [
    "PRESETS",
    "Batch",
    "Data",
    "Feeds",
    "Preprocess",
    "Reader",
    "as_reader",
    "fitting",
    "open_data",
    "parse_preprocess",
]
