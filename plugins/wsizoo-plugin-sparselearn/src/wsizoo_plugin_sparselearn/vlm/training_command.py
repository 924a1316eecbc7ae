"""The command that trains a slide language model."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("conversations", type=click.Path(path_type=Path))
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Of the model.")
@click.option("--encoder", help="That made the features, where the files do not say it.")
@click.option("--format", help="Of the feature files, where they do not tell: pt, npy, ...")
def train(
    conversations: Path,
    features: Path,
    overrides: tuple[str, ...],
    out: Path,
    encoder: str | None,
    format: str | None,
) -> None:
    """Train on conversations about slides.

    CONVERSATIONS: a file of SlideInstruct, or any in LLaVA's layout (.json). FEATURES: a folder of
    feature files of any tool. OUT: the model; typed again after an interruption the command goes
    on. KEY=VALUE: stage=align (captions) or stage=instruct start=OUT_OF_ALIGN (questions), others
    as in the configs beside this file, and keys of the model: model.lm.folder=DIR.
    """
    from wsizoo.errors import DataError
    from wsizoo.formats.read import ReadAs
    from wsizoo_plugin_sparselearn.vlm import training
    from wsizoo_plugin_sparselearn.vlm.features import FeatureFolder
    from wsizoo_plugin_sparselearn.vlm.formats import facts_of, read_conversations
    from wsizoo_plugin_sparselearn.vlm.training_config import read_config

    config, of_model = read_config(overrides)
    folder = FeatureFolder(features, ReadAs(encoder=encoder, format=format))
    talks = read_conversations(conversations)
    for line in facts_of(conversations, talks):
        click.echo(line)
    named = dict.fromkeys(slide for each in talks for slide in each.slides)
    files = folder.find_all(named)
    if missing := sorted(set(named) - set(files)):
        raise DataError(
            f"{len(missing)} of {len(named)} slides of '{conversations}' have no features in "
            f"'{features}', first '{missing[0]}'. Extract them, or leave their conversations out"
        )
    training.train(conversations, lambda slide: folder.read(files[slide]), out, config, of_model)
