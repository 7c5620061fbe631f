"""Fused attention: whole heads are prunable. (Written out in MatMuls, attention needs no rule: there the same
dimensions of every head are.)
"""

from __future__ import annotations

import numpy as np

from onnxprune.factors import Factor, View, along
from onnxprune.rules import Arg, Kept, Refuse, Tracer, rule

WHY = "a head's queries, keys and values go together"


def _heads(t: Tracer, X: Arg, heads: int | None) -> Factor:
    """[heads] one atom per head. X is [N, heads, T, D], or [N, T, heads*D] with the number of heads given."""
    if X.rank == 4:
        return t.atoms(X, 1)
    if not heads:
        raise Refuse("the number of heads is not given")
    grid = t.atoms(X, 2).reshape(heads, -1)
    t.tie(grid, grid[:, :1], "only whole heads can be removed")
    return grid[:, 0]


@rule("Attention")
def attention(
    t: Tracer,
    Q: Arg,
    K: Arg,
    V: Arg,
    attn_mask: Arg | None = None,
    past_key: Arg | None = None,
    past_value: Arg | None = None,
    *,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
) -> list[View]:
    """softmax(q k^T * scale + mask) v per head; a key/value head goes with all the query heads that share it."""
    if past_key is not None or past_value is not None:
        raise Refuse("keys and values are cached outside")
    q, k, v = _heads(t, Q, q_num_heads), _heads(t, K, kv_num_heads), _heads(t, V, kv_num_heads)
    t.tie(k, v, WHY)
    t.tie(q.reshape(k.size, -1), k[:, None], WHY)
    if attn_mask is not None and attn_mask.rank > 2 and attn_mask.shape[-3] > 1:
        t.tie(q, t.atoms(attn_mask, -3), "one mask per head")
    rest = [(along(k, 1, 4),), (along(v, 1, 4),), (along(q, 1, 4),)]  # keys, values and scores as further outputs
    if Q.rank == 4:
        return [(along(q, 1, 4),), *rest]

    def refit(kept: Kept) -> dict[str, int]:
        return {"q_num_heads": int(kept.mask(q).sum()), "kv_num_heads": int(kept.mask(k).sum())}

    t.refit(refit)
    return [(along(np.repeat(q, t.shape()[2] // q.size), 2, 3),), *rest]


@rule("RotaryEmbedding")
def rotary_embedding(
    t: Tracer, X: Arg, cos_cache: Arg, sin_cache: Arg, position_ids: Arg | None = None, *, num_heads: int = 0
) -> View:
    """Rotates pairs of dimensions inside each head."""
    heads = _heads(t, X, num_heads)
    if X.rank == 4:
        return (along(heads, 1, 4),)

    def refit(kept: Kept) -> dict[str, int]:
        return {"num_heads": int(kept.mask(heads).sum())}

    t.refit(refit)
    return (along(np.repeat(heads, X.shape[2] // heads.size), 2, 3),)
