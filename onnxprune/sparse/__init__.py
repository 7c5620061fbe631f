"""Single weights set to zero: which of them go, by magnitude or by an optimiser beside it."""
