import datetime
from typing import Any

import pytest

from wsizoo.encoder_spec import encoder_spec
from wsizoo.errors import SpecError
from wsizoo.spec import model_record, model_spec

BASE: dict[str, Any] = {
    "summary": "s",
    "licence": "MIT",
    "source": "x",
    "encoder": "uni",
    "aggregator": {"name": "abmil", "dim": 512, "gated": True},
    "head": {"name": "classification", "classes": ["normal", "tumour"]},
}
COMMIT, DIGEST = "0123456789abcdef" * 2 + "01234567", "f" * 64


def spec(*overrides: str, **fields: Any) -> Any:
    return model_spec("m", {**BASE, **fields}, overrides)


@pytest.mark.parametrize(
    ("overrides", "field", "expected"),
    [
        (["head.classes=[a,b,c]"], "head", {"name": "classification", "classes": ["a", "b", "c"]}),
        (["aggregator=mean"], "aggregator", {"name": "mean"}),
        (["aggregator.dim=64"], "aggregator", {"name": "abmil", "dim": 64, "gated": True}),
        (["aggregator.dropout=1e-1"], "aggregator", {**BASE["aggregator"], "dropout": 0.1}),
        (["aggregator.gated=false"], "aggregator", {**BASE["aggregator"], "gated": False}),
        (["aggregator={name: max, dim: 8}"], "aggregator", {"name": "max", "dim": 8}),
        (["aggregator=mean", "aggregator.dim=8"], "aggregator", {"name": "mean", "dim": 8}),
        (["aggregator.dim=8", "aggregator=mean"], "aggregator", {"name": "mean"}),
        (["aggregator.a.b=1"], "aggregator", {**BASE["aggregator"], "a": {"b": 1}}),
        (["head=null"], "head", None),
        (["head=null", "head=survival", "head.bins=3"], "head", {"name": "survival", "bins": 3}),
        (["selector=topk", "selector.k=10"], "selector", {"name": "topk", "k": 10}),
        (["summary=a=b, and more"], "summary", "a=b, and more"),
        (["aliases=[old]"], "aliases", ["old"]),
    ],
)
def test_overrides_are_laid_over_from_left_to_right(
    overrides: list[str], field: str, expected: Any
) -> None:
    assert getattr(spec(*overrides), field) == expected


def test_an_encoder_is_overridden_by_name_or_by_field() -> None:
    assert vars(spec("encoder=other").encoder)["name"] == "other"
    use = spec("encoder.dim=32", "encoder.mpp=1").encoder
    assert (use.name, use.dim, use.mpp) == ("uni", 32, 1.0)
    assert spec("encoder={name: mine, dim: 3}").encoder.dim == 3
    assert spec("encoder=null").encoder is None


def test_weights_can_be_given_by_an_override() -> None:
    assert spec("weights.repo=lab/m").weights.repo == "lab/m"


def test_checking_leaves_the_record_as_it_was() -> None:
    record = {**BASE, "aggregator": {"name": "mean", "layers": [1, 2]}}
    first = model_spec("m", record, ["aggregator.dim=3"])
    first.aggregator["layers"].append(3)  # type: ignore[index]
    assert record["aggregator"] == {"name": "mean", "layers": [1, 2]}
    assert record["encoder"] == "uni"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "aggregator",
            r"cannot read the override 'aggregator', expected KEY=VALUE, for instance h",
        ),
        ("=3", r"cannot read the override '=3'"),
        ("a..b=3", r"cannot read the override 'a\.\.b=3'"),
        ("head.classes[0]=x", r"cannot read the override 'head\.classes\[0\]=x'"),
        ("head.classes=[a,b", r"cannot read the override 'head\.classes=\[a,b'"),
        (
            "selector.k=3",
            r"model 'm' has no selector, so selector\.k changes nothing\. .*selector=",
        ),
        ("headd.classes=[a,b]", r"model 'm': unknown field 'headd'\. Did you mean 'head'\?"),
        ("head.classes.x=3", r"head\.classes is \['normal', 'tumour'\], it has no 'x'"),
        ("encoder.mp=3", r"unknown field 'encoder\.mp'\. Did you mean 'mpp'\?"),
        ("summary=${oc.env:HOME}", r"model 'm' holds '\$\{': registry entries are data"),
        ("aggregator=[a]", r"model 'm': aggregator is \['a'\], expected \{name: \.\.\., \.\.\.\}"),
        ("aggregator=3", r"model 'm': aggregator is 3, expected \{name"),
        ("aggregator=null", r"model 'm' needs either an aggregator or a model \(a whole model\)"),
    ],
)
def test_an_override_that_does_not_fit_is_named(override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(override)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"licens": "MIT"}, r"model 'm': unknown field 'licens'\. Did you mean 'licence'"),
        ({"zzzzz": 1}, r"unknown field 'zzzzz'\. Fields: aggregator, aliases, encoder"),
        (
            {"encoder": {"name": "uni", "mpp": "half"}},
            r"model 'm': encoder\.mpp is 'half', expected a number",
        ),
        (
            {"encoder": {"name": "uni", "patch_size": 2.5}},
            r"encoder\.patch_size is 2\.5, expected a whole number",
        ),
        ({"encoder": {"dim": 3}}, r"model 'm' states no encoder\.name"),
        ({"encoder": 3}, r"model 'm': encoder is 3, expected \{name"),
        ({"head": ["classification"]}, r"model 'm': head is \['classification'\], expected"),
        ({"head": {"bins": 4}}, r"model 'm': head \{'bins': 4\} has no name, expected head: \{na"),
        ({"weights": "lab/m"}, r"model 'm': weights is 'lab/m', expected \{name"),
        ({"weights": {"sha": "x"}}, r"unknown field 'weights\.sha'\. Did you mean 'sha256'"),
        ({"aliases": "old"}, r"model 'm': aliases is 'old', expected a list"),
        ({"results": [{"dataset": "a"}]}, r"model 'm' states no results\[0\]\.metric"),
        ({"results": [{"set": "a"}]}, r"unknown field '.*set'\. Did you mean 'dataset'"),
        ({"summary": datetime.date(2020, 1, 1)}, r"model 'm': summary: Value 'date' is not a sup"),
        ({"licence": None}, r"model 'm': licence is null, expected text"),
        ({"licence": " "}, r"model 'm' states no licence"),
        ({"source": "???"}, r"model 'm' states no source"),
        ({"aggregator": None}, "needs either an aggregator or a model"),
        ({"model": "whole"}, "needs either an aggregator or a model"),
        (
            {"aggregator": None, "model": "whole"},
            "model 'm' is a whole model and takes neither a selector nor a head",
        ),
        (
            {"head": {"name": "classification", "classes": "normal"}},
            r"model 'm': head\.classes is 'normal', expected names: head\.classes=\[normal,tum",
        ),
        (
            {"head": {"name": "classification", "classes": ["a", "b", "a"]}},
            r"model 'm': head\.classes \['a', 'b', 'a'\] names one class twice",
        ),
        (
            {"head": {"name": "classification", "classes": ["a", True]}},
            r"model 'm': head\.classes holds True, expected text: quote it",
        ),
        (
            {"plugin": "-r https://evil.example"},
            r"model 'm': plugin is '-r https://evil\.example', expected the name of a distribution",
        ),
        (
            {"weights": {"repo": "lab/m", "revision": "main"}},
            r"model 'm': weights: revision 'main' is not a commit, expected 40 hex digits",
        ),
        (
            {"weights": {"repo": "lab/m", "sha256": "abc"}},
            r"model 'm': weights: sha256 'abc' is not 64 hex digits",
        ),
        (
            {"weights": {"repo": "lab/m", "package": "a:b"}},
            r"model 'm': weights lie in a repo or in a package, not in both",
        ),
    ],
)
def test_an_entry_that_is_not_well_formed_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(**fields)


@pytest.mark.parametrize("record", [None, "mean", [1], 3])
def test_an_entry_that_is_no_mapping_is_an_error(record: Any) -> None:
    with pytest.raises(SpecError, match=r"model 'm': expected a mapping of fields, got"):
        model_spec("m", record)
    with pytest.raises(SpecError, match=r"encoder 'e': expected a mapping of fields, got"):
        encoder_spec("e", record)


def test_pinned_weights_are_well_formed() -> None:
    weights = spec(weights={"repo": "lab/m", "revision": COMMIT, "sha256": DIGEST}).weights
    assert (weights.revision, weights.sha256) == (COMMIT, DIGEST)
    assert weights.file == "model.safetensors"


def test_an_encoder_is_held_to_the_same_pins() -> None:
    facts = {"summary": "s", "licence": "MIT", "source": "x"}
    assert encoder_spec("e", {**facts, "dim": None, "gated": True}).gated
    with pytest.raises(SpecError, match=r"encoder 'e': revision 'main' is not a commit"):
        encoder_spec("e", {**facts, "revision": "main"})
    with pytest.raises(SpecError, match=r"encoder 'e': plugin is 'a b', expected the name of a"):
        encoder_spec("e", {**facts, "plugin": "a b"})
    with pytest.raises(SpecError, match=r"encoder 'e': unknown field 'dims'\. Did you mean 'dim'"):
        encoder_spec("e", {**facts, "dims": 3})


def test_classes_are_texts_in_order() -> None:
    assert spec("head.classes=[2,10]").classes == ["2", "10"]
    assert spec("head.classes=[0,1]").classes == ["0", "1"]
    assert spec("head.classes=[yes,no]").classes == ["yes", "no"]
    assert spec("head.classes=[0.10, null, ~, 1e-3]").classes == ["0.10", "null", "~", "1e-3"]
    assert spec("head={name: classification, classes: [on, off]}").classes == ["on", "off"]
    assert spec("head.classes=['a, b', c]").classes == ["a, b", "c"]
    assert spec("head=null").classes == []
    assert spec("head.classes=null").classes == []


def test_a_record_says_what_is_stated_and_nothing_else() -> None:
    record = model_record(spec())
    assert set(record) == set(BASE)
    assert record["encoder"]["name"] == "uni"
    assert model_record(model_spec("m", record)) == record
