"""What a plugin may tell wsizoo: data only, no work.

A plugin is a distribution with an entry point in the group `wsizoo` that names a light module (it
imports nothing heavy). The module states `wsizoo_api = 1` and holds `@hookimpl` functions of these
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pluggy

API_VERSION = 1
PROJECT = "wsizoo"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Kind = Literal["encoder", "selector", "aggregator", "head", "model"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Component:
    """One part that models are composed of.

    Args:
        kind: encoder, selector, aggregator, head, or model (a whole model).
        name: what registry entries and command lines call it.
        target: `"package.module:Class"`, imported on first use.
        summary: one line for `wsizoo list`.
        source: paper or URL.
    """

    kind: Kind
    name: str
    target: str
    summary: str
    source: str


@dataclass(frozen=True)
class OpBackend:
    """A faster way to run one op of `wsizoo.ops`.

    Args:
        op: name of the op, e.g. `"segment_softmax"`.
        name: name of the backend, e.g. `"triton"`.
        target: `"package.module:function"` with the reference's signature.
        why_not: `"package.module:function"` with the op's arguments, returning None (willing) or a
            reason; it reads shapes, dtypes and devices, never values. Called without arguments it
            says whether the backend can run on this machine at all.
        priority: among willing backends the highest wins.
    """

    op: str
    name: str
    target: str
    why_not: str
    priority: int = 0


@dataclass(frozen=True)
class WeightFormat:
    """How other people's code publishes the weights of models: read, and written back.

    Args:
        name: e.g. `"span-official"`.
        components: aggregators (or whole models) whose weights come in it.
        target: `"package.module:Class"`, a `wsizoo.WeightLayout`, imported on first use.
        summary, source: one line for `wsizoo list --parts weight-format`; whose code it is.
    """

    name: str
    components: tuple[str, ...]
    target: str
    summary: str
    source: str


@hookspec
def wsizoo_components() -> Sequence[Component]:  # type: ignore[empty-body]
    """Encoders, selectors, aggregators, heads and whole models of this plugin."""


@hookspec
def wsizoo_registry() -> Path:  # type: ignore[empty-body]
    """A folder with `registry.yaml` (models, encoders) and maybe `recipes/*.yaml`."""


@hookspec
def wsizoo_op_backends() -> Sequence[OpBackend]:  # type: ignore[empty-body]
    """Backends for ops of the core."""


@hookspec
def wsizoo_weight_formats() -> Sequence[WeightFormat]:  # type: ignore[empty-body]
    """Published layouts of weights that this plugin reads and writes."""
