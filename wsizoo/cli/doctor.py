"""doctor: what works on this machine, and what to type where something does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from wsizoo.cli.text import print_field

if TYPE_CHECKING:
    from wsizoo.doctor import Finding


ASSUMED = """\
On a CPU, one slide at a time, float32, with the libraries and the weights; backward with gradients
and AdamW."""


@click.command("doctor")
@click.option(
    "--access", is_flag=True, help="Also ask the Hub whether gated encoders are granted to you."
)
@click.option("--plan", "model", metavar="MODEL", help="Say what memory a slide takes instead.")
@click.option("--patches", type=int, default=300, show_default=True, help="Of the planned slide.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def doctor_command(
    access: bool, model: str | None, patches: int, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Say which devices, readers, encoders, op backends, extras and plugins work here.

    Exit code 1 if something that the core needs is broken. With --plan: the most memory that a
    process takes with one slide, before it runs. MODEL may be a trained one's folder; KEY=VALUE
    override the model.

    \b
    Example:
      wsizoo doctor
      wsizoo doctor --plan pixel-mamba-6m --patches 300
    """
    from wsizoo.doctor import diagnose, plan, system_bytes

    if model is not None:
        names = ("forward", "forward and backward")
        told = dict(zip(names, plan(model, patches, *overrides), strict=True))
        if as_json:
            click.echo(json.dumps(told))
        for name, size in told.items() if not as_json else ():
            print_field(f"{name:<21} ", f"{size / 1e9:.2f} GB")
        free = system_bytes("meminfo", "MemAvailable")
        if not as_json and free is not None:
            print_field(f"{'available here':<21} ", f"{free / 1e9:.2f} GB")
        if not as_json:
            click.echo(ASSUMED)
        return
    if overrides:
        raise click.UsageError(f"'{overrides[0]}' overrides no model: --plan MODEL {overrides[0]}")
    findings = diagnose(access=access)
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    sys.exit(1 if any(f.needed and not f.works for f in findings) else 0)


def _print(findings: Sequence[Finding]) -> None:
    area = None
    for finding in findings:
        if finding.area != area:
            click.echo(finding.area if area is None else f"\n{finding.area}")
            area = finding.area
        mark = "ok" if finding.works else "BROKEN" if finding.needed else "-"
        print_field(f"  {mark:<7} {finding.name:<26} ", finding.detail)
        if finding.remedy:
            click.echo(f"{'':<10}-> {finding.remedy}")
