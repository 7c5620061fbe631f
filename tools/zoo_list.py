"""The architectures of the zoo and the manifest of their exports; needs nothing but the standard library."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Source = Literal["torchvision", "timm"]
Exporter = Literal["legacy", "dynamo"]

# The most common networks first, so that others can work while the rest is still being exported.
TORCHVISION = """
resnet18 resnet50 resnet101 resnet152 densenet121 densenet201 mobilenet_v2 mobilenet_v3_small efficientnet_b0
shufflenet_v2_x1_0 convnext_tiny vit_b_16 swin_t
resnext50_32x4d wide_resnet50_2 squeezenet1_0 squeezenet1_1 googlenet inception_v3 mobilenet_v3_large
shufflenet_v2_x0_5 mnasnet0_5 mnasnet1_0 efficientnet_b1 efficientnet_v2_s regnet_x_400mf regnet_y_400mf swin_v2_t
maxvit_t alexnet vgg11_bn vgg16
fcn_resnet50 deeplabv3_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large
""".split()  # noqa: SIM905 (a literal list would fill two screens)
TIMM = """
mixer_s16_224 convnext_atto convnextv2_atto vit_tiny_patch16_224 deit_tiny_patch16_224 swin_s3_tiny_224 mobilevit_xxs
mobilevitv2_050 ghostnet_100 efficientformer_l1 regnety_002 regnetz_005 xcit_nano_12_p16_224 repvgg_a0 mobileone_s0
levit_128s poolformer_s12 hrnet_w18_small dla34 resnest14d seresnet18 gernet_s eva02_tiny_patch14_224 gmlp_s16_224
cspresnet50 cspdarknet53 inception_next_atto fastvit_t8 edgenext_xx_small tf_efficientnet_lite0
mobilenetv4_conv_small mobilenetv4_hybrid_medium skresnet18 res2net50_14w_8s ese_vovnet19b_dw rexnet_100
repvit_m0_9 efficientvit_b0 pvt_v2_b0 tiny_vit_5m_224 starnet_s1 resmlp_12_224 resnetv2_50d_gn coatnet_nano_rw_224
focalnet_tiny_srf lcnet_050
""".split()  # noqa: SIM905 (a literal list would fill two screens)
FIRST = (*TORCHVISION[:13], "mixer_s16_224")
# Segmentation heads have no crop size; the two big ones are exported smaller than published, to stay affordable.
SEGMENTATION = {
    "fcn_resnet50": 224,
    "deeplabv3_resnet50": 224,
    "deeplabv3_mobilenet_v3_large": 520,
    "lraspp_mobilenet_v3_large": 520,
}
# Dynamo exports have a fixed batch of 1, but for these.
DYNAMIC_DYNAMO = {
    "mobilenet_v2",
    "densenet121",
    "shufflenet_v2_x1_0",
    "convnext_tiny",
    "vit_tiny_patch16_224",
    "mobilevit_xxs",
    "swin_s3_tiny_224",
}


@dataclass
class Record:
    """One row of the manifest: a file, or the one-line reason why there is none."""

    file: str
    name: str
    source: Source
    exporter: Exporter
    opset: int | None = None
    input_shape: tuple[int, ...] = ()
    batch: Literal["dynamic", "fixed"] = "fixed"
    published_gmacs: float | None = None
    seconds: float = 0.0
    bytes: int = 0
    relative_error: float | None = None
    output_std: float | None = None
    input_sensitivity: float | None = None
    error: str | None = None


def architectures() -> list[str]:
    """Return the names of all architectures in the order in which they are exported."""
    return [*FIRST, *(n for n in (*TORCHVISION, *TIMM) if n not in FIRST)]


def read_manifest(out_dir: Path) -> dict[str, Record]:
    """Read OUT_DIR/manifest.json as records by file name; without one the result is empty."""
    path = out_dir / "manifest.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return {row["file"]: Record(**row) for row in rows}


def write_manifest(out_dir: Path, manifest: dict[str, Record]) -> None:
    """Write all records to OUT_DIR/manifest.json in one step."""
    part = out_dir / "manifest.json.part"
    part.write_text(json.dumps([asdict(r) for r in manifest.values()], indent=1) + "\n")
    part.replace(out_dir / "manifest.json")
