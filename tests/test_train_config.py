"""wsizoo.train.config: what a run is, from files, recipes and texts, and what is refused."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from wsizoo.augment import CoordinateAugmentation
from wsizoo.errors import NotFoundError, SpecError
from wsizoo.train.config import (
    AugmentConfig,
    OptimiserConfig,
    RunConfig,
    TrainConfig,
    config_digest,
    load_config,
    to_yaml,
)
from wsizoo.train.config_content import merge, read_content

LEAST: dict[str, Any] = {"model": "abmil-uni", "data": {"table": "/t.csv"}}


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_file_needs_a_model_and_a_table_and_all_else_has_a_default(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "model: abmil-uni\ndata: {table: t.csv}\n"))
    assert config.model == "abmil-uni"
    assert config.data.table == str(tmp_path / "t.csv")
    assert (config.optimiser, config.train) == (OptimiserConfig(), TrainConfig())
    assert (config.augment, config.seeds) == (None, [0])


def test_overrides_lie_over_the_file_and_their_lists_and_nulls_replace(tmp_path: Path) -> None:
    file = written(tmp_path, "model: m\ndata: {table: t.csv}\naugment: {mirror: 0.5}\nseeds: [4]\n")
    assert load_config(file).augment == AugmentConfig(mirror=0.5)
    texts = ["optimiser.lr=1e-3", "seeds=[0, 1]", "augment=null", "data.classes=[no, 0.10]"]
    config = load_config(file, [*texts, "train.clip=5"])
    assert config.optimiser.lr == 1e-3
    assert config.train.clip == 5.0
    assert (config.seeds, config.augment, config.data.classes) == ([0, 1], None, ["no", "0.10"])
    assert load_config(file, ["augment=null", "augment.drop=0.1"]).augment is not None


def test_paths_are_of_the_files_folder_and_those_of_overrides_of_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "model: m\ndata: {table: t.csv, features: ../f, instances: /abs}\nsplit: {file: s.csv}\n"
    file = written(tmp_path / "inside", text)
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("inside/run.yaml"), ["data.features=mine"])
    assert config.data.table == str(file.parent / "t.csv")
    assert config.split.file == str(file.parent / "s.csv")
    assert config.data.instances == "/abs"
    assert config.data.features == str(tmp_path / "mine")


def test_a_recipe_lies_under_the_file_and_may_have_one_itself(tmp_path: Path) -> None:
    written(tmp_path, "optimiser: {lr: 0.1, weight_decay: 0.5}\ntrain: {epochs: 3}\n", "a.yaml")
    written(tmp_path, "recipe: a.yaml\noptimiser: {lr: 0.2}\nmodel: m\n", "b.yaml")
    file = written(tmp_path, "recipe: b.yaml\ndata: {table: t.csv}\ntrain: {clip: 1}\n")
    config = load_config(file, ["train.epochs=4"])
    assert (config.model, config.optimiser.lr, config.optimiser.weight_decay) == ("m", 0.2, 0.5)
    assert (config.train.epochs, config.train.clip) == (4, 1.0)
    assert load_config(file, ["recipe=span-classification"]).train.patience == 10


def test_overrides_of_recipe_file_and_command_line_add_up(tmp_path: Path) -> None:
    """Those of a file replaced the recipe's, so that a head of it was lost without a word."""
    written(tmp_path, "overrides: [head=regression, aggregator.dim=4]\nmodel: m\n", "a.yaml")
    written(tmp_path, "recipe: a.yaml\noverrides: [aggregator.dropout=0.5]\n", "b.yaml")
    text = "recipe: b.yaml\ndata: {table: t.csv}\noverrides: [aggregator.dim=5]\n"
    own = ["head=regression", "aggregator.dim=4", "aggregator.dropout=0.5", "aggregator.dim=5"]
    assert load_config(written(tmp_path, text)).overrides == own
    typed = ["overrides=[aggregator.dim=4]", "overrides=[encoder=uni]"]
    again = [own[0], *own[2:], "aggregator.dim=4", "encoder=uni"]  # at its last place
    assert load_config(tmp_path / "run.yaml", typed).overrides == again
    plain = written(tmp_path, "recipe: b.yaml\ndata: {table: t.csv}\n", "plain.yaml")
    assert load_config(plain).overrides == own[:3]
    head = load_config({"recipe": "baseline-regression", "data": {"table": "t"}}, typed[1:])
    assert head.overrides == ["head=regression", "encoder=uni"]


def test_a_file_that_states_every_key_needs_its_recipe_no_more(tmp_path: Path) -> None:
    recipe = written(tmp_path, "overrides: [head=regression]\ntrain: {epochs: 3}\n", "a.yaml")
    file = written(tmp_path, "recipe: a.yaml\nmodel: m\ndata: {table: t.csv}\n")
    config = dataclasses.replace(load_config(file), overrides=["aggregator=mean"])
    whole = written(tmp_path, to_yaml(config), "whole.yaml")
    assert load_config(whole) == config
    recipe.unlink()
    assert load_config(whole, ["train.epochs=4"]).train.epochs == 4
    less = written(tmp_path, to_yaml(config).replace("  epochs: 3\n", ""), "less.yaml")
    with pytest.raises(NotFoundError, match=r"No recipe at '.*a.yaml'"):
        load_config(less)


def test_a_recipe_that_starts_from_itself_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "recipe: b.yaml\n", "a.yaml")
    written(tmp_path, "recipe: a.yaml\n", "b.yaml")
    with pytest.raises(SpecError, match=r"the recipe '.*b.yaml' starts from itself"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("optimizer.lr=1", "unknown field 'optimizer'. Did you mean 'optimiser'"),
        ("optimiser.lrr=1", r"unknown field 'optimiser.lrr'. Did you mean 'lr'"),
        ("optimiser.lr=fast", "optimiser.lr is 'fast', expected a number"),
        ("train.epochs=abc", "train.epochs is 'abc', expected a whole number"),
        ("epochs=3", r"unknown field 'epochs'. Did you mean 'train.epochs'\?"),
        ("metric=auc", r"unknown field 'metric'. Did you mean 'selection.metric'\?"),
        ("name=sgd", "unknown field 'name'. Fields: "),
        ("train.epochs=1.5", "train.epochs is 1.5, expected a whole number"),
        ("train.epochs=0", "train.epochs is 0, expected 1 or more"),
        ("train.label_smoothing=2", "train.label_smoothing is 2.0, expected 0 to 1"),
        ("optimiser.lr=.nan", "optimiser.lr is nan, expected 0 or more"),
        ("split.kind=holdot", "split.kind is 'holdot'. Did you mean 'holdout'"),
        ("train.precision=half", "train.precision is 'half'. Expected: 16-mixed, 32-true"),
        ("optimiser=3", r"optimiser is 3, expected keys, such as \{lr: 1e-4\}"),
        ("train=null", r"train is None, expected keys, such as \{epochs: 20\}"),
        ("seeds=3", r"seeds is 3, expected a list: seeds=\[3\]"),
        ("seeds=[0, 1, 0]", r"seeds is \[0, 1, 0\], expected each once"),
        ("seeds=[a]", r"seeds\[0\] is 'a', expected a whole number"),
        ("model=null", "model is null, expected text"),
        ("lr", "cannot read the override 'lr', expected KEY=VALUE"),
        (
            "seeds=[0",
            r"the override 'seeds=\[0' as YAML \([^\n]*\)\. Is a bracket, a brace or a quote",
        ),
        (
            "overrides=[encoder={name: x, dim: 208}]",
            r"""of a list into quotes: 'overrides=\["encoder={name: x, dim: 208}"\]'$""",
        ),
        (
            "overrides=[ encoder={name: x, dim: 3}, head.classes=[a,b] ]",
            r"""quotes: 'overrides=\["encoder={name: x, dim: 3}", "head.classes=\[a,b\]"\]'$""",
        ),
        ("model=${oc.env:HOME}", r"holds '\$\{': a config is data"),
    ],
)
def test_what_is_wrong_is_named_with_its_key_and_file(
    text: str, match: str, tmp_path: Path
) -> None:
    file = written(tmp_path, "model: m\ndata: {table: t.csv}\n")
    with pytest.raises(SpecError, match=match) as caught:
        load_config(file, [text])
    assert str(file) in str(caught.value)


def test_a_file_that_is_none_or_holds_no_keys_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"No config at '.*none.yaml'"):
        load_config(tmp_path / "none.yaml")
    for text, match in (("[1]", r"holds \[1\], expected keys"), ("a: [", "cannot be read")):
        with pytest.raises(SpecError, match=match):
            read_content(written(tmp_path, text))
    with pytest.raises(SpecError, match=r"no data\.table: .* type data\.table=\.\.\."):
        load_config({"model": "m"})


plain = st.floats(1e-9, 1e3)


@settings(deadline=None, max_examples=30)
@given(
    lr=plain,
    betas=st.lists(st.floats(0, 0.999), min_size=2, max_size=2),
    seeds=st.lists(st.integers(0, 2**31), max_size=3, unique=True),
    classes=st.none() | st.lists(st.text("abc01 :#'é,-", min_size=1), max_size=3),
    clip=st.none() | plain,
    augment=st.none() | st.builds(AugmentConfig, mirror=st.floats(0, 1)),
)
def test_what_to_yaml_writes_is_read_as_the_same_config(
    lr: float, betas: Any, seeds: Any, classes: Any, clip: Any, augment: Any
) -> None:
    start = load_config(LEAST)
    config = dataclasses.replace(
        start,
        optimiser=OptimiserConfig(lr=lr, betas=betas),
        seeds=seeds,
        data=dataclasses.replace(start.data, classes=classes),
        train=TrainConfig(clip=clip),
        augment=augment,
    )
    again = load_config(yaml.safe_load(to_yaml(config)))
    assert again == config
    assert config_digest(again) == config_digest(config)


def test_a_written_config_is_read_from_its_file_with_classes_as_text(tmp_path: Path) -> None:
    config = load_config(LEAST, ["data.classes=[no, yes, 010]", "recipe=span-survival"])
    assert load_config(written(tmp_path, to_yaml(config))) == config
    assert config_digest(config) != config_digest(load_config(LEAST))


nested = st.recursive(
    st.integers() | st.none() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)
mappings = st.dictionaries(st.sampled_from("abc"), nested, max_size=3)


def leaves(of: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Whatever in nested mappings is none, with where it stands; an empty mapping says nothing."""
    if isinstance(of, dict):
        for key, value in of.items():
            yield from leaves(value, *path, key)
    else:
        yield path, of


@settings(deadline=None)
@given(mappings, mappings)
def test_merged_are_all_of_the_upper_and_what_it_does_not_touch_of_the_lower(
    under: Any, over: Any
) -> None:
    merged = dict(leaves(merge(under, over)))
    upper = dict(leaves(over))
    assert all(merged[path] == value for path, value in upper.items())
    for path, value in leaves(under):
        touched = any(path[: len(p)] == p or p[: len(path)] == path for p in upper)
        assert touched or path not in merged or merged[path] == value
    assert merge(under, {}) == under == merge({}, under) == merge(under, under)


def test_the_config_of_augmentation_is_that_of_the_augmentation() -> None:
    assert dataclasses.asdict(AugmentConfig()) == dataclasses.asdict(CoordinateAugmentation())


def test_no_key_is_lost_between_the_yaml_and_the_dataclass() -> None:
    told = yaml.safe_load(to_yaml(load_config(LEAST)))
    assert list(told) == [field.name for field in dataclasses.fields(RunConfig)]


def test_every_key_is_in_the_manual_with_its_default() -> None:
    page = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `([a-z_.]+)` \| (.+?) \|", page, re.MULTILINE))
    config = dataclasses.replace(load_config(LEAST), augment=AugmentConfig())
    there = {".".join(path): value for path, value in leaves(dataclasses.asdict(config))}
    for key, value in there.items():
        written = yaml.safe_dump(value, default_flow_style=True).splitlines()[0].strip("'")
        expected = "required" if key in ("model", "data.table") else f"`{written}`"
        assert shown.pop(key).replace("1e-05", "1.0e-05") == expected, key
    assert not [key for key in shown if "." in key]
