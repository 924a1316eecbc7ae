"""Encoders by name: with their weights, or an error; random ones only where that is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from wsizoo import hub
from wsizoo.encoder_spec import EncoderSpec, check_runs
from wsizoo.encoders.checkpoints import find_weights, read_checkpoint
from wsizoo.encoders.networks import NetworkEncoder
from wsizoo.errors import NotFoundError, PluginError, SpecError, WeightsError
from wsizoo.files import sha256_of
from wsizoo.interfaces import Encoder
from wsizoo.pins import find_pin, pinned_encoder
from wsizoo.registry import Registry, default
from wsizoo.targets import call


def load_encoder(
    name: str, weights: Path | str | None = None, registry: Registry | None = None
) -> Encoder:
    """An encoder that runs, with its weights, in eval mode on the CPU; never with random ones.

    Args:
        weights: a folder laid out as the encoder's repository on the Hub, or the file in it; None:
            the pinned file from the Hub. Its digest becomes the fingerprint's `weights`.

    Raises:
        NotFoundError: not in the catalogue, its plugin or library not installed, or its network
            does not run here (features made elsewhere can still be read).
        NotPinnedError, NoWeightsError, GatedError, OfflineError, RepoNotFoundError, DigestError:
            as named. WeightsError: not read without running code. StrictnessError: other tensors.
    """
    registry = registry or default()
    maker, facts = _find(name, registry)
    if not reads_weights(maker):
        if weights is not None:
            raise WeightsError(f"encoder '{name}' reads no weights, so '{weights}' is of no use")
        return _made(maker, name, facts).eval()
    encoder = _network(maker, name, facts)
    if weights is not None:
        path = find_weights(name, facts, weights)
        digest = sha256_of(path)
        known = find_pin(name, facts)
        encoder.revision = known.revision if known and known.sha256 == digest else None
    else:
        pin = pinned_encoder(name, facts)
        assert pin.repo and pin.revision and pin.sha256
        path = hub.hub_file(pin.repo, pin.revision, pin.file, pin.sha256)
        digest, encoder.revision = pin.sha256, pin.revision
    encoder.load(read_checkpoint(path, facts.keys))
    encoder.weights = digest
    return encoder.eval()


def build_encoder(
    name: str, seed: int = 0, registry: Registry | None = None, **reduced: Any
) -> NetworkEncoder:
    """An encoder's network with random weights, for tests and timings; its features mean nothing.

    It is named `random-NAME`, revision "random", so that no model takes its features for others.

    Args:
        reduced: arguments of its architecture to change, e.g. `depth=1`.

    Raises:
        NotFoundError: as `load_encoder`. SpecError: no network, or an argument it does not take.
    """
    registry = registry or default()
    maker, facts = _find(name, registry)
    if not reads_weights(maker):
        raise SpecError(f"encoder '{name}' is not random: wsizoo.load_encoder('{name}')")
    arguments = {**facts.params.get("arguments", {}), **reduced}
    params = {**facts.params, **({"arguments": arguments} if arguments else {})}
    encoder = _network(maker, name, dataclasses.replace(facts, params=params))
    encoder.draw(seed)
    encoder.name, encoder.revision = f"random-{name}", "random"
    encoder.eval()
    return encoder


def reads_weights(maker: Any) -> bool:
    """True of a class whose network is filled from a file of weights."""
    return isinstance(maker, type) and issubclass(maker, NetworkEncoder)


def why_not(name: str, registry: Registry | None = None) -> str | None:
    """Why `load_encoder` would refuse, or None; nothing is downloaded and no network is built.

    Raises:
        PluginError, SpecError: what is there is broken.
    """
    registry = registry or default()
    try:
        maker, facts = _find(name, registry)
        if reads_weights(maker):
            _network(maker, name, facts)
            pinned_encoder(name, facts)
        else:
            _made(maker, name, facts)
    except (NotFoundError, WeightsError) as error:
        return str(error)
    return None


def _find(name: str, registry: Registry) -> tuple[Any, EncoderSpec]:
    """The class of an encoder, and its catalogue entry (an empty one if only a plugin names it)."""
    offered = {component.name for component in registry.plugins.components("encoder")}
    if name in offered and name not in registry.encoders:
        maker = registry.plugins.load("encoder", name)
        if not reads_weights(maker):
            return maker, EncoderSpec()
    facts = registry.encoder_spec(name)
    check_runs(name, facts)
    assert facts.component
    return registry.plugins.load("encoder", facts.component, facts.plugin), facts


def _network(maker: Any, name: str, facts: EncoderSpec) -> NetworkEncoder:
    made = call(maker, f"encoder '{name}'", dict(facts.params), name=name, facts=facts)
    assert isinstance(made, NetworkEncoder)
    return made


def _made(maker: Any, name: str, facts: EncoderSpec) -> Encoder:
    made = call(maker, f"encoder '{name}'", dict(facts.params))
    if not isinstance(made, Encoder):
        raise PluginError(f"encoder '{name}' is a {type(made).__name__}, expected a wsizoo.Encoder")
    return made
