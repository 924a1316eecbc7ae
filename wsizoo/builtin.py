"""The core's own components, told through the same hooks as any plugin's."""

from __future__ import annotations

from pathlib import Path

from wsizoo.hookspecs import Component, OpBackend, hookimpl
from wsizoo.registry import core_folder

wsizoo_api = 1

ABMIL_PAPER = "https://arxiv.org/abs/1802.04712"
SURVIVAL_PAPER = "https://doi.org/10.1109/TPAMI.2020.2979450"
COX_PAPER = "https://doi.org/10.1186/s12874-018-0482-1"
COMPONENTS = (
    Component(
        "encoder",
        "handcrafted-he",
        target="wsizoo.encoders.builtin:HandcraftedHE",
        summary="208 stain and texture statistics, no download",
        source="wsizoo",
    ),
    Component(
        "encoder",
        "pixels",
        target="wsizoo.encoders.builtin:Pixels",
        summary="no encoder, patches as they are",
        source="wsizoo",
    ),
    Component(
        "encoder",
        "timm",
        target="wsizoo.encoders.networks:TimmEncoder",
        summary="networks of timm, as the catalogue describes them",
        source="https://github.com/huggingface/pytorch-image-models",
    ),
    Component(
        "encoder",
        "transformers",
        target="wsizoo.encoders.networks:TransformersEncoder",
        summary="networks of transformers, as the catalogue describes",
        source="https://github.com/huggingface/transformers",
    ),
    Component(
        "aggregator",
        "mean",
        target="wsizoo.mil.pooling:MeanPooling",
        summary="mean of embedded patches",
        source="folklore",
    ),
    Component(
        "aggregator",
        "max",
        target="wsizoo.mil.pooling:MaxPooling",
        summary="channel-wise maximum of embedded patches",
        source="folklore",
    ),
    Component(
        "aggregator",
        "abmil",
        target="wsizoo.mil.abmil:ABMIL",
        summary="attention pooling, gated or plain",
        source=ABMIL_PAPER,
    ),
    Component(
        "head",
        "classification",
        target="wsizoo.mil.heads:ClassificationHead",
        summary="one logit a class",
        source="folklore",
    ),
    Component(
        "head",
        "survival",
        target="wsizoo.mil.heads:SurvivalHead",
        summary="discrete-time hazards and a risk",
        source=SURVIVAL_PAPER,
    ),
    Component(
        "head",
        "cox",
        target="wsizoo.mil.heads:CoxHead",
        summary="proportional hazards, one log hazard a slide",
        source=COX_PAPER,
    ),
    Component(
        "head",
        "segmentation",
        target="wsizoo.mil.heads:SegmentationHead",
        summary="one logit a class and patch",
        source="folklore",
    ),
    Component(
        "head",
        "regression",
        target="wsizoo.mil.heads:RegressionHead",
        summary="one number a slide",
        source="folklore",
    ),
)


@hookimpl
def wsizoo_components() -> tuple[Component, ...]:
    """Parts of the core."""
    return COMPONENTS


BACKENDS = (
    OpBackend(
        "attention",
        "tiled",
        target="wsizoo.ops.tiled:attention_tiled",
        why_not="wsizoo.ops.tiled:why_not",
        priority=10,
    ),
    OpBackend(
        "grid_attention",
        "blocked",
        target="wsizoo.ops.blocked:grid_attention_blocked",
        why_not="wsizoo.ops.blocked:why_not",
        priority=10,
    ),
    OpBackend(
        "grid_attention",
        "striped",
        target="wsizoo.ops.striped:grid_attention_striped",
        why_not="wsizoo.ops.striped:why_not",
        priority=10,
    ),
    *(
        OpBackend(
            op,
            "gather",
            target=f"wsizoo.ops.gather:{op}_gather",
            why_not="wsizoo.ops._dispatch:why_not_under_torch_func",
            priority=10,
        )
        for op in ("sparse_conv2d", "sparse_conv_transpose2d", "pixel_shuffle_linear")
    ),
    OpBackend(
        "segment_pool",
        "products",
        target="wsizoo.ops.segment_products:segment_pool_products",
        why_not="wsizoo.ops.segment_products:why_not",
        priority=10,
    ),
    OpBackend(
        "selective_scan",
        "chunked",
        target="wsizoo.ops.scan_chunked:selective_scan_chunked",
        why_not="wsizoo.ops._dispatch:why_not_under_torch_func",
        priority=10,
    ),
    *(
        OpBackend(
            op,
            "triton",
            target=f"wsizoo.ops.{module}:{op}_triton",
            why_not="wsizoo.ops.scan_triton:why_not",
            priority=20,
        )
        for op, module in (("selective_scan", "scan_triton"), ("causal_conv1d", "conv_triton"))
    ),
    *(
        OpBackend(
            op,
            "numba",
            target=f"wsizoo.ops.{module}:{op}_numba",
            why_not="wsizoo.ops._numba:why_not",
            priority=20,
        )
        for op, module in (("selective_scan", "scan_numba"), ("causal_conv1d", "conv_numba"))
    ),
)


@hookimpl
def wsizoo_op_backends() -> tuple[OpBackend, ...]:
    """Fast paths of the core's own ops."""
    return BACKENDS


@hookimpl
def wsizoo_registry() -> Path:
    """The root registry.yaml."""
    return core_folder()
