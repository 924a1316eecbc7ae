"""list, show, plugins: what is in the zoo. Only `show` of a part imports torch."""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import click

from wsizoo.catalogue import list_models, show, why_not_here
from wsizoo.cli.text import print_field, print_table
from wsizoo.hookspecs import KINDS, Kind
from wsizoo.plugins import Plugin
from wsizoo.registry import Registry, default

WEIGHTS: Final = "weight-format"  # what plugins offer beside parts of models


@click.command("list")
@click.argument("pattern", default="*")
@click.option(
    "--aggregator",
    is_flag=False,
    flag_value="",
    help="Only models with this aggregator; without a name: the installed aggregators.",
)
@click.option("--encoder", help="Only models that read this encoder's features.")
@click.option("--weights", is_flag=True, help="Only models with released weights.")
@click.option(
    "--commercial", is_flag=True, help="Only where model and encoder allow commercial use."
)
@click.option("--encoders", is_flag=True, help="The catalogue of encoders instead of models.")
@click.option(
    "--parts", type=click.Choice([*KINDS, WEIGHTS]), help="Installed parts of one kind instead."
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def list_command(
    pattern: str,
    aggregator: str | None,
    encoder: str | None,
    weights: bool,
    commercial: bool,
    encoders: bool,
    parts: Kind | Literal["weight-format"] | None,
    as_json: bool,
) -> None:
    """List models whose name matches PATTERN (default all).

    \b
    Examples:
      wsizoo list
      wsizoo list "abmil*" --weights
      wsizoo list --encoders
      wsizoo list --aggregator
    """
    registry = default()
    if aggregator == "":
        parts, aggregator = parts or "aggregator", None
    if parts:
        rows = _format_rows(registry) if parts == WEIGHTS else _part_rows(registry, parts)
    elif encoders:
        rows = _encoder_rows(registry, pattern)
    else:
        names = list_models(
            pattern,
            aggregator=aggregator,
            encoder=encoder,
            weights=True if weights else None,
            commercial=True if commercial else None,
        )
        rows = [_model_row(registry, name) for name in names]
    for found in registry.plugins.all:
        if found.reason and not found.reason.startswith("not in the allow-list"):
            click.echo(f"{found.distribution} is in quarantine; see: wsizoo plugins", err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    print_table([{k: v for k, v in row.items() if k != "plugin"} for row in rows])
    if not rows:
        click.echo(
            f"Nothing matches. Everything: wsizoo list ({len(registry.models)} models)", err=True
        )
    for i, (plugin, names) in enumerate(_missing(rows).items()):
        click.echo(f"{'' if i else chr(10)}pip install {plugin:<27} for {', '.join(names)}")


def _model_row(registry: Registry, name: str) -> dict[str, Any]:
    entry = registry.models[name]
    part: Kind = "aggregator" if entry.part("aggregator") else "model"
    offered = {component.name for component in registry.plugins.components(part)}
    return {
        "model": name,
        "weights": registry.has_weights(entry),
        "encoder": entry.part("encoder"),
        "aggregator": entry.part(part),
        "installed": entry.part(part) in offered,
        "plugin": entry.record.get("plugin"),
        "summary": entry.record.get("summary", ""),
    }


def _missing(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Models by the plugin that has to be installed for them."""
    missing: dict[str, list[str]] = {}
    for row in rows:
        if row.get("installed") is False and row["plugin"]:
            missing.setdefault(row["plugin"], []).append(row["model"])
    return missing


def _encoder_rows(registry: Registry, pattern: str) -> list[dict[str, Any]]:
    import fnmatch

    return [
        {
            "encoder": name,
            "dim": entry.record.get("dim"),
            "mpp": entry.record.get("mpp"),
            "patch": entry.record.get("patch_size"),
            "runs here": why_not_here(entry, registry) is None,
            "gated": bool(entry.record.get("gated")),
            "licence": entry.record.get("licence"),
        }
        for name, entry in sorted(registry.encoders.items())
        if fnmatch.fnmatch(name, pattern)
    ]


def _part_rows(registry: Registry, kind: Kind) -> list[dict[str, Any]]:
    plugins = registry.plugins
    return [
        {kind: c.name, "from": plugins.owner(c).distribution, "summary": c.summary}
        for c in plugins.components(kind)
    ]


def _format_rows(registry: Registry) -> list[dict[str, Any]]:
    return [
        {
            WEIGHTS: offer.name,
            "of": ", ".join(offer.components),
            "from": plugin.distribution,
            "summary": offer.summary,
        }
        for plugin in registry.plugins.working()
        for offer in plugin.formats
    ]


@click.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def show_command(name: str, as_json: bool) -> None:
    """Show everything that is known of NAME: a model, an encoder, or a part such as an aggregator.

    Of a part: its options with their defaults, and what they mean.

    \b
    Examples:
      wsizoo show abmil-uni
      wsizoo show uni
      wsizoo show abmil
    """
    facts = show(name)
    if as_json:
        click.echo(json.dumps(facts, indent=2, default=str))
        return
    if "options" in facts:
        _tell_of_part(facts)
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        if value not in (None, "", [], {}):
            print_field(f"{key:<{width}}  ", _flat(value))
    click.echo("")
    if facts.get("kind") == "encoder":
        _tell_how_to_load(facts)
        return
    name = facts["name"]
    if not facts["installed"]:
        click.echo(f"Not installed: pip install {facts['plugin']}")
    if facts["weights_state"] == "released":
        click.echo(f"Load it:   wsizoo.load('{name}')")
    elif facts["weights_state"] == "not pinned":
        click.echo(f"Pin it:    wsizoo pin {name}")
    click.echo(f"Build it:  {facts['build']} (random weights)")
    part = facts.get("aggregator") or facts.get("model")
    if part and facts["installed"]:
        click.echo(f"Options:   wsizoo show {part['name']}")


def _tell_of_part(facts: dict[str, Any]) -> None:
    """The options of a part, one a line as they are typed, and its docstring."""
    for key in ("kind", "from", "summary", "source", "models"):
        if facts[key]:
            print_field(f"{key:<8}  ", _flat(facts[key]))
    click.echo("\nOptions, with their defaults:" if facts["options"] else "\nNo options.")
    for name, value in facts["options"].items():
        told = json.dumps(value, default=str) if not isinstance(value, str) else value
        click.echo(f"  {facts['kind']}.{name}={told}")
    click.echo(f"\n{facts['description']}")


def _tell_how_to_load(facts: dict[str, Any]) -> None:
    """What to type for an encoder."""
    name = facts["name"]
    if not facts["runs_here"]:
        click.echo(f"It does not run here: {facts['why_not']}. Features of it are read.")
        return
    if facts["gated"]:
        click.echo(f"Ask for access: https://huggingface.co/{facts['repo']}, then: hf auth login")
    if facts["weights_state"] == "not pinned":
        click.echo(f"Pin it:    wsizoo pin {name}")
    if facts["weights_state"] == "no repo":
        click.echo(f"Load it:   wsizoo.load_encoder('{name}', weights=FOLDER)")
    else:
        click.echo(f"Load it:   wsizoo.load_encoder('{name}')")


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def plugins_command(as_json: bool) -> None:
    """Installed plugins, and those in quarantine with the reason.

    WSIZOO_PLUGINS=a,b lets only these in; empty means none.

    \b
    Example:
      wsizoo plugins
    """
    found = default().plugins.all
    rows = [_plugin_row(plugin) for plugin in found]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    print_table([{k: v for k, v in row.items() if k != "reason"} for row in rows])
    for plugin in found:
        if plugin.reason:
            click.echo(f"\n{plugin.distribution} is in quarantine: {plugin.reason}")
        if plugin.imports_torch:
            click.echo(
                f"\n{plugin.distribution} imports torch in its hooks: listing is slow for it"
            )


def _plugin_row(plugin: Plugin) -> dict[str, Any]:
    names = [c.name for c in plugin.components] + [weights.name for weights in plugin.formats]
    return {
        "plugin": plugin.distribution,
        "version": plugin.version,
        "state": "works" if plugin.works else "quarantine",
        "offers": ", ".join(names) or "-",
        "reason": plugin.reason,
    }


def _flat(value: Any) -> str:
    """A field's value on one line."""
    if isinstance(value, dict):
        known = {k: v for k, v in value.items() if v not in (None, "", [], {})}
        return ", ".join(f"{k}={_inner(v)}" for k, v in known.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_inner, value)) if isinstance(value, list) else str(value)


def _inner(value: Any) -> str:
    return f"[{_flat(value)}]" if isinstance(value, list | dict) else _flat(value)
