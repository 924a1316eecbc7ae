"""The command line of slide language models.

python -m wsizoo_plugin_sparselearn.vlm train CONVERSATIONS FEATURES -o OUT stage=align
python -m wsizoo_plugin_sparselearn.vlm evaluate MODEL QUESTIONS FEATURES -o OUT
python -m wsizoo_plugin_sparselearn.vlm score QUESTIONS OUTPUTS -o OUT
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from wsizoo.cli import run
from wsizoo_plugin_sparselearn.vlm.training_command import train

SCORINGS = ("mean", "sum", "per-character", "pmi")  # those of `choices` that score texts


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Slides before a language model: questions and answers."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


main.add_command(train)


@main.command()
@click.argument("model")
@click.argument("questions", type=click.Path(path_type=Path))
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder.")
@click.option("--encoder", help="That made the features, where the files do not say it.")
@click.option("--format", help="Of the feature files, where they do not tell: pt, npy, ...")
@click.option("--available", is_flag=True, help="Leave out questions about missing slides.")
@click.option("--controls/--no-controls", default=True, help="No slide, and another slide, too.")
@click.option("--max-new-tokens", default=500, show_default=True, help="Of a generated answer.")
@click.option(
    "--scoring",
    type=click.Choice(SCORINGS),
    default="mean",
    show_default=True,
    help="Of options that are not listed.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--force", is_flag=True, help="Take features of another encoder all the same.")
@click.option("--seed", default=0, show_default=True, help="Of other slides, and of intervals.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def evaluate(
    model: str, questions: Path, features: Path, overrides: tuple[str, ...], out: Path, **told: Any
) -> None:
    """Put the questions of a file to a model, and compare.

    QUESTIONS: a file of SlideBench-VQA (.csv), WSI-VQA, WSI-Bench or Quilt-VQA (.json). FEATURES: a
    folder of feature files of any tool. OUT gets report.md, report.json, table.csv, answers.csv;
    the same command goes on after an interruption. KEY=VALUE: of MODEL, model.lm.folder=DIR.
    """
    import wsizoo
    from wsizoo.cli.progress import bar
    from wsizoo.formats.read import ReadAs
    from wsizoo_plugin_sparselearn.vlm import evaluation
    from wsizoo_plugin_sparselearn.vlm.answering import ModelAnswers
    from wsizoo_plugin_sparselearn.vlm.features import FeatureFolder
    from wsizoo_plugin_sparselearn.vlm.formats import question_file
    from wsizoo_plugin_sparselearn.vlm.reporting import write_report

    file = question_file(questions)
    folder = FeatureFolder(features, ReadAs(encoder=told["encoder"], format=told["format"]))
    loaded = wsizoo.load(model, *overrides, device=told["device"])
    answers = ModelAnswers(loaded, told["scoring"], told["max_new_tokens"], told["force"])
    settings = {"scoring": told["scoring"], "max_new_tokens": told["max_new_tokens"]}
    with bar(told["quiet"]) as tick:
        found = evaluation.evaluate(
            answers,
            file,
            folder,
            out,
            controls=told["controls"],
            available=told["available"],
            settings=settings,
            seed=told["seed"],
            tick=tick,
        )
    click.echo(write_report(found, out))


@main.command()
@click.argument("questions", type=click.Path(path_type=Path))
@click.argument("outputs", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder.")
@click.option("--seed", default=0, show_default=True, help="Of intervals.")
def score(questions: Path, outputs: Path, out: Path, seed: int) -> None:
    """Compare what another model said: a .csv with ID and Output, or .jsonl with question_id, text.

    The letters' likelihood and the controls are not to be had from outputs alone.
    """
    from wsizoo_plugin_sparselearn.vlm.evaluation import measured
    from wsizoo_plugin_sparselearn.vlm.formats import question_file
    from wsizoo_plugin_sparselearn.vlm.outputs import read_outputs
    from wsizoo_plugin_sparselearn.vlm.reporting import write_report

    file = question_file(questions)
    records = read_outputs(outputs, file.questions)
    click.echo(write_report(measured(file, records, outputs.name, seed=seed), out))


if __name__ == "__main__":
    run(main, "python -m wsizoo_plugin_sparselearn.vlm")
