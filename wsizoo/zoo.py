"""load, build, adapt: three ways to a model, none of which can be mistaken for another."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from wsizoo import weights as disk
from wsizoo.errors import NotFoundError, PluginError, SpecError, WeightsError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Encoder
from wsizoo.model import SlideModel
from wsizoo.plugins import suggest
from wsizoo.registry import Registry, default
from wsizoo.spec import EncoderSpec, EncoderUse, ModelSpec
from wsizoo.stored import StoredModel, find_stored


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
    return assemble(name, registry.model_spec(name, overrides), registry, seed)


def load(
    name: str | Path,
    *overrides: str,
    device: torch.device | str = "cpu",
    registry: Registry | None = None,
) -> SlideModel:
    """A trained model, in eval mode, or an error; never random weights.

    Args:
        name: a registry entry; `"hf:owner/name@COMMIT"`; or a folder that `wsizoo.save` wrote.
        overrides: such as leave every tensor's shape as it is.

    Raises:
        NoWeightsError: nobody has released weights. NotPinnedError: no trusted commit and digest.
        DigestError, StrictnessError, GatedError, OfflineError, RepoNotFoundError: as named.
        SpecError: an override that changes a tensor's shape (see `adapt`).
    """
    registry = registry or default()
    stored = find_stored(name, registry)
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
    model = assemble(stored.name, stored.spec_with(overrides), registry, seed=0)
    _fill(model, stored, f"'{stored.name}'")
    model.trained = True
    return model


def adapt(
    name: str | Path, *overrides: str, seed: int = 0, registry: Registry | None = None
) -> SlideModel:
    """Trained selector and aggregator, loaded strictly, with a new head, in eval mode.

    Args:
        overrides: usually the new head's classes: `"head.classes=[a,b,c]"`.
        seed: of the new head's initialisation.

    Raises: as `load`.
    """
    registry = registry or default()
    stored = find_stored(name, registry)
    model = assemble(stored.name, stored.spec_with(overrides), registry, seed)
    own = getattr(model.aggregator, "classifier_tensors", ())
    new = {f"aggregator.{tensor}" for tensor in own}
    new |= {key for key in {*stored.tensors, *model.inference_state()} if key.startswith("head.")}
    _fill(model, stored, f"'{stored.name}' (without its head)", new)
    return model


def load_encoder(name: str, registry: Registry | None = None) -> Encoder:
    """An encoder that runs, in eval mode.

    Raises:
        NotFoundError: not in the catalogue, its plugin not installed, or its network not available
            (features made elsewhere can still be read).
    """
    registry = registry or default()
    offered = {component.name for component in registry.plugins.components("encoder")}
    if name in offered and name not in registry.encoders:
        maker, params = registry.plugins.load("encoder", name), {}
    else:
        facts = registry.encoder_spec(name)
        if facts.component is None:
            raise NotFoundError(
                f"The network of encoder '{name}' is not part of this wsizoo; features that "
                "another tool made with it can be used. Encoders that run here: "
                + ", ".join(sorted(offered))
            )
        maker = registry.plugins.load("encoder", facts.component, facts.plugin)
        params = dict(facts.params)
    made = _call(maker, f"encoder '{name}'", params)
    if not isinstance(made, Encoder):
        raise PluginError(f"encoder '{name}' is a {type(made).__name__}, expected a wsizoo.Encoder")
    return made.eval()


def assemble(name: str, spec: ModelSpec, registry: Registry, seed: int) -> SlideModel:
    """Make a model's parts from its checked entry, with seeded random weights, in eval mode."""
    in_dim, requires = _input(name, spec, registry)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        if spec.model is not None:
            whole = _part(name, "model", spec, registry, in_dim=in_dim)
            model = SlideModel(name, spec, in_dim, whole=whole, requires=requires)
            return model.eval()
        width, selector = in_dim, None
        if spec.selector is not None:
            selector = _part(name, "selector", spec, registry, in_dim=in_dim)
            width = selector.out_dim
        owned = _n_outputs(name, spec, registry)
        aggregator = _part(name, "aggregator", spec, registry, in_dim=width, **owned)
        head = None
        if spec.head is not None:
            _check_head_fits(name, spec, registry, aggregator)
            out_dim = None if aggregator.owns_classifier else aggregator.out_dim
            head = _part(name, "head", spec, registry, in_dim=out_dim)
        parts = {"aggregator": aggregator, "head": head, "selector": selector}
        return SlideModel(name, spec, in_dim, requires=requires, **parts).eval()


def _input(name: str, spec: ModelSpec, registry: Registry) -> tuple[int, Fingerprint]:
    """Width of the features a model reads, and what is known of how they must be made."""
    use = spec.encoder
    if use is None:
        raise SpecError(f"model '{name}' names no encoder. Give it one: encoder=NAME")
    dim = use.dim
    if dim is None:
        dim = _encoder_facts(use, registry).dim
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


def _part(name: str, part: str, spec: ModelSpec, registry: Registry, **given: Any) -> Any:
    """Import one part's class and call it with the entry's arguments."""
    params = dict(getattr(spec, part))
    component = str(params.pop("name"))
    known = registry.plugin_of(part, component) or spec.plugin
    maker = registry.plugins.load(part, component, known)  # type: ignore[arg-type]
    return _call(maker, f"{part} '{component}' of '{name}'", params, **given)


def _call(maker: Any, whose: str, params: dict[str, Any], **given: Any) -> Any:
    """Call a class; arguments it does not know, or lacks, are a SpecError that names them."""
    parameters = inspect.signature(maker).parameters
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    open_names = [n for n, p in parameters.items() if n not in given and "VAR" not in p.kind.name]
    for param in params:
        if param in given or (param not in open_names and not accepts_any):
            raise SpecError(
                f"{whose} has no argument '{param}'. {suggest(param, open_names, 'It takes: ')}"
            )
    empty = inspect.Parameter.empty
    lacking = [n for n in open_names if parameters[n].default is empty and n not in params]
    if lacking:
        part, value = whose.partition(" ")[0], "VALUE"
        if part == "encoder":
            raise SpecError(f"{whose} needs {', '.join(lacking)}: its entry states them as params")
        if lacking[0] == "classes":
            value = "[normal,tumour]"
        raise SpecError(f"{whose} needs {', '.join(lacking)}. Give it: {part}.{lacking[0]}={value}")
    try:
        return maker(**given, **params)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(f"{whose} cannot be made with {params}: {error}") from error


def _n_outputs(name: str, spec: ModelSpec, registry: Registry) -> dict[str, int]:
    """`n_outputs` for an aggregator that owns its classifier, read off the head."""
    assert spec.aggregator is not None
    component = spec.aggregator["name"]
    known = registry.plugin_of("aggregator", component) or spec.plugin
    if not registry.plugins.load("aggregator", component, known).owns_classifier:
        return {}
    if spec.head is None:
        raise SpecError(
            f"aggregator '{component}' of '{name}' owns its classifier and needs a head"
        )
    return {"n_outputs": _part(name, "head", spec, registry, in_dim=None).n_outputs}


def _check_head_fits(name: str, spec: ModelSpec, registry: Registry, aggregator: Any) -> None:
    assert spec.head is not None and spec.aggregator is not None
    head = registry.plugins.load("head", spec.head["name"], spec.plugin)
    if head.reads == "instances" and not (aggregator.gives_instances or aggregator.owns_classifier):
        raise SpecError(
            f"'{name}': head '{spec.head['name']}' reads one vector a patch, which aggregator "
            f"'{spec.aggregator['name']}' does not give"
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
