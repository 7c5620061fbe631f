"""What several tests compare."""

from __future__ import annotations

import pytest
from validation.models import inputs, labels, linear


@pytest.fixture(scope="module")
def pair():
    """A model, a worse one, inputs, and labels."""
    good = linear()
    x = inputs()
    return good, linear(noise=0.5), x, labels(good, x)
