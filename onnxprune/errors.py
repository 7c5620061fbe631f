"""Every error a user can meet, and the exit code that the command line gives for it.

OnnxpruneError
 +-- TargetError         1  a target or a gate is not met
 +-- UsageError          2  options that are wrong or contradict each other
 +-- ModelError          3  a model that cannot be used
 |    +-- UnsupportedError   ... because of something this version does not handle
 +-- PlanError           3  a plan that does not fit the model
 +-- DataError           3  data or labels that cannot be used
 +-- FileError           4  reading or writing failed
 +-- ResourceError       4  a memory or size limit would be exceeded
 +-- VerificationError   5  the cut model is not the masked original: our bug
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line."""

    DONE = 0
    TARGET = 1
    USAGE = 2
    INPUT = 3
    RESOURCE = 4
    INTERNAL = 5
    INTERRUPTED = 130


class OnnxpruneError(Exception):
    """Base of all errors that onnxprune raises on purpose; `code` is the exit code of the command line."""

    code = Exit.INTERNAL


class TargetError(OnnxpruneError):
    """The budget or the gate cannot be met; the message names the nearest value that can."""

    code = Exit.TARGET


class UsageError(OnnxpruneError):
    """An option or an argument is wrong, or two contradict each other."""

    code = Exit.USAGE


class ModelError(OnnxpruneError):
    """The file is not a model that can be used."""

    code = Exit.INPUT


class UnsupportedError(ModelError):
    """The model is valid, but uses something this version does not handle."""


class PlanError(OnnxpruneError):
    """The plan is malformed, or belongs to another model."""

    code = Exit.INPUT


class DataError(OnnxpruneError):
    """Data or labels do not fit the model."""

    code = Exit.INPUT


class FileError(OnnxpruneError):
    """A file cannot be read or written."""

    code = Exit.RESOURCE


class ResourceError(OnnxpruneError):
    """A memory or size limit would be exceeded."""

    code = Exit.RESOURCE


class VerificationError(OnnxpruneError):
    """The cut model does not equal the masked original: a bug in a rule."""

    code = Exit.INTERNAL
