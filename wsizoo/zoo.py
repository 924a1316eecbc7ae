"""load, build, adapt: three ways to a model, none of which can be mistaken for another."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wsizoo import weights as disk
from wsizoo.encoder_spec import EncoderSpec
from wsizoo.errors import NotFoundError, PluginError, SpecError, WeightsError
from wsizoo.fingerprint import Fingerprint
from wsizoo.hookspecs import Kind
from wsizoo.model import SlideModel
from wsizoo.registry import Entry, Registry, default
from wsizoo.seeding import made_blank, seeded
from wsizoo.spec import PARTS, EncoderUse, ModelSpec
from wsizoo.stored import PUBLISHER, StoredModel, find_stored
from wsizoo.targets import call, named
from wsizoo.weight_formats import translated


def build(
    name: str, *overrides: str, seed: int = 0, registry: Registry | None = None
) -> SlideModel:
    """A model with random weights, in eval mode. Never downloads.

    Args:
        name: a registry entry, e.g. `"abmil-uni"`.
        overrides: `"head.classes=[normal,tumour]"`, `"aggregator=mean"`, `"head=null"`.
        seed: of the initialisation; the global random state is left as it was.

    Raises:
        NotFoundError: no such model, or its plugin is not installed (the pip command is named).
        SpecError: an override or argument that does not exist.
    """
    registry = registry or default()
    spec = registry.model_spec(name, overrides)
    entry = registry.models[registry.aliases.get(name, name)]
    return assemble(entry, spec, registry, seed)


def load(
    name: str | Path,
    *overrides: str,
    device: torch.device | str = "cpu",
    registry: Registry | None = None,
) -> SlideModel:
    """A trained model, in eval mode, or an error; never random weights.

    A folder that was saved untrained is loaded with a warning and `trained` False.

    Args:
        name: a registry entry; `"hf:owner/name@COMMIT"`; or the folder of a model or run.
        overrides: such as leave every tensor, and what it was trained to say, as it is.

    Raises:
        NoWeightsError: none released. NotPinnedError: no commit and digest. DataError: many runs.
        DigestError, StrictnessError, GatedError, OfflineError, RepoNotFoundError: as named.
        SpecError: an override that changes a tensor's shape, or the head or its classes (`adapt`).
    """
    registry = registry or default()
    stored = translated(find_stored(name, registry), registry, assemble)
    try:
        return load_stored(stored, registry, overrides).to(device)
    except WeightsError as error:
        if not overrides:
            raise
        raise SpecError(
            f"load('{name}') cannot take {list(overrides)}: {error}. load keeps every trained "
            f"tensor; for a new head: wsizoo.adapt('{name}', ...), for random weights: wsizoo.build"
        ) from error


def load_stored(
    stored: StoredModel, registry: Registry, overrides: Sequence[str] = ()
) -> SlideModel:
    """The model of weights that were read already. Raises as `load`."""
    spec = stored.spec_with(overrides)
    _check_meaning(stored, spec, "head", "model")
    model = assemble(stored.entry, spec, registry, seed=0, overwritten=True)
    _fill(model, stored, f"'{stored.name}'")
    model.trained, model.facts, model.unused = stored.trained, stored.training, stored.unused
    return model


def adapt(
    name: str | Path, *overrides: str, seed: int = 0, registry: Registry | None = None
) -> SlideModel:
    """Trained selector and aggregator, loaded strictly, with a new head, in eval mode.

    With another selector, `"selector=NAME"`, this is new instead, and the head as it was trained,
    unless that is changed too.

    Args:
        overrides: usually the new head's classes: `"head.classes=[a,b,c]"`.
        seed: of the initialisation of what is new.

    Raises: as `load`.
    """
    registry = registry or default()
    stored = translated(find_stored(name, registry), registry, assemble)
    spec = stored.spec_with(overrides)
    _check_meaning(stored, spec, "model")
    model = assemble(stored.entry, spec, registry, seed)
    own = model.aggregator.classifier_tensors if model.aggregator else ()
    trained = stored.spec_with()
    selects = (spec.selector or {}).get("name") != (trained.selector or {}).get("name")
    heads = not selects or spec.head != trained.head
    parts = tuple(part for part, is_new in (("selector", selects), ("head", heads)) if is_new)
    new = {f"aggregator.{tensor}" for tensor in own if heads}
    known = {*stored.tensors, *model.inference_state()}
    new |= {key for key in known if key.partition(".")[0] in parts}
    _fill(model, stored, f"'{stored.name}' (without its {' and '.join(parts)})", new)
    return model


@dataclasses.dataclass(frozen=True)
class _Maker:
    """A part's class and the arguments that its entry gives it."""

    whose: str
    make: Any
    params: dict[str, Any]

    def __call__(self, **given: Any) -> Any:
        return call(self.make, self.whose, self.params, **given)


def assemble(
    entry: Entry, spec: ModelSpec, registry: Registry, seed: int, overwritten: bool = False
) -> SlideModel:
    """Make a model's parts, with seeded random weights, in eval mode.

    Args:
        entry: what was published or registered. spec: the same, checked, with overrides.
        overwritten: trained weights follow, so none need be drawn.
    """
    stated = (part for part in PARTS if getattr(spec, part) is not None)
    makers: dict[str, _Maker] = {part: _maker(part, entry, spec, registry) for part in stated}
    in_dim, requires = _input(entry.name, spec, registry)

    def make() -> SlideModel:
        parts = _parts(makers, in_dim)
        return SlideModel(entry.name, spec, in_dim, requires=requires, **parts).eval()

    if overwritten and (model := made_blank(make, seed)):
        return model
    with seeded(seed):
        return make()


def _maker(part: Kind, entry: Entry, spec: ModelSpec, registry: Registry) -> _Maker:
    """Look one part up. What the entry says of its plugin holds for the part that it names."""
    params = dict(getattr(spec, part))
    component = str(params.pop("name"))
    own = spec.plugin if entry.part(part) == component else None
    listed = registry.plugin_of(part, component)
    vouched = listed or entry.owner != PUBLISHER or registry.vouches_for(str(own))
    publisher = None if vouched else f"The publisher of '{entry.name}'"
    make = registry.plugins.load(part, component, listed or own, publisher)
    return _Maker(f"{part} '{component}' of '{entry.name}'", make, params)


def _parts(makers: Mapping[str, _Maker], in_dim: int) -> dict[str, Any]:
    """The parts of a model, each made for the width that the one before it hands on."""
    if whole := makers.get("model"):
        return {"whole": whole(in_dim=in_dim)}
    selector, head = makers.get("selector"), makers.get("head")
    parts: dict[str, Any] = {"selector": selector(in_dim=in_dim) if selector else None}
    width = parts["selector"].out_dim if selector else in_dim
    if (maker := makers["aggregator"]).make.owns_classifier:
        own = parts["head"] = head(in_dim=None) if head else None
        task = named(maker.make, task=own.task if own else None)
        n_outputs = own.n_outputs if own else None
        return {"aggregator": maker(in_dim=width, n_outputs=n_outputs, **task), **parts}
    aggregator = maker(in_dim=width)
    if head:
        per_patch = head.make.reads == "instances"
        if not (aggregator.gives_instances if per_patch else aggregator.gives_slide):
            what, whose = "patch" if per_patch else "slide", maker.whose
            raise SpecError(f"{head.whose} reads one vector a {what}, which {whose} does not give")
        parts["head"] = head(in_dim=aggregator.instance_dim if per_patch else aggregator.out_dim)
    return {"aggregator": aggregator, **parts}


def _input(name: str, spec: ModelSpec, registry: Registry) -> tuple[int, Fingerprint]:
    """Width of the features a model reads, and what is known of how they must be made."""
    use = spec.encoder
    if use is None:
        raise SpecError(f"model '{name}' names no encoder. Give it one: encoder=NAME")
    dim = _encoder_facts(use, registry).dim if use.dim is None else use.dim
    requires = Fingerprint(
        use.name, None, None, use.preprocessing, use.pooling, use.mpp, use.patch_size
    )
    return dim or 3, requires  # pixels: the number of channels


def _encoder_facts(use: EncoderUse, registry: Registry) -> EncoderSpec:
    offered = {component.name for component in registry.plugins.components("encoder")}
    if use.name not in registry.encoders and use.name in offered:
        encoder = registry.plugins.load("encoder", use.name)
        return EncoderSpec(dim=(encoder if hasattr(encoder, "dim") else encoder()).dim)
    try:
        return registry.encoder_spec(use.name)
    except NotFoundError as error:
        raise NotFoundError(f"{error}; or state its width: encoder.dim=D") from error


def _check_meaning(stored: StoredModel, spec: ModelSpec, *parts: str) -> None:
    """Raise WeightsError where overrides would give trained outputs another meaning."""
    trained = stored.spec_with()
    for part in parts:
        old, new = getattr(trained, part) or {}, getattr(spec, part) or {}
        for key in ("name", "classes"):
            if old.get(key) and new.get(key) != old[key]:
                raise WeightsError(
                    f"'{stored.name}' was trained with {part}.{key} {old[key]}, not {new.get(key)}"
                )


def _fill(model: SlideModel, stored: StoredModel, whose: str, new: Collection[str] = ()) -> None:
    """Copy the trained tensors in, strictly but for `new` ones; the model requires their features.

    Raises:
        WeightsError: made for other features than the entry states, or tensors that do not fit.
    """
    for field, (mine, theirs) in stored.fingerprint.differences(model.requires).items():
        raise WeightsError(
            f"the weights of {whose} were trained on features with {field} {mine}, the entry "
            f"states {theirs}"
        )
    own = {key: tensor for key, tensor in model.inference_state().items() if key not in new}
    found = {key: tensor for key, tensor in stored.tensors.items() if key not in new}
    disk.load_strict(own, found, whose)
    again = model.inference_state()
    copies = [key for key, tensor in own.items() if again[key].data_ptr() != tensor.data_ptr()]
    if copies:
        raise PluginError(
            f"{copies[0]} of {whose} is a copy in inference_state(), so weights cannot be loaded "
            "into it; return the module's own tensors, as state_dict() does"
        )
    stated = {**model.requires.stated(), **stored.fingerprint.stated()}
    model.requires = dataclasses.replace(stored.fingerprint, **stated)
