"""Allocations that try many choices: pairs of thresholds, and optimisers over what stays."""

from onnxprune.searching.optimisers import OPTIMISERS
from onnxprune.searching.selection import ALLOCATIONS, PROXIES, Search, select

__all__ = ["ALLOCATIONS", "OPTIMISERS", "PROXIES", "Search", "select"]
