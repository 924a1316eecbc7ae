"""Weight format "span-official": a published state dict of SPAN as one of our models, and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from wsizoo import SlideModel, WeightLayout
from wsizoo.errors import SpecError
from wsizoo_plugin_span.official import entries, from_official, to_official
from wsizoo_plugin_span.official_hints import told
from wsizoo_plugin_span.settings import Settings

TASKS = ("classification", "survival", "segmentation")


class SpanOfficial(WeightLayout):
    """As https://github.com/wwyi1828/SPAN at 08e4ba0 saves classification, survival, segmentation.

    Only models with `compat="published"`: others compute something else with the same tensors.
    """

    def write(self, model: SlideModel) -> dict[str, Tensor]:
        return to_official(model.inference_state(), *_described(model))

    def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        ours, _ = from_official(tensors, *_described(model))
        return ours

    def unused(self, model: SlideModel) -> list[str]:
        task, settings = _described(model)
        known = entries(task, settings, model.head.n_outputs if model.head else 1)
        return [entry.published for entry in known if entry.ours is None]

    def overrides(self, tensors: Mapping[str, Tensor]) -> list[str]:
        return told(tensors)


def _described(model: SlideModel) -> tuple[str, Settings]:
    """Task and settings. Raises SpecError for a model that the published code does not have."""
    task = model.head.task if model.head else None
    if task not in TASKS:
        has = "no head" if task is None else f"a {task} head"
        raise SpecError(
            f"published SPAN weights have a head for {', '.join(TASKS)}; '{model.name}' has {has}"
        )
    settings = model.aggregator.settings  # type: ignore[union-attr]
    assert isinstance(settings, Settings)
    if not settings.published:
        raise SpecError(
            f"'{model.name}' differs from the published SPAN where its code slips, so with the "
            "same weights it gives other numbers. Add aggregator.compat=published"
        )
    return task, settings
