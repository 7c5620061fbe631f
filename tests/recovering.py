"""Cutting and repairing small networks on random inputs, for the tests of recovery."""

from __future__ import annotations

import numpy as np
from copies import copied

from onnxprune.cut import cut
from onnxprune.recover.layers import sites
from onnxprune.recover.program import Walk, program, write_back
from onnxprune.recover.reference import reference
from onnxprune.recover.sequence import repair
from onnxprune.runtime import input_specs

SAMPLES = 32  # per batch


def feeds(model, count, *, samples=SAMPLES, seed=0):
    """`count` batches of normal values for a model; `samples` where the batch is a symbol."""
    rng = np.random.default_rng(seed)

    def array(spec):
        shape = [d if isinstance(d, int) else samples for d in spec.dims]
        return rng.standard_normal(shape).astype(spec.dtype)

    return [{spec.name: array(spec) for spec in input_specs(model.header)} for _ in range(count)]


def outputs(whole, batches):
    """What a program gives, one dict per batch."""
    return list(Walk(whole, batches).rest(whole, whole.outputs))


def far(found, wanted):
    """Norm of the difference by the norm of what is wanted, over all outputs and batches."""
    pairs = [(a[n].astype(np.float64), b[n].astype(np.float64)) for a, b in zip(found, wanted, strict=True) for n in b]
    return np.sqrt(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(b).sum() for _, b in pairs))


class Case:
    """A coupled model, a choice and inputs; the original's targets.

    held: batches that fits may not see.
    """

    def __init__(self, analysis, kept, *, batches=5, held=1, samples=SAMPLES, seed=0, **options):
        self.analysis, self.kept = analysis, kept
        self.batches = feeds(analysis.model, batches, samples=samples, seed=seed)
        self.whole = program(analysis.model, analysis.shapes)
        self.reference = reference(self.whole, sites(self.whole)[0], self.batches, held, **options)
        self.smaller = cut(analysis, kept)

    def repaired(self, **options):
        """A repaired cut."""
        return repair(self.analysis, self.kept, program(self.smaller), self.reference, **options)

    def written(self, done):
        """The outputs of the cut model that the repair was written into."""
        model = self.smaller.copy()
        write_back(done.program, model)
        return outputs(program(model), self.batches)

    @property
    def before(self):
        """Error of the plain cut."""
        return far(outputs(program(self.smaller), self.batches), self.reference.outputs)

    def after(self, done):
        """Error of a repaired cut."""
        return far(self.written(done), self.reference.outputs)


def duplicates(text, pairs=((2, 4), (5, 1)), **options):
    """A network in which some classes are copies, and the cut that removes these."""
    analysis, kept, _ = copied(text, {}, pairs)
    return Case(analysis, kept, **options)
