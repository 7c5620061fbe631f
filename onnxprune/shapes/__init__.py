"""Shapes: concrete ones of every tensor, symbolic ones, and the arithmetic that computes them in a graph."""

from __future__ import annotations

from onnxprune.shapes.concrete import concrete_shapes, parse_input_shape, skeleton

__all__ = ["concrete_shapes", "parse_input_shape", "skeleton"]
