"""convert weights, verify, pin, push: weights that can be trusted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsizoo.cli.options import out_option
from wsizoo.errors import WsizooError

if TYPE_CHECKING:
    from wsizoo.publish import Verified


@click.command("convert weights")
@click.argument("source")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--format", "format_name", required=True, help="See: wsizoo list --parts weight-format"
)
@click.option(
    "-m", "--model", help="Model of the zoo whose weights a file holds; overrides fit it."
)
@out_option("Folder for a model; or file (.safetensors, .pt), without --model.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def convert_weights_command(
    source: str,
    overrides: tuple[str, ...],
    format_name: str,
    model: str | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Read SOURCE, weights that other people's code published, into a model; or write them.

    With --model, SOURCE is a file: .safetensors, or .pt, .pth, .bin of tensors alone (a pickle that
    could run code is refused). Every tensor must fit. The model is saved as wsizoo.save does, with
    a golden bag that was replayed.

    Without, SOURCE is a model (a folder, hf:owner/name@COMMIT or a name), written as that code
    would publish it.

    \b
    Examples:
      wsizoo convert weights a.pt --format span-official -m span-mil-uni -o a
      wsizoo convert weights a.pt --format F -m NAME "head.classes=[x,y]" -o a
      wsizoo convert weights a --format span-official -o a.safetensors
    """
    if model:
        from wsizoo.conversion import convert_weights

        found = convert_weights(
            source, format_name, model, *overrides, out=out, overwrite=overwrite
        )
        told = {"model": found.name, **_replayed(found)}
    elif Path(source).is_file():
        raise click.UsageError("which model are these weights of? --model NAME, see: wsizoo list")
    else:
        from wsizoo.conversion import write_weights
        from wsizoo.zoo import load

        loaded = load(source, *overrides)
        write_weights(loaded, out, format_name, overwrite=overwrite)
        told = {"model": loaded.name}
    told = {"written": str(out), "format": format_name, **told}
    line = ", ".join(f"{key} {value}" for key, value in told.items())
    click.echo(json.dumps(told) if as_json else line)


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

    return _replayed(verify(name))


def _replayed(found: Verified) -> dict[str, object]:
    outputs = found.outputs
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
@click.option("--name", help="Of the model, in its files and on its card [as it was saved].")
@click.option(
    "--licence",
    "--license",
    help="Of its weights, an SPDX name such as CC-BY-NC-4.0 [as saved; of a run: unknown].",
)
@click.option("--public", is_flag=True, help="Make the repository public [private].")
@click.option("--message", default="Add model", show_default=True, help="Of the commit.")
@click.option("--untrained", is_flag=True, help="Publish random weights too.")
@click.option("--dry-run", is_flag=True, help="Verify, print the card and publish nothing.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def push_command(
    folder: Path,
    repo: str,
    name: str | None,
    licence: str | None,
    public: bool,
    message: str,
    untrained: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish FOLDER as REPO (owner/name) on the Hugging Face Hub.

    FOLDER is one of wsizoo.save, or a run of wsizoo train, of which the model is published: its
    card tells the data, the metrics with their intervals, and the limits.

    The model is verified first. Prints the pinned address that others load.

    \b
    Examples:
      wsizoo push ./my-model me/my-model
      wsizoo push RUN me/my-model --licence CC-BY-4.0 --dry-run
    """
    from wsizoo.publish import as_published, push

    if dry_run:
        with as_published(folder, name=name, licence=licence, untrained=untrained) as prepared:
            files = {file.name: file.stat().st_size for file in sorted(prepared.iterdir())}
            card = (prepared / "README.md").read_text(encoding="utf-8")
        if as_json:
            click.echo(json.dumps({"repo": repo, "public": public, "files": files, "card": card}))
            return
        click.echo(card)
        click.echo(f"Not published. To {repo} would go:", err=True)
        for file, size in files.items():
            click.echo(f"  {file}, {size} bytes", err=True)
        return
    address = push(
        folder,
        repo,
        name=name,
        licence=licence,
        private=not public,
        message=message,
        untrained=untrained,
    )
    click.echo(json.dumps({"address": address, "public": public}) if as_json else address)
