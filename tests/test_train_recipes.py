"""wsizoo.train.recipes: what is shipped is found, read, built, and says whose it is."""

import dataclasses
import importlib.metadata
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import wsizoo
from wsizoo.errors import NotFoundError, SpecError
from wsizoo.registry import default
from wsizoo.train.config import load_config
from wsizoo.train.config_content import read_content
from wsizoo.train.making import spec_of, task_of
from wsizoo.train.recipes import find_recipe, recipe_names, recipes
from wsizoo.train.row_targets import TASKS

ROOT = Path(__file__).parent.parent
SHIPPED = recipes()
ON_DISK = [
    *(ROOT / "wsizoo/train/recipes").glob("*.yaml"),
    *ROOT.glob("plugins/*/src/*/recipes/*.yaml"),
]


@dataclass
class Point:
    """An entry point as importlib.metadata has them."""

    value: str
    dist: Any = None


def test_every_recipe_of_this_repository_is_found() -> None:
    names = [file.stem for file in ON_DISK]
    assert sorted(names) == recipe_names() == sorted(SHIPPED)
    assert {"baseline-classification", "span-classification", "span-v1"} <= set(names)
    plugins = ("span", "longmil", "pixelmamba", "sparselearn", "mil")
    owners = {"wsizoo", *(f"wsizoo-plugin-{name}" for name in plugins)}
    assert {SHIPPED[n].owner for n in names} == owners


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_is_a_whole_run_but_for_its_data(name: str) -> None:
    config = load_config({"recipe": name, "data": {"table": "t.csv"}})
    classes = [] if "surv" in name or "regr" in name else ["head.classes=[no,yes]"]
    whole = name.startswith(("pixel-mamba", "knn"))
    narrow = [] if whole else ["aggregator.dim=64"]
    model = wsizoo.build(config.model, *config.overrides, *narrow, *classes)
    named = (task for task in TASKS if name.endswith(task))
    assert model.head is not None
    assert model.head.task == next(named, "classification")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_says_what_it_is_whose_it_is_and_what_is_ours(name: str) -> None:
    text = SHIPPED[name].file.read_text(encoding="utf-8")
    assert re.search(r"^# .*(https://|No paper)", text, re.M), "cites nothing"
    assert re.search(r"\bours\b", text, re.IGNORECASE), "claims no choice"
    assert 20 < len(SHIPPED[name].summary) < 110
    assert SHIPPED[name].summary.endswith(".")
    assert not {"table", "features"} & {*read_content(SHIPPED[name].file).get("data", {})}


def test_the_manual_lists_every_recipe_with_its_owner() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w-]+)` \| (wsizoo[\w-]*) \|", page, re.MULTILINE))
    assert told == {name: recipe.owner for name, recipe in SHIPPED.items()}


def test_spans_recipes_have_the_published_numbers() -> None:
    """Of the code at 08e4ba0, and of the paper of 2024."""

    def told(name: str) -> tuple[Any, ...]:
        c = load_config({"recipe": name, "data": {"table": "t.csv"}})
        o, t = c.optimiser, c.train
        return o.name, o.lr, o.weight_decay, t.epochs, t.patience, c.augment is None, c.seeds

    assert told("span-classification") == ("adamw", 1e-4, 1e-4, 50, 10, False, [0])
    assert told("span-segmentation") == ("adamw", 1e-4, 1e-5, 40, None, True, [42])
    assert told("span-survival") == ("adamw", 1e-5, 1e-4, 50, 10, False, [0])
    assert told("span-v1")[:3] == ("adamw", 1e-4, 5e-5)


ALIKE = {  # recipe -> what its code trains in the same way
    "mean-instance": "rrt",
    "max-instance": "rrt",
    "clam-mb": "clam",
    "acmil-mha": "acmil",
    "mhim-dsmil": "mhim",
    "mhim-transmil": "mhim",
    "mhim-v1-transmil": "mhim-v1",
}


def test_every_aggregator_has_a_recipe_of_its_own() -> None:
    registry = default()
    configs = [load_config({"recipe": n, "data": {"table": "t.csv"}}) for n in SHIPPED]
    taught = {
        (spec.aggregator or spec.model or {}).get("name") for spec in map(spec_of_run, configs)
    }
    known = {
        one.name
        for one in registry.plugins.components("aggregator")
        if one.target.startswith(("wsizoo.mil.", "wsizoo_plugin_mil."))
    }
    assert len(known) == 23
    assert known <= taught


def spec_of_run(config: Any) -> Any:
    return spec_of(config, default())


def test_survival_is_trained_as_patch_gcn_trains_it_whatever_the_method() -> None:
    ours, theirs = (
        load_config({"recipe": f"{name}-survival", "data": {"table": "t.csv"}})
        for name in ("mil", "baseline")
    )
    assert (ours.optimiser, ours.train, ours.split) == (
        *(theirs.optimiser, theirs.train, theirs.split),
    )
    assert ours.data == theirs.data
    model = wsizoo.build(ours.model, *ours.overrides)
    assert (model.spec.aggregator["name"], type(model.head).__name__) == ("clam-sb", "SurvivalHead")


def test_recipes_of_the_classic_methods_have_the_numbers_of_their_codes() -> None:
    found = {
        name: load_config({"recipe": f"{name}-classification", "data": {"table": "t.csv"}})
        for name in (
            *("clam", "dsmil", "transmil", "attmil", "acmil", "dtfd"),
            *("transformer", "rrt", "ilra", "wikg"),
            *("mhim", "mhim-v1", "knn"),
            *ALIKE,
        )
    }
    told = {
        name: (one.optimiser.name, one.optimiser.lr, one.optimiser.weight_decay, one.train.epochs)
        for name, one in found.items()
    }
    assert told == {
        "clam": ("adam", 2e-4, 1e-5, 200),
        "dsmil": ("adam", 1e-4, 1e-3, 50),
        "transmil": ("radam", 2e-4, 1e-5, 200),
        "attmil": ("adam", 1e-4, 0.01, 32),
        "acmil": ("adamw", 1e-4, 1e-5, 100),
        "dtfd": ("adam", 1e-4, 1e-4, 200),
        "transformer": ("adamw", 1e-4, 1e-5, 20),
        "rrt": ("adam", 2e-4, 1e-5, 200),
        "ilra": ("adam", 1e-4, 0.0, 100),
        "wikg": ("adam", 1e-4, 1e-5, 100),
        "mhim": ("adam", 2e-4, 1e-5, 200),
        "mhim-v1": ("adam", 2e-4, 1e-5, 200),
        "knn": ("adam", 0.05, 0.0, 5),
        **{name: told[like] for name, like in ALIKE.items()},
    }
    assert [one.train.patience for one in found.values()][: -len(ALIKE)] == [
        *(20, 10, 10, None, None, None),
        *(10, 30, None, None),
        *(20, 30, None),
    ]
    assert {name: one.train.min_epochs for name, one in found.items() if name not in ALIKE} == {
        **dict.fromkeys(found.keys() - ALIKE.keys(), 1),
        **{"clam": 52, "rrt": 132, "mhim": 102, "mhim-v1": 132},
    }
    fallen = found["dtfd"].schedule
    assert (fallen.name, fallen.falls, fallen.fall_factor) == ("step", [100], 0.2)
    for name, like in ALIKE.items():
        assert dataclasses.replace(found[name], model="", recipe="") == dataclasses.replace(
            found[like], model="", recipe=""
        )
    assert found["dsmil"].optimiser.betas == [0.5, 0.9]
    assert found["dsmil"].schedule.end_factor * found["dsmil"].optimiser.lr == pytest.approx(5e-6)
    assert (found["transmil"].train.accumulate, found["transmil"].seeds) == (2, [2021])
    assert found["transmil"].optimiser.lookahead == 6
    assert found["mhim"].schedule.end_factor * found["mhim"].optimiser.lr == pytest.approx(1e-7)
    assert found["mhim"].seeds == found["mhim-v1"].seeds == [2021]
    assert (found["dtfd"].train.clip, found["dtfd"].seeds) == (5, [32])
    assert (found["attmil"].train.batch_size, found["attmil"].train.max_patches) == (64, 512)


def test_patches_are_labelled_by_every_method_of_spans_table_with_its_numbers() -> None:
    given = {"recipe": "patch-segmentation", "data": {"table": "t.csv"}}
    for name in ("gcn-uni", "gat-uni", "abmil-seg-uni", "transmil-seg-uni", "rrt-seg-uni"):
        config = load_config(given, [f"model={name}"])
        head = wsizoo.build(config.model, "head.classes=[a,b]", "aggregator.dim=16").head
        assert (head.task, head.threshold, head.dice_weight) == ("segmentation", 0.2, 0.75)
    o, span = config.optimiser, load_config({**given, "recipe": "span-segmentation"})
    assert (o, config.train, config.schedule) == (span.optimiser, span.train, span.schedule)
    assert (config.split.fractions, config.seeds) == ([0.7, 0.1, 0.2], [0, 1, 2, 3, 4])


def test_longmils_recipes_have_the_numbers_that_the_paper_states() -> None:
    """https://arxiv.org/abs/2410.14195, Section 4; five seeds or HIPT's five folds."""
    data = {"table": "t.csv"}
    for name in ("longmil-classification", "longmil-survival"):
        c = load_config({"recipe": name, "data": data})
        o = c.optimiser
        assert (o.lr, o.weight_decay, c.train.batch_size, c.augment) == (1e-4, 1e-2, 1, None)
        network = wsizoo.build(c.model, *([] if "surv" in name else ["head.classes=[a,b]"]))
        settings = network.aggregator.settings
        assert (settings.local_blocks, settings.radius, settings.heads) == (2, 10, 1)
        assert settings.attention_dropout == 0
    assert len(load_config({"recipe": "longmil-classification", "data": data}).seeds) == 5
    survival = load_config({"recipe": "longmil-survival", "data": data})
    assert (survival.split.kind, survival.split.folds) == ("kfold", 5)


def test_a_near_name_or_all_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"No recipe named 'span-clasification'.*Did you mean"):
        find_recipe("span-clasification")
    with pytest.raises(NotFoundError, match=r"named 'zzz' is installed. Recipes: .*baseline-"):
        find_recipe("zzz")
    with pytest.raises(NotFoundError, match=r"No recipe at 'none.yaml'"):
        find_recipe("none.yaml")
    (tmp_path / "own.yaml").write_text("model: m\n")
    assert find_recipe(str(tmp_path / "own.yaml")) == tmp_path / "own.yaml"


def plugin(folder: Path, package: str, recipe: str) -> Point:
    """A package that must not be imported, with a recipe beside its hooks."""
    inside = folder / package
    (inside / "recipes").mkdir(parents=True)
    (inside / "__init__.py").write_text("raise SystemExit('imported')\n")
    (inside / "recipes" / f"{recipe}.yaml").write_text("# Nothing. All ours.\nmodel: m\n")
    return Point(f"{package}.hooks")


def test_the_recipes_of_a_plugin_are_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = plugin(tmp_path, "recipes_of_mine", "mine")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = recipes([point, Point("not_there_at_all.hooks"), Point("recipes_of_mine.more")])
    assert found["mine"].summary == "Nothing. All ours."
    assert found["mine"].owner == "recipes_of_mine.hooks"
    assert "baseline-classification" in found
    assert "recipes_of_mine" not in sys.modules


def test_two_recipes_of_one_name_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [plugin(tmp_path, f"recipes_of_{who}", "same") for who in ("ann", "bob")]
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SpecError, match=r"'same' of recipes_of_bob.* in recipes_of_ann"):
        recipes(points)


def test_listing_recipes_imports_neither_torch_nor_a_plugin() -> None:
    code = (
        "import sys; from wsizoo.train.recipes import recipe_names; assert recipe_names()\n"
        "print([m for m in sys.modules if m in ('torch', 'numpy') or m.startswith('wsizoo_')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plugins_with_recipes_are_installed_ones() -> None:
    points = importlib.metadata.entry_points(group="wsizoo")
    assert {str(p.value).partition(".")[0] for p in points} >= {"wsizoo_plugin_span"}


@pytest.mark.parametrize("name", ["baseline-survival", "span-survival", "baseline-segmentation"])
def test_a_model_of_another_task_is_told_the_head_it_needs(name: str) -> None:
    config = load_config({"recipe": name, "model": "abmil-demo", "data": {"table": "t.csv"}})
    config = dataclasses.replace(config, overrides=[])
    task = name.rpartition("-")[2]
    told = rf"head 'classification' of 'abmil-demo' is of class.*overrides=\[\"head={task}\"\]"
    with pytest.raises(SpecError, match=told):
        task_of(config, default())
