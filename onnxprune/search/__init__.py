"""Searching among candidates: which of them to try next, and how they are scored."""
