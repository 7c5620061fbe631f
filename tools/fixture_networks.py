"""The tiny networks of fixtures/: one per topology that pruning has to understand (8x8 grey images, 10 classes)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation imports it under this name
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CLASSES = 10


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, then batch normalisation: the pair that exporters fold."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))


def pooled_head(inputs: int) -> nn.Sequential:
    """Global average pooling and the classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


class OptionA(nn.Module):
    """The CIFAR ResNet's shortcut without parameters: every second pixel, zeros around the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, stride=stride)
        self.conv2 = conv_bn(outputs, outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


def resnet() -> nn.Sequential:
    """A residual network: identity, option-A and strided projection shortcuts; BN still in the graph."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(conv_bn(1, 16), nn.ReLU()),
            stage1=nn.Sequential(*(BasicBlock(16, 16, 1, nn.Identity()) for _ in range(2))),
            stage2=nn.Sequential(BasicBlock(16, 24, 2, OptionA(16, 24)), BasicBlock(24, 24, 1, nn.Identity())),
            stage3=BasicBlock(24, 32, 2, conv_bn(24, 32, kernel=1, stride=2)),
            head=pooled_head(32),
        )
    )


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold every conv-BN pair of an eval-mode `network`, in place."""
    for module in list(network.modules()):
        conv, bn = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            module.conv, module.bn = fuse_conv_bn_eval(conv, bn), nn.Identity()
    return network


def vgg() -> nn.Sequential:
    """Plain convolutions, max pooling, and fully connected layers behind a Flatten of 2x2 pixels per channel."""

    def stage(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    classifier = nn.Sequential(nn.Linear(32 * 2 * 2, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, CLASSES))
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(stage(1, 16), stage(16, 32)),
            flatten=nn.Flatten(),
            classifier=classifier,
        )
    )


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; a shortcut where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        hidden = inputs * expand
        self.expand = nn.Sequential(conv_bn(inputs, hidden, kernel=1), nn.ReLU6())
        self.depthwise = nn.Sequential(conv_bn(hidden, hidden, stride=stride, groups=hidden), nn.ReLU6())
        self.project = conv_bn(hidden, outputs, kernel=1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def mobile() -> nn.Sequential:
    """MobileNetV2 in small: one depthwise separable layer, three inverted residuals, ReLU6 throughout."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(conv_bn(1, 16), nn.ReLU6()),
            separable=nn.Sequential(conv_bn(16, 16, groups=16), nn.ReLU6(), conv_bn(16, 16, kernel=1)),
            block1=InvertedResidual(16, 16, stride=1),
            block2=InvertedResidual(16, 24, stride=2),
            block3=InvertedResidual(24, 24, stride=1),
            last=nn.Sequential(conv_bn(24, 64, kernel=1), nn.ReLU6()),
            head=pooled_head(64),
        )
    )


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 bottleneck, BN, ReLU, 3x3 convolution; the result is appended to the input."""

    def __init__(self, inputs: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, bottleneck, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(bottleneck), nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(hidden)))], 1)


def dense() -> nn.Sequential:
    """DenseNet in small: two blocks of three layers, growth 12, a transition that halves the channels."""

    def block(inputs: int) -> nn.Sequential:
        return nn.Sequential(*(DenseLayer(inputs + 12 * i, growth=12, bottleneck=32) for i in range(3)))

    transition = nn.Sequential(nn.BatchNorm2d(60), nn.ReLU(), nn.Conv2d(60, 30, 1, bias=False), nn.AvgPool2d(2))
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(1, 24, 3, padding=1, bias=False),
            block1=block(24),
            transition=transition,
            block2=block(30),
            last=nn.Sequential(nn.BatchNorm2d(66), nn.ReLU()),
            head=pooled_head(66),
        )
    )


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.expand(squeezed))


class SEBlock(nn.Module):
    """Two convolutions, the second one gated, around an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(channels, channels), conv_bn(channels, channels)
        self.gate = SqueezeExcite(channels, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x + self.gate(self.conv2(F.hardswish(self.conv1(x)))))


def senet() -> nn.Sequential:
    """Squeeze-and-excitation with a Sigmoid gate, and HardSwish, in two widths."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(conv_bn(1, 16), nn.Hardswish()),
            block1=SEBlock(16),
            down=nn.Sequential(conv_bn(16, 32, stride=2), nn.Hardswish()),
            block2=SEBlock(32),
            head=pooled_head(32),
        )
    )


class Attention(nn.Module):
    """Multi-head self-attention with one fused linear layer for queries, keys and values, reshaped as in timm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))
        return projected


class EncoderBlock(nn.Module):
    """Pre-norm attention and GELU MLP, each around the residual stream."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class VisionTransformer(nn.Module):
    """Patches of 2x2 pixels, a class token, two encoder blocks."""

    def __init__(self, dim: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, dim, 2, 2)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 17, dim))
        self.blocks = nn.Sequential(EncoderBlock(dim, heads), EncoderBlock(dim, heads))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches], 1) + self.pos_embed
        logits: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return logits


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "resnet": resnet,
    "vgg": vgg,
    "mobile": mobile,
    "dense": dense,
    "senet": senet,
    "tiny_vit": VisionTransformer,
}
