"""LSTM, GRU and RNN: a hidden unit is a row of every gate, a column of the recurrence, a position of each state."""

from __future__ import annotations

import numpy as np

from onnxprune.factors import View, along
from onnxprune.rules import IN, OUT, Arg, Kept, Refuse, Tracer, rule


@rule("LSTM", "GRU", "RNN")
def recurrent(
    t: Tracer,
    X: Arg,
    W: Arg,
    R: Arg,
    B: Arg | None = None,
    sequence_lens: Arg | None = None,
    initial_h: Arg | None = None,
    initial_c: Arg | None = None,
    P: Arg | None = None,
    *,
    hidden_size: int | None = None,
    layout: int = 0,
) -> list[View]:
    """x [T, N, I], w [D, gates*H, I], r [D, gates*H, H], b [D, 2*gates*H] -> y [T, D, N, H], y_h and y_c [D, N, H]."""
    if layout or P is not None:
        raise Refuse("peepholes, or a layout with the batch first")
    size = R.shape[2]
    units, rows = t.atoms(R, 2), [t.atoms(W, 1), t.atoms(R, 1)]
    why = "a hidden unit is a row of every gate and a column of the recurrence"
    for gates in rows:
        t.tie(gates.reshape(-1, size), units, why)
    if B is not None:
        t.tie(t.atoms(B, 1).reshape(-1, size), units, why)
    for state in (initial_h, initial_c):
        if state is not None:
            t.tie(t.atoms(state, 2), units, why)
    columns = t.atoms(W, 2)
    t.tie(t.atoms(X, 2), columns, "input features are the columns of the weight")
    t.trace.roles[np.concatenate(rows)] |= OUT
    t.trace.roles[np.concatenate([columns, units])] |= IN

    def refit(kept: Kept) -> dict[str, int]:
        return {"hidden_size": int(kept.mask(units).sum())}

    t.refit(refit)
    return [(along(units, 3, 4),), (along(units, 2, 3),), (along(units, 2, 3),)]
