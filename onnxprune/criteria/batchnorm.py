"""What training left in the scales of BatchNormalization (network slimming)."""

from __future__ import annotations

import logging

import numpy as np

from onnxprune.analysis import Analysis
from onnxprune.criteria.norms import row_norms
from onnxprune.criteria.registry import Scores, criterion
from onnxprune.graph import values

_LOG = logging.getLogger(__name__)


@criterion("bn_scale")
def bn_scale(analysis: Analysis, _seed: int) -> Scores:
    """Mean of abs(gamma) over the BatchNormalization nodes of a class (Liu et al., 2017).

    A group in which some class has no BatchNormalization (folded by the exporter, say) is ranked by `l1` instead, and
    the log says so.
    """
    size = analysis.classes + 1
    total, count = np.zeros(size), np.zeros(size)
    names = {n.inputs[1].name for n in analysis.model.graph.nodes if n.op == "BatchNormalization"}
    constants = analysis.model.constants()
    for axis in (a for a in analysis.axes if a.param in names):
        gamma = values(constants[axis.param])
        if gamma is not None:
            np.add.at(total, axis.classes, np.abs(gamma.astype(np.float64)))
            np.add.at(count, axis.classes, 1)
    bare = np.unique(analysis.group[1:][count[1:] == 0])
    scores: Scores = total / np.maximum(count, 1)
    if not len(bare):
        return scores
    _LOG.warning("bn_scale: %d of %d groups have no BatchNormalization; ranked by l1", len(bare), len(analysis.groups))
    return np.where(np.isin(analysis.group, bare), row_norms(analysis, 1), scores)
