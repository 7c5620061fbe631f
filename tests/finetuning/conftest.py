"""Some of these tests need torch, which is an extra."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def torch():
    """Torch, with one thread: these networks are tiny."""
    module = pytest.importorskip("torch")
    before = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(before)
