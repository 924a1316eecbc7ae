"""check, new: for authors of plugins."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command("check")
@click.argument("plugin")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def check_command(plugin: str, as_json: bool) -> None:
    """Hold PLUGIN (an installed distribution) to the conformance suite.

    Exit code 1 if a check fails.

    \b
    Example:
      wsizoo check wsizoo-plugin-example
    """
    from wsizoo.testing import check_plugin

    report = check_plugin(plugin)
    results = report.results
    failed = [result for result in results if not result.passed]
    if as_json:
        rows = [
            {"component": r.component, "check": r.check, "passed": r.passed, "reason": r.reason}
            for r in results
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        for result in failed:
            click.echo(f"FAILED  {result.component}  {result.check}: {result.reason}")
        click.echo(f"{len(results) - len(failed)} of {len(results)} checks passed")
    sys.exit(1 if failed else 0)


@click.group("new")
def new_command() -> None:
    """Start something from a working example.

    \b
    Example:
      wsizoo new plugin mymethod
    """


@new_command.command("plugin")
@click.argument("name")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=Path(), help="Parent folder [.]."
)
def plugin_command(name: str, out: Path) -> None:
    """Write ./wsizoo-plugin-NAME: a package with an aggregator NAME and a model NAME-uni.

    \b
    Example:
      wsizoo new plugin mymethod && pip install -e wsizoo-plugin-mymethod
    """
    from wsizoo.scaffold import new_plugin

    folder = new_plugin(name, out)
    click.echo(f"Wrote {folder}")
    click.echo(
        f"Next:\n  pip install -e {folder}\n  pytest {folder}\n"
        f"  wsizoo check wsizoo-plugin-{name}\n"
        f"  wsizoo show {name}-uni\nThen write your method in {folder}/src/*/model.py"
    )
