"""split make and split audit: who trains, validates and tests."""

from __future__ import annotations

import json
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsizoo.cli.options import with_options
from wsizoo.cli.text import print_field, print_table

if TYPE_CHECKING:
    from wsizoo.splits.audit import Audit
    from wsizoo.splits.parts import Split
    from wsizoo.splits.tables import SlideColumns
    from wsizoo.tables import Table

KINDS = ("holdout", "kfold", "file", "column", "extrapolation")
SHOWN = 10  # findings of a kind
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
column_options = with_options(
    (
        click.option("--slide", help="Column of the slides' names [slide, slide_id]."),
        click.option(
            "--patient",
            help="Column of patients [patient, patient_id, case_id, case, or TCGA barcodes].",
        ),
        click.option("--site", "site_column", help="Column of sites [site, or TCGA barcodes]."),
    )
)


def share(text: str) -> float:
    """`0.15` or `1/3`; click says what is wrong of a ValueError."""
    try:
        return float(Fraction(text))
    except ZeroDivisionError as error:
        raise ValueError(text) from error


@click.group("split")
def split_command() -> None:
    """Who trains, validates and tests: make it, and hold it to its table."""


@split_command.command("make")
@click.argument("table", type=FILE)
@click.option(
    "-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A csv."
)
@click.option("--overwrite", is_flag=True, help="Replace another split in OUT.")
@click.option("--kind", type=click.Choice(KINDS), default="holdout", show_default=True)
@click.option(
    "--fractions",
    type=share,
    nargs=3,
    help="Of patients that train, validate and test [0.7 0.15 0.15; extrapolation 0.6 0.2 0.2].",
)
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True)
@click.option(
    "--val-fraction",
    type=share,
    default="0.15",
    show_default=True,
    help="Of the patients that train in a fold, to validate.",
)
@click.option("--repeats", type=click.IntRange(1), default=1, help="With seeds of their own [1].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--label", help="Column to stratify by [label].")
@click.option(
    "--time",
    help="Column of survival times, to stratify by [time, where there is no column label].",
)
@click.option("--event", help="Column, 1: the event was seen [event].")
@click.option("--censorship", help="Column, 1: censored, in place of --event.")
@click.option(
    "--no-stratify",
    "stratify",
    flag_value=False,
    default=True,
    help="Draw patients whatever their label.",
)
@click.option(
    "--sites", type=click.Choice(["mix", "preserve"]), default="mix", help="preserve: none in two."
)
@click.option("--column", help="Of the table with parts or folds, for --kind column.")
@click.option("--file", type=FILE, help="A split of another tool, for --kind file.")
@click.option("--features", type=FOLDER, help="Whose files are counted, for --kind extrapolation.")
@column_options
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def make_command(
    table: Path,
    out: Path,
    overwrite: bool,
    label: str | None,
    slide: str | None,
    patient: str | None,
    site_column: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Split the slides of TABLE by patient, and write who is where.

    The same table, in whatever order, gives the same split for a seed.

    \b
    Examples:
      wsizoo split make slides.csv -o split.csv
      wsizoo split make slides.csv -o folds.csv --kind kfold --sites preserve
      wsizoo split make slides.csv -o split.csv --fractions 17/30 1/10 1/3
    """
    from wsizoo.splits.audit import audit_split
    from wsizoo.splits.files import check_same_split, read_assigned, write_split
    from wsizoo.splits.tables import read_columns

    asked |= _usual_survival(table, label, asked)
    survival = asked["event"] or asked["censorship"]
    labels = [label] if label else [survival] if survival else []
    content, columns = read_columns(table, slide, patient, site_column, labels)
    splits = _made(content, columns, asked)
    if asked["stratify"] and not columns.labels and asked["kind"] not in ("file", "column"):
        click.echo(
            f"Not stratified: '{table}' has no column label, nor time and event. Say which: "
            "--label COLUMN; or that it is meant: --no-stratify",
            err=True,
        )
    if not overwrite:
        check_same_split(out, splits, columns.slides, "--overwrite")
    write_split(out, splits, columns.slides, columns.patients, columns.sites)
    audit = audit_split(read_assigned(out), columns)
    if as_json:
        click.echo(json.dumps({"file": str(out), "digests": audit.digests, **_parts(audit)}))
    else:
        _print_parts(out, audit)


def _made(table: Table, columns: SlideColumns, asked: dict[str, Any]) -> list[Split]:
    from wsizoo.splits.contents import sizes_of
    from wsizoo.splits.making import make_splits
    from wsizoo.splits.tables import cells

    for kind, option in (("file", "file"), ("column", "column"), ("extrapolation", "features")):
        if (asked["kind"] == kind) != (asked[option] is not None):
            raise click.UsageError(f"--kind {kind} and --{option} go together")
    times, events = _survival(table, asked["time"], asked["event"], asked["censorship"])
    labels = None if times else next((cells(table, name) for name in columns.labels), None)
    features, column = asked["features"], asked["column"]
    if column is not None:
        table.require(column, "--column")
    same = ("kind", "file", "folds", "val_fraction", "repeats", "seed", "stratify")
    return make_splits(
        columns.slides,
        columns.patients,
        labels,
        times=times,
        events=events,
        sites=columns.sites,
        sizes=sizes_of(features, columns.slides) if features else None,
        column=[row[column] for row in table.rows] if column else None,
        fractions=asked["fractions"] or (),
        site=asked["sites"],
        **{name: asked[name] for name in same},
    )


def _usual_survival(table: Path, label: str | None, asked: dict[str, Any]) -> dict[str, Any]:
    """The columns of times that train takes too, where a table has no other label."""
    from wsizoo.tables import read_table

    columns = read_table(table).columns
    told = label or any(asked[name] for name in ("time", "event", "censorship"))
    usual = not told and "label" not in columns and {"time", "event"} <= set(columns)
    return {"time": "time", "event": "event"} if usual else {}


def _survival(
    table: Table, time: str | None, event: str | None, censorship: str | None
) -> tuple[list[float] | None, list[float] | None]:
    from wsizoo.splits.tables import numbers

    if (time is None) != (event is None and censorship is None) or (event and censorship):
        raise click.UsageError("--time goes with --event or with --censorship")
    if time is None:
        return None, None
    if event is not None:
        return numbers(table, time, "--time"), numbers(table, event, "--event")
    censored = numbers(table, str(censorship), "--censorship")
    return numbers(table, time, "--time"), [1 - one for one in censored]


@split_command.command("audit")
@click.argument("split", type=FILE, required=False)
@click.option("--table", required=True, type=FILE, help="A row a slide: slide, patient, label.")
@click.option("--column", help="Of the table, with parts or folds, in place of a file SPLIT.")
@click.option("--features", type=FOLDER, help="Feature files, to find slides that are the same.")
@click.option(
    "--near",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Cosine of mean features from which two slides in different parts are told; 1: none.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Column that agrees within a patient; several times; shares are of the first [label].",
)
@column_options
@click.option("--json", "as_json", is_flag=True, help="One line of JSON, with every finding.")
def audit_command(
    split: Path | None,
    table: Path,
    column: str | None,
    features: Path | None,
    near: float,
    labels: tuple[str, ...],
    slide: str | None,
    patient: str | None,
    site_column: str | None,
    as_json: bool,
) -> None:
    """Hold SPLIT to its table, and say what is wrong.

    Slides and patients in two parts, labels that disagree within a patient, slides that are the
    same, names that only one of the two has, parts of one class. Sites and classes of the parts are
    told. SPLIT is a file of wsizoo, CLAM, Patho-Bench, ACMIL or Patch-GCN. Exit code 1 if something
    was found.

    \b
    Examples:
      wsizoo split audit split.csv --table slides.csv
      wsizoo split audit splits_0.csv --table slides.csv --features features
      wsizoo split audit --table slides.csv --column fold
    """
    from wsizoo.splits.audit import audit_split
    from wsizoo.splits.files import read_assigned, split_rows
    from wsizoo.splits.parts import splits_of_column
    from wsizoo.splits.tables import read_columns

    if (split is None) == (column is None):
        raise click.UsageError(
            "the split is a file SPLIT, or --column of the table: one of the two"
        )
    content, columns = read_columns(table, slide, patient, site_column, labels)
    if split is not None:
        folds = read_assigned(split)
    else:
        content.require(str(column), "--column")
        values = [row[str(column)] for row in content.rows]
        found = splits_of_column(values, range(len(values)))
        folds = [split_rows(one, columns.slides) for one in found]
    contents = None
    if features is not None:
        from wsizoo.splits.contents import read_contents

        contents = read_contents(features, columns.slides, near)
    audit = audit_split(folds, columns, contents)
    if as_json:
        click.echo(json.dumps({"split": str(split or column), **audit.to_json()}))
    else:
        _print_parts(split or f"column {column}", audit)
        _print_findings(audit)
    sys.exit(0 if audit.clean else 1)


def _parts(audit: Audit) -> dict[str, Any]:
    return {name: audit.to_json()[name] for name in ("parts", "sources")}


def _print_parts(split: Path | str, audit: Audit) -> None:
    """The digests, and a line a part."""
    click.echo(f"{split}  patients: {audit.sources['patients']}  sites: {audit.sources['sites']}")
    for fold, digest in enumerate(audit.digests):
        print_field(f"  fold {fold}  ", f"sha256 {digest}")
    rows = []
    for part in audit.parts:
        shares = {name: count / part.slides for name, count in part.classes.items()}
        row = {"fold": part.fold, "part": part.part, "slides": part.slides}
        row |= {"patients": part.patients}
        if part.sites is not None:
            row |= {"sites": part.sites, "shared": part.shared_sites, "site bias": None, "p": None}
        if part.site_bias is not None:
            row |= {"site bias": f"{part.site_bias:.2f}", "p": f"{part.site_p:.2g}"}
        rows.append(row | {"classes": ", ".join(f"{k} {v:.1%}" for k, v in shares.items()) or None})
    print_table(rows)
    biased = [part for part in audit.parts if part.site_bias is not None]
    if biased and not any(part.shared_sites for part in biased):
        click.echo(
            "No site is in two parts, so each part is biased by site as far as can be (1.00): that "
            "is what keeping sites together asks for, and tests on sites that were not trained on."
        )


def _print_findings(audit: Audit) -> None:
    """A line a finding, the first of each kind; how many there are of the others."""
    counts: Counter[str] = Counter()
    for finding in audit.findings:
        counts[finding.kind] += 1
        if counts[finding.kind] <= SHOWN:
            fold = "" if finding.fold is None else f"fold {finding.fold}: "
            print_field(f"{finding.kind.upper():<22}", fold + finding.told)
    for kind, count in counts.items():
        if count > SHOWN:
            print_field(f"{kind.upper():<22}", f"{count - SHOWN} more; --json names all")
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    click.echo(f"Found: {found}" if counts else "Nothing was found", err=True)
