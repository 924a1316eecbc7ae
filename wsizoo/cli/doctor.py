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


@click.command("doctor")
@click.option(
    "--access", is_flag=True, help="Also ask the Hub whether gated encoders are granted to you."
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def doctor_command(access: bool, as_json: bool) -> None:
    """Say which devices, readers, encoders, op backends, extras and plugins work here.

    Exit code 1 if something that the core needs is broken.

    \b
    Example:
      wsizoo doctor
    """
    from wsizoo.doctor import diagnose

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
