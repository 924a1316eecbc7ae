from typing import Any

import pytest

from wsizoo.encoder_spec import check_runs, encoder_spec
from wsizoo.errors import NotFoundError, SpecError

FACTS = {"summary": "s", "licence": "MIT", "source": "x"}


def test_an_entry_is_checked_with_its_nested_fields() -> None:
    image = {"size": 224, "resize": 256, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}
    spec = encoder_spec("e", {**FACTS, "image": image, "keys": {"drop": ["head."]}})
    assert spec.image and (spec.image.size, spec.image.interpolation) == (224, "bilinear")
    assert spec.keys and (spec.keys.drop, spec.keys.strip, spec.keys.inside) == (
        ["head."],
        [],
        None,
    )
    assert spec.precision == "fp32"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sha256": "a" * 64}, r"encoder 'e' states a sha256 and no file that it is of"),
        ({"refused": "why", "component": "timm"}, r"is refused and names a component; leave out"),
        ({"precision": "int8"}, r"precision is 'int8', expected fp32, fp16, bf16"),
        ({"image": {"interpolation": "lanczos"}}, r"interpolation is 'lanczos', expected bilinear"),
        ({"image": {"size": 256, "resize": 224}}, r"size 256 does not fit into image.resize 224"),
        ({"image": {"size": 0}}, r"image.size 0 does not fit"),
        ({"image": {"mean": [0.5]}}, r"image.mean \[0\.5\] and .* are not three numbers each"),
        ({"image": {"std": [1, 0, 1]}}, r"with std above 0"),
        ({"image": {"sise": 2}}, r"unknown field 'image\.sise'\. Did you mean 'size'"),
        ({"summary": ""}, r"encoder 'e' states no summary"),
    ],
)
def test_an_entry_that_is_not_well_formed_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        encoder_spec("e", {**FACTS, **fields})


@pytest.mark.parametrize("missing", list(FACTS))
def test_what_every_entry_states_is_required(missing: str) -> None:
    with pytest.raises(SpecError, match=rf"encoder 'e' states no {missing}"):
        encoder_spec("e", {key: value for key, value in FACTS.items() if key != missing})


def test_an_entry_without_a_network_says_why_and_what_can_be_done() -> None:
    refused = encoder_spec("e", {**FACTS, "refused": "its code is not run"})
    told = r"encoder 'e' does not run here: its code is not run\. Features .* list --encoders"
    with pytest.raises(NotFoundError, match=told):
        check_runs("e", refused)
    with pytest.raises(NotFoundError, match=r"does not run here: it is not part of this wsizoo"):
        check_runs("e", encoder_spec("e", FACTS))
    check_runs("e", encoder_spec("e", {**FACTS, "component": "timm"}))
