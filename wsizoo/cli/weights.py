"""verify, pin, push: weights that can be trusted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from wsizoo.errors import WsizooError


@click.command("verify")
@click.argument("names", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON each.")
def verify_command(names: tuple[str, ...], as_json: bool) -> None:
    """Verify NAMES: models (name, hf:owner/name@COMMIT, folder), feature files, folders of .h5.

    A model: digests, strict loading, and its golden bag replayed. A feature file of wsizoo:
    complete, and its content equal to its digest; of another tool, which has none: readable, a row
    of coordinates for each of features, and finite numbers. Exit code 1 if anything fails.

    \b
    Examples:
      wsizoo verify abmil-demo
      wsizoo verify features/*.h5
    """
    failed = False
    for name in [each for given in names for each in _features_in(given) or [given]]:
        try:
            found = _verify_one(name)
            line = {"name": name, "ok": True, **found}
        except WsizooError as error:
            failed = True
            line = {"name": name, "ok": False, "reason": f"{type(error).__name__}: {error}"}
        if as_json:
            click.echo(json.dumps(line))
        else:
            told = {k: "-" if v is None else v for k, v in line.items() if k not in ("name", "ok")}
            rest = ", ".join(f"{k} {v}" for k, v in told.items())
            click.echo(f"{'ok     ' if line['ok'] else 'FAILED '} {name}  {rest}")
    sys.exit(1 if failed else 0)


def _features_in(name: str) -> list[str]:
    """The feature files of a folder; none for anything else."""
    return sorted(str(file) for file in Path(name).glob("*.h5")) if Path(name).is_dir() else []


def _is_features(path: Path) -> bool:
    """Whether a name is that of a feature file; models are names, addresses and folders."""
    return path.suffix in (".h5", ".hdf5", ".pt", ".npy", ".zarr")


def _verify_one(name: str) -> dict[str, object]:
    if _is_features(Path(name)):
        from wsizoo.formats.inspection import check

        found = check(name)
        if found.is_embedding:
            made = {"model": found.model, "encoder": found.encoder}
            return {"format": found.format, "dim": found.dim, **made}
        return {"format": found.format, "patches": found.n, "dim": found.dim}
    from wsizoo.publish import verify

    outputs = verify(name).outputs
    return {"replayed": " ".join(sorted(outputs)), "largest deviation": max(outputs.values())}


@click.command("pin")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def pin_command(name: str, as_json: bool) -> None:
    """Download the weights of NAME (a model or an encoder) once; keep commit and sha256.

    Both are printed and kept in your lock file, and from then on insisted on.

    \b
    Example:
      wsizoo pin NAME
    """
    from wsizoo.pins import pin, pins_file
    from wsizoo.registry import default

    found = pin(name)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        click.echo(f"{key:<9} {value}")
    load = "load_encoder" if default().is_encoder(name) else "load"
    click.echo(f"Kept in {pins_file()}. Now: wsizoo.{load}('{name}')", err=True)


@click.command("push")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("repo")
@click.option("--public", is_flag=True, help="Make the repository public [private].")
@click.option("--message", default="Add model", show_default=True, help="Of the commit.")
@click.option("--untrained", is_flag=True, help="Publish random weights too.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def push_command(
    folder: Path, repo: str, public: bool, message: str, untrained: bool, as_json: bool
) -> None:
    """Publish FOLDER (of wsizoo.save) as REPO (owner/name) on the Hugging Face Hub.

    The model is verified first. Prints the pinned address that others load.

    \b
    Example:
      wsizoo push ./my-model me/my-model
    """
    from wsizoo.publish import push

    address = push(folder, repo, private=not public, message=message, untrained=untrained)
    click.echo(json.dumps({"address": address, "public": public}) if as_json else address)
