"""Weights in the layout of other people's code: checked against it, and read into a model of ours.

What a layout must hold follows from the model: `WeightLayout.write` tells it. So one check, with
the publisher's own names, serves every format, and a file that passed can be written back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from wsizoo.errors import NotFoundError, PluginError, SpecError, StrictnessError
from wsizoo.model import SlideModel
from wsizoo.names import suggest
from wsizoo.plugins import Plugins
from wsizoo.registry import Registry
from wsizoo.stored import StoredModel
from wsizoo.targets import load_target
from wsizoo.weights import load_strict, misfits, refuse_misfits

WRAPPERS = ("module.", "model.", "_orig_mod.")  # DataParallel; Lightning and others; torch.compile


class WeightLayout:
    """The names and shapes that other people's code gives the tensors of a model.

    A subclass, made without arguments, is the target of a `WeightFormat`. `write` and `read` are
    inverses, tensor for tensor; every reading checks that the file would be written as it is.
    """

    def write(self, model: SlideModel) -> Mapping[str, Tensor]:
        """The model's tensors, by the names and in the shapes of the published code."""
        raise NotImplementedError

    def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> Mapping[str, Tensor]:
        """Published tensors by the names of `model.inference_state()`.

        Args:
            tensors: have the names and shapes of `write(model)`; that was checked.
        """
        raise NotImplementedError

    def up_to_date(self, tensors: Mapping[str, Tensor], model: SlideModel) -> Mapping[str, Tensor]:
        """A file of an older version of the published code, by the names of the present one.

        Called before anything is checked; default: as it is. It is written again in today's names.
        """
        return tensors

    def unused(self, model: SlideModel) -> Collection[str]:
        """Names that `write` gives to tensors which the published code holds and never reads.

        A file may lack them. Those it has are carried along in `model.unused`, also when the model
        is saved, and written again; else what `write` makes up is.
        """
        return ()

    def container(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """What a pickle of the published code holds: these tensors, or around them what it loads.

        E.g. `{"model": tensors}`, or one mapping for each part of several. Default: as they are.
        """
        return tensors

    def overrides(self, tensors: Mapping[str, Tensor]) -> Sequence[str]:
        """What published tensors, of any model or none, tell of the configuration.

        Those that a file tells and the model does not are named when the two do not fit, e.g.
        `"aggregator.dim=512"`.
        """
        return ()


def find_layout(name: str, model: SlideModel, plugins: Plugins) -> WeightLayout:
    """The layout of this name, if it is one of this model's.

    Raises:
        NotFoundError: no such format, with those of this model. SpecError: it is of other models.
    """
    formats = {weights.name: weights for weights in plugins.formats()}
    part = (model.spec.aggregator or model.spec.model or {}).get("name")
    if name not in formats:
        see = plugins.see("wsizoo list --parts weight-format")
        own = [each for each, weights in formats.items() if part in weights.components]
        hint = f"{suggest(name, own, f'Weight formats of {part}: ')} {see}"
        raise NotFoundError(f"No weight format named '{name}' is installed. {hint}")
    if part not in formats[name].components:
        held = " or ".join(formats[name].components)
        raise SpecError(f"weights in format '{name}' are of {held}; '{model.name}' has {part}")
    layout: WeightLayout = load_target(formats[name].target, f"weight format '{name}'")()
    return layout


def translated(
    stored: StoredModel, registry: Registry, assemble: Callable[..., SlideModel]
) -> StoredModel:
    """Stored weights by our names, where the entry says that they are in another format.

    Args:
        assemble: `wsizoo.zoo.assemble`.

    Raises: as `find_layout` and `fill`.
    """
    if stored.format is None:
        return stored
    model = assemble(stored.entry, stored.spec_with(), registry, 0, True)
    layout = find_layout(stored.format, model, registry.plugins)
    fill(model, stored.tensors, layout, f"'{stored.name}'")
    ours = model.inference_state()
    return replace(stored, tensors=ours, unused=model.unused, format=None)


def fill(
    model: SlideModel, tensors: Mapping[str, Tensor], layout: WeightLayout, whose: str
) -> None:
    """Copy published tensors into a model, strictly: all of them, and into all of its own.

    Names that all begin with what a wrapper adds (`module.`) are read without it.

    Args:
        whose: tensors these are, for messages.

    Raises:
        StrictnessError: what the tensors tell of their configuration, and how many are missing,
            unexpected or misshapen, the first by their published names; or values for which the
            model has no place, such as two that it ties. PluginError: a layout that names other
            tensors than the model has.
    """
    expected = layout.write(model)
    unused = set(expected).intersection(layout.unused(model))
    found = dict(layout.up_to_date(_unwrapped(tensors, expected), model))
    carried = {name: found[name] for name in unused & set(found)}
    found = {**{name: expected[name] for name in unused}, **found}
    hint = functools.partial(_hint, layout, expected, found, model)
    wrong = misfits(expected, found)
    if any(wrong):
        refuse_misfits(whose, *wrong, hint=f". {hint()}")
    ours = layout.read(found, model)
    try:
        load_strict(model.inference_state(), ours, f"'{model.name}'")
    except StrictnessError as error:
        raise PluginError(f"{type(layout).__name__}.read gives other tensors: {error}") from error
    again = layout.write(model)
    lost = [name for name in set(found) - unused if not _equal(again[name], found[name])]
    if lost:
        raise StrictnessError(
            f"The weights of {whose} do not fit the model; it cannot hold the values of "
            f"{', '.join(sorted(lost))} (tied to others, or constant). {hint()}"
        )
    model.unused = carried


def published(model: SlideModel, layout: WeightLayout) -> dict[str, Tensor]:
    """The model's tensors as `layout.write` gives them, unused ones as they were read."""
    names = [name for name in layout.unused(model) if name in model.unused]
    return {**layout.write(model), **{name: model.unused[name] for name in names}}


def _unwrapped(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without a wrapper's prefix that all names have, and the layout's do not."""
    found = dict(tensors)
    while found:
        common = [w for w in WRAPPERS if all(name.startswith(w) for name in found)]
        if not common or any(name.startswith(common[0]) for name in expected):
            return found
        found = {name.removeprefix(common[0]): tensor for name, tensor in found.items()}
    return found


def _hint(
    layout: WeightLayout,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    model: SlideModel,
) -> str:
    """What to try where a file does not fit the model it was read for."""
    if not set(expected) & set(found) - set(layout.unused(model)):
        return "None of its names is one of this format: it may be in another one"
    known = layout.overrides(expected)
    told = " ".join(f"'{_typed(o)}'" for o in layout.overrides(found) if o not in known)
    if told:
        return f"The file tells: {told}; '{model.name}' was built otherwise"
    if outputs := _other_outputs(expected, found, model):
        return outputs
    if all(found[name].shape == expected[name].shape for name in set(expected) & set(found)):
        return (
            f"As far as it tells it is of the configuration of '{model.name}': tensors were left "
            "out of it or added to it, or an option that leaves no trace differs"
        )
    return f"It is of another configuration than '{model.name}' was built with: override that"


def _other_outputs(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], model: SlideModel
) -> str | None:
    """What to type where the tensors differ in the number of outputs alone."""
    ours = model.head.n_outputs if model.head else None
    shapes = [(expected[name].shape, found[name].shape) for name in set(expected) & set(found)]
    sides = {pair for a, b in shapes for pair in zip(a, b, strict=False) if pair[0] != pair[1]}
    theirs = {n for _, n in sides}
    if (
        {n for n, _ in sides} != {ours}
        or len(theirs) > 1
        or any(len(a) != len(b) for a, b in shapes)
    ):
        return None
    (n,), classes = theirs, ", ".join(model.classes)
    if classes:
        own = f"'{model.name}' has {ours} ({classes})"
        return f"The file is of {n} classes, {own}: give head.classes {n} names"
    return f"The file is of {n} outputs, '{model.name}' has {ours}: override head"


def _typed(override: str) -> str:
    """Features of another width are another encoder's, which has to be named with it."""
    key, _, value = override.partition("=")
    return f"encoder={{name: NAME, dim: {value}}}" if key == "encoder.dim" else override


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """The same numbers, in our precision; NaN equals NaN."""
    ours, theirs = ours.cpu(), theirs.to("cpu", ours.dtype)
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
