"""doctor: what works on this machine, and what to type where something does not."""

from __future__ import annotations

import json
import sys
from typing import Any

import click


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
        _print([vars(finding) for finding in findings])
    sys.exit(1 if any(f.needed and not f.works for f in findings) else 0)


def _print(rows: list[dict[str, Any]]) -> None:
    area = None
    for row in rows:
        if row["area"] != area:
            area = row["area"]
            click.echo(f"\n{area}" if area != rows[0]["area"] else area)
        mark = "ok" if row["works"] else ("BROKEN" if row["needed"] else "-")
        remedy = f" -> {row['remedy']}" if row["remedy"] else ""
        click.echo(f"  {mark:<7} {row['name']:<26} {row['detail']}{remedy}")
