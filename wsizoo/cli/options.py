"""Options that commands share, and what they make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wsizoo.slides.extract import Request

Command = Callable[..., Any]


ABOVE_0 = click.FloatRange(0, min_open=True)
PATCH_OPTIONS = (
    click.option(
        "--mpp",
        type=ABOVE_0,
        help="Microns per level-0 px, instead of what slides and manifests state.",
    ),
    click.option(
        "--patch-mpp", type=ABOVE_0, help="Microns per px of a patch [the encoder's own]."
    ),
    click.option(
        "--patch-size", type=click.IntRange(1), help="Edge of a patch in px [the encoder's own]."
    ),
    click.option(
        "--overlap",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        help="Share of an edge that neighbours share [0].",
    ),
    click.option(
        "--pad",
        is_flag=True,
        help="Take patches too that reach beyond the right and bottom edge, white there.",
    ),
    click.option(
        "--min-tissue",
        type=click.FloatRange(0, 1),
        help="Share of a patch that must be tissue [0.5; 0.1 where a slide has under 1 %].",
    ),
    click.option(
        "--mask",
        type=click.Path(path_type=Path),
        help="Tissue as GeoJSON (wsizoo tissue, QuPath), or a folder of <slide>.geojson.",
    ),
    click.option(
        "--max-unreadable",
        type=click.FloatRange(0, 1),
        default=0.1,
        show_default=True,
        help="Share of a slide's patches that may be damaged; more fail it.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=64,
        show_default=True,
        help="Patches at once.",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace feature files that are damaged or were made in another way.",
    ),
)


def with_options(
    options: Sequence[Callable[[Command], Command]],
) -> Callable[[Command], Command]:
    """Several options at once, in this order in the help."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


patch_options = with_options(PATCH_OPTIONS)


def out_option(help_text: str) -> Callable[[Command], Command]:
    """-o/--out, a folder."""
    return click.option(
        "-o", "--out", required=True, type=click.Path(path_type=Path), help=help_text
    )


model_option = click.option(
    "-m",
    "--model",
    required=True,
    help="Name, hf:owner/name@COMMIT, or the folder of a saved model or of a run.",
)
device_option = click.option(
    "--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One line of JSON a slide.")

weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Folder with the encoder's weights, laid out as on the Hub.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Of the encoder; auto: its own on a GPU, fp32 on a CPU.",
)
encoding_options = with_options(
    (
        click.option(
            "-e",
            "--encoder",
            default="handcrafted-he",
            show_default=True,
            help="See: wsizoo list --encoders",
        ),
        weights_option,
        precision_option,
    )
)
feature_options = with_options(
    (
        click.option("--encoder", help="That made the features of files which name none."),
        click.option(
            "--force",
            is_flag=True,
            help="Go on with features of another encoder than the model's; outputs say so.",
        ),
        weights_option,
        precision_option,
    )
)
scale_options = with_options(
    (
        click.option("--workers", type=click.IntRange(1), help="Processes, of one core each [1]."),
        click.option(
            "--threads", type=click.IntRange(1), help="That decode patches, a process [2, or 1]."
        ),
        click.option(
            "--shard", help="i/n: do the i-th of n parts only [that of a SLURM array task, or all]."
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="ray: one task a slide on a Ray cluster (RAY_ADDRESS, or one started here).",
        ),
    )
)


def request_of(cut: dict[str, Any]) -> Request:
    """How patches are to be cut, from the values of `patch_options`."""
    from wsizoo.slides.extract import Request

    return Request(
        mpp=cut["patch_mpp"],
        patch_size=cut["patch_size"],
        overlap=cut["overlap"],
        pad=cut["pad"],
        min_tissue=cut["min_tissue"],
        mask=cut["mask"],
        max_unreadable=cut["max_unreadable"],
        slide_mpp=cut["mpp"],
        batch_size=cut["batch_size"],
    )
