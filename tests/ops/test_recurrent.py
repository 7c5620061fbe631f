"""LSTM, GRU and RNN: hidden units."""

from __future__ import annotations

from graphs import analyse, each, golden, reasons
from tables import prunes

UNITS = [1, 2, 3, 4]


def recurrent(op, gates, *, directions=1, states=0, after="", outputs="h", inputs="", weights=""):
    """5 steps of 2 samples with 3 features -> 4 hidden units -> 2 outputs; `u` makes features that can be pruned as well."""
    d, way = directions, "bidirectional" if directions > 1 else "forward"
    state = "".join(f", float[{d},2,4] s{i}" for i in range(states))
    given = f", , {', '.join(f's{i}' for i in range(states))}" if states else ""
    return f"""g (float[5,2,3] x{inputs}) => (float[] y)
      <float[3,6] u, float[{d},{4 * gates},6] w, float[{d},{4 * gates},4] r, float[{d},{8 * gates}] b{state}, float[4,2] v{weights}> {{
        f = MatMul(x, u)
        {outputs} = {op} <hidden_size = 4, direction = "{way}"> (f, w, r, b{given})
        {after}
        y = MatMul(h, v)
    }}"""


def table(gates, **more):
    return {"u.1 w.2": [1, 2, 3, 4, 5, 6]} | {
        names: [c + 6 for c in UNITS] * times
        for names, times in {"w.1 r.1": gates, "r.2 v.0": 1, "b.1": 2 * gates, **more}.items()
    }


PRUNE = {
    "LSTM": (recurrent("LSTM", 4), table(4)),
    "GRU": (recurrent("GRU", 3), table(3)),
    "RNN": (recurrent("RNN", 1), table(1)),
    "LSTM in both directions": (recurrent("LSTM", 4, directions=2), table(4)),
    "GRU in both directions": (recurrent("GRU", 3, directions=2), table(3)),
    "LSTM with initial states": (recurrent("LSTM", 4, states=2), table(4, **{"s0.2 s1.2": 1})),
    "GRU in both directions with an initial state": (
        recurrent("GRU", 3, directions=2, states=1),
        table(3, **{"s0.2": 1}),
    ),
    "RNN with an initial state": (recurrent("RNN", 1, states=1), table(1, **{"s0.2": 1})),
    "LSTM of which the last hidden and cell states are read": (
        recurrent("LSTM", 4, outputs=", hn, cn", after="h = Add(hn, cn)"),
        table(4),
    ),
    "two directions side by side": (
        recurrent(
            "GRU",
            3,
            directions=2,
            outputs="a",
            after="e = Transpose <perm = [0, 2, 1, 3]> (a)  h = Reshape(e, s)",
            weights=", int64[3] s = {0, 0, -1}",
        ).replace("float[4,2] v", "float[8,2] v"),
        table(3) | {"r.2": [7, 8, 9, 10], "v.0": [7, 8, 9, 10, 7, 8, 9, 10]},
    ),
}
del PRUNE["two directions side by side"][1]["r.2 v.0"]

REFUSE = {
    "an initial state that is an input": (
        recurrent("GRU", 3, states=1, inputs=", float[1,2,4] s0").replace(
            ", float[1,2,4] s0, float[4,2]", ", float[4,2]"
        ),
        {"w.1": "a hidden unit is a row of every gate and a column of the recurrence"},
    ),
    "peepholes": (
        recurrent("LSTM", 4, weights=", float[1,12] p").replace("(f, w, r, b)", "(f, w, r, b, , , , p)"),
        {"u.1": "peepholes, or a layout with the batch first"},
    ),
}


test_must_prune, test_stays_sound = prunes(PRUNE, seeds=(0, 1))


@each(REFUSE, "text, why")
def test_must_refuse(text, why):
    """No hidden unit can be removed, and the reason says why."""
    analysis = analyse(text)
    assert not {"w.1", "r.1", "r.2", "b.1", "v.0"} & golden(analysis).keys()
    assert all(reason in reasons(analysis)[axis] for axis, reason in why.items())
