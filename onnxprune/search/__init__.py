"""Allocations that try many choices: pairs of thresholds, and optimisers over what stays."""

from onnxprune.search.optimisers import OPTIMISERS
from onnxprune.search.selection import ALLOCATIONS, PROXIES, Search, select

__all__ = ["ALLOCATIONS", "OPTIMISERS", "PROXIES", "Search", "select"]
