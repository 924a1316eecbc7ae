"""load, build, adapt: three ways to a model, none of which can be mistaken for another."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch

from wsizoo import hub
from wsizoo import weights as disk
from wsizoo.errors import NotFoundError, NotPinnedError, SpecError, WeightsError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Encoder
from wsizoo.model import SlideModel
from wsizoo.pins import pinned
from wsizoo.plugins import suggest
from wsizoo.registry import Registry, default
from wsizoo.spec import EncoderSpec, EncoderUse, ModelSpec
from wsizoo.stored import CONFIG, StoredModel, read_stored

HUB_PREFIX = "hf:"


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
    stored = find_stored(str(name), registry)
    model = assemble(stored.name, stored.spec_with(overrides), registry, seed=0)
    try:
        disk.load_strict(model.inference_state(), stored.tensors, f"'{stored.name}'")
    except WeightsError as error:
        if not overrides:
            raise
        raise SpecError(
            f"load('{name}') cannot take {list(overrides)}: {error}. load keeps every trained "
            f"tensor; for a new head: wsizoo.adapt('{name}', ...), for random weights: wsizoo.build"
        ) from error
    return _as_trained(model, stored).to(device)


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
    stored = find_stored(str(name), registry)
    model = assemble(stored.name, stored.spec_with(overrides), registry, seed)
    body = model.inference_state(only=("selector", "aggregator", "whole"))
    own = getattr(model.aggregator, "classifier_tensors", ())
    new = {f"aggregator.{tensor}" for tensor in own}
    expected = {key: tensor for key, tensor in body.items() if key not in new}
    found = {
        key: tensor
        for key, tensor in stored.tensors.items()
        if not key.startswith("head.") and key not in new
    }
    disk.load_strict(expected, found, f"'{stored.name}' (without its head)")
    model.requires = stored.fingerprint
    return model


def find_stored(name: str, registry: Registry) -> StoredModel:
    """Trained weights by name, Hub address or folder, checked and read. Raises as `load`."""
    if name.startswith(HUB_PREFIX):
        return _from_hub(name)
    if "/" in name or "\\" in name or (Path(name) / CONFIG).is_file():
        return read_stored(Path(name))
    entry = registry.model(name)
    spec = registry.model_spec(entry.name)
    weights = pinned(entry.name, spec)
    if weights.package:
        return read_stored(_package_folder(entry.name, weights.package), weights.sha256)
    assert weights.repo and weights.revision
    path = hub.hub_file(weights.repo, weights.revision, weights.file, weights.sha256)
    tensors, metadata = disk.read_tensors(path)
    return StoredModel.of(entry.name, spec, tensors, metadata)


def load_encoder(name: str, registry: Registry | None = None) -> Encoder:
    """An encoder that runs, in eval mode.

    Raises:
        NotFoundError: not in the catalogue, its plugin not installed, or its network not available
            (features made elsewhere can still be read).
    """
    registry = registry or default()
    offered = {component.name for component in registry.plugins.components("encoder")}
    if name in offered and name not in registry.encoders:
        encoder: Encoder = registry.plugins.load("encoder", name)()
        return encoder.eval()
    facts = registry.encoder_spec(name)
    if facts.component is None:
        raise NotFoundError(
            f"The network of encoder '{name}' is not part of this wsizoo; features that another "
            f"tool made with it can be used. Encoders that run here: {', '.join(sorted(offered))}"
        )
    maker = registry.plugins.load("encoder", facts.component, facts.plugin)
    made = _call(maker, f"encoder '{name}'", dict(facts.params))
    assert isinstance(made, Encoder)
    return made.eval()


def assemble(name: str, spec: ModelSpec, registry: Registry, seed: int) -> SlideModel:
    """Make a model's parts from its checked entry, with seeded random weights, in eval mode."""
    in_dim, requires = _input(name, spec, registry)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
        return EncoderSpec(dim=encoder.dim)
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
    open_names = [n for n in parameters if n not in given]
    for param in params:
        if param in given or (param not in parameters and not accepts_any):
            raise SpecError(
                f"{whose} has no argument '{param}'. {suggest(param, open_names, 'It takes: ')}"
            )
    required = [n for n in open_names if parameters[n].default is inspect.Parameter.empty]
    lacking = [n for n in required if n not in params and "VAR" not in parameters[n].kind.name]
    if lacking:
        hint = "head.classes=[normal,tumour]" if lacking == ["classes"] else f"{lacking[0]}=VALUE"
        raise SpecError(f"{whose} needs {', '.join(lacking)}. Give it: {hint}")
    return maker(**given, **params)


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


def _as_trained(model: SlideModel, stored: StoredModel) -> SlideModel:
    model.requires = stored.fingerprint
    model.trained = True
    return model.eval()


def _from_hub(address: str) -> StoredModel:
    """`hf:owner/name@COMMIT`: config.json states the digest of the weights beside it."""
    repo, _, revision = address.removeprefix(HUB_PREFIX).partition("@")
    if not hub.COMMIT.fullmatch(revision):
        now = hub.hub_head(repo)
        raise NotPinnedError(
            f"'{address}' names no commit, and a branch can move. It is at {now} now; pin it: "
            f"hf:{repo}@{now}"
        )
    config = hub.hub_file(repo, revision, CONFIG)
    return StoredModel.from_config(
        config, lambda file, sha256: hub.hub_file(repo, revision, file, sha256)
    )


def _package_folder(name: str, package: str) -> Path:
    """`"module:folder"`: a folder inside an installed package."""
    module, _, folder = package.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"the weights of '{name}' lie in the package '{module}', which is not installed"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if not path.is_dir():
        raise WeightsError(
            f"the package '{module}' holds no folder '{folder}' with weights of '{name}'"
        )
    return path
