"""Where a model comes from, written into its metadata on request: without it the same cut gives the same bytes."""

from __future__ import annotations

import hashlib
import json

from onnx import ModelProto

from onnxprune import __version__
from onnxprune.plan import Plan, dumps

PREFIX = "onnxprune."


def stamp(model: ModelProto, plan: Plan, source: str) -> None:
    """Write version, settings, the digest of the plan and of the source into `metadata_props`, in place of older ones.

    model: is changed; source: sha256 of the model that was read, as `files.digest` gives it.
    """
    entries = {
        "version": __version__,
        "settings": json.dumps(plan.settings, sort_keys=True),
        "plan": hashlib.sha256(dumps(plan).encode()).hexdigest(),
        "source": source,
    }
    others = [p for p in model.metadata_props if not p.key.startswith(PREFIX)]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    for key, value in entries.items():
        model.metadata_props.add(key=PREFIX + key, value=value)
