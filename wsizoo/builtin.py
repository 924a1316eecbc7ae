"""The core's own components, told through the same hooks as any plugin's."""

from __future__ import annotations

from pathlib import Path

from wsizoo.hookspecs import Component, hookimpl
from wsizoo.registry import core_folder

wsizoo_api = 1

ABMIL_PAPER = "https://arxiv.org/abs/1802.04712"
SURVIVAL_PAPER = "https://doi.org/10.1109/TPAMI.2020.2979450"
COMPONENTS = (
    Component(
        "encoder",
        "handcrafted-he",
        "wsizoo.slides.encoders:HandcraftedHE",
        "208 stain and texture statistics, no download",
        "wsizoo",
    ),
    Component(
        "aggregator",
        "mean",
        "wsizoo.mil.pooling:MeanPooling",
        "mean of embedded patches",
        "folklore",
    ),
    Component(
        "aggregator",
        "max",
        "wsizoo.mil.pooling:MaxPooling",
        "channel-wise maximum of embedded patches",
        "folklore",
    ),
    Component(
        "aggregator",
        "abmil",
        "wsizoo.mil.abmil:ABMIL",
        "attention pooling, gated or plain",
        ABMIL_PAPER,
    ),
    Component(
        "head",
        "classification",
        "wsizoo.mil.heads:ClassificationHead",
        "one logit a class",
        "folklore",
    ),
    Component(
        "head",
        "survival",
        "wsizoo.mil.heads:SurvivalHead",
        "discrete-time hazards and a risk",
        SURVIVAL_PAPER,
    ),
    Component(
        "head",
        "segmentation",
        "wsizoo.mil.heads:SegmentationHead",
        "one logit a class and patch",
        "folklore",
    ),
    Component(
        "head", "regression", "wsizoo.mil.heads:RegressionHead", "one number a slide", "folklore"
    ),
)


@hookimpl
def wsizoo_components() -> tuple[Component, ...]:
    """Parts of the core."""
    return COMPONENTS


@hookimpl
def wsizoo_registry() -> Path:
    """The root registry.yaml."""
    return core_folder()
