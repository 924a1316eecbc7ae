"""doctor: what works on this machine, and what to type where something does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
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
@click.option(
    "--slide",
    type=click.Path(path_type=Path),
    help="Plan this slide, or feature file, instead: its patches are counted.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def doctor_command(
    access: bool,
    model: str | None,
    patches: int,
    slide: Path | None,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Say which devices, readers, encoders, op backends, extras and plugins work here.

    Exit code 1 if something that the core needs is broken. With --plan: the most memory that a
    process takes with one slide, before it runs. MODEL may be a trained one's folder; KEY=VALUE
    override the model.

    \b
    Example:
      wsizoo doctor
      wsizoo doctor --plan pixel-mamba-6m --patches 300
      wsizoo doctor --plan pixel-mamba-6m --slide slide.svs
    """
    from wsizoo.doctor import diagnose

    if model is not None:
        _tell_plan(model, patches if slide is None else slide, overrides, as_json)
        return
    if overrides:
        raise click.UsageError(f"'{overrides[0]}' overrides no model: --plan MODEL {overrides[0]}")
    if slide is not None:
        raise click.UsageError(f"'{slide}' is planned for a model: --plan MODEL --slide {slide}")
    findings = diagnose(access=access)
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    sys.exit(1 if any(f.needed and not f.works for f in findings) else 0)


def _tell_plan(model: str, slide: int | Path, overrides: Sequence[str], as_json: bool) -> None:
    from wsizoo.doctor import plan, system_bytes

    planned = plan(model, slide, *overrides)
    if as_json:
        click.echo(json.dumps(vars(planned)))
        return
    free = system_bytes("meminfo", "MemAvailable")
    sizes = {"forward": planned.forward, "forward and backward": planned.training}
    sizes |= {} if free is None else {"available here": free}
    print_field(f"{'patches':<21} ", f"{planned.patches} of {planned.patch_size} px")
    for name, size in sizes.items():
        print_field(f"{name:<21} ", f"{size / 1e9:.2f} GB")
    click.echo(ASSUMED)


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
