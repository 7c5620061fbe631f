"""Torch-Pruning on a network of the zoo. Prints one line of JSON.

Usage (in its own environment): python torch_pruning_zoo.py NAME KEEP OUT WHOLE
Group L2 magnitude, one ratio for all layers, found by bisection; widths are multiples of 8, as its documentation
advises, or free where that fails. Heads are ignored; attention, layer scales and torchvision's ViT are treated as in
its examples.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from importlib.metadata import version
from typing import Any

import timm
import torch
import torch_pruning as tp
from torch import nn
from torch_zoo import heads, main
from torchvision.models.convnext import CNBlock
from torchvision.models.vision_transformer import VisionTransformer

ROUND = 8
Attention = timm.models.vision_transformer.Attention


def attend(self: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """timm's attention for heads whose size has changed: the input's width is no longer that of the heads."""
    b, n, _c = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    weights = ((self.q_norm(q) * self.scale) @ self.k_norm(k).transpose(-2, -1)).softmax(-1)
    out: torch.Tensor = self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))
    return out


def scales(network: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Parameters outside of layers, with the axis of their channels, where that is not the last one."""
    return [(m.layer_scale, 0) for m in network.modules() if isinstance(m, CNBlock)]


def rounding(network: nn.Module, multiple: int | None) -> int | None:
    """Of the widths: torchvision's ViT needs multiples of its heads, too."""
    if not isinstance(network, VisionTransformer):
        return multiple
    return math.lcm(multiple or 1, network.encoder.layers[0].num_heads)


def prune(network: nn.Module, images: torch.Tensor, ratio: float, multiple: int | None) -> nn.Module:
    """A copy without this share of the channels."""
    smaller = copy.deepcopy(network)
    attentions = [m for m in smaller.modules() if isinstance(m, Attention)]
    for m in attentions:
        m.forward = attend.__get__(m, Attention)
    for p in smaller.parameters():
        p.requires_grad_(True)
    special = [m for m in smaller.modules() if isinstance(m, nn.modules.linear.NonDynamicallyQuantizableLinear)]
    pruner = tp.pruner.BasePruner(
        smaller,
        images,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=heads(smaller, images) + special,
        unwrapped_parameters=scales(smaller) or None,
        num_heads={m.qkv: m.num_heads for m in attentions},
        round_to=rounding(smaller, multiple),
    )
    pruner.step()
    for m in attentions:
        m.num_heads = pruner.num_heads[m.qkv]
        m.head_dim = m.qkv.out_features // (3 * m.num_heads)
    if isinstance(smaller, VisionTransformer):
        smaller.hidden_dim = smaller.conv_proj.out_channels
    with torch.no_grad():
        smaller(images)
    return smaller


if __name__ == "__main__":
    SETTINGS = {"importance": "group magnitude, L2", "ratio": "one for all layers"}
    WAYS = [(partial(prune, multiple=m), SETTINGS | {"round_to": m}) for m in (ROUND, None)]
    main(f"torch-pruning {version('torch-pruning')}", *WAYS)
