import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsizoo.errors import DataError, FingerprintError
from wsizoo.fingerprint import Fingerprint

FULL = Fingerprint("uni", "c0ffee", "d1ce", "resize 224", "cls", 0.5, 256)
OTHERS: dict[str, Any] = {
    "encoder": "resnet50",
    "revision": "deadbeef",
    "weights": "beef",
    "preprocessing": "resize 256",
    "pooling": "mean",
    "mpp": 0.25,
    "patch_size": 512,
}
SOME = st.builds(
    Fingerprint,
    encoder=st.sampled_from([None, "uni", "resnet50"]),
    pooling=st.sampled_from([None, "cls", "mean"]),
    mpp=st.sampled_from([None, 0.5, 0.5001, 1.0]),
    patch_size=st.sampled_from([None, 224, 256]),
)


@pytest.mark.parametrize("field", OTHERS)
def test_each_field_that_differs_is_named_with_both_values(field: str) -> None:
    theirs = dataclasses.replace(FULL, **{field: OTHERS[field]})
    assert FULL.differences(theirs) == {field: (getattr(FULL, field), OTHERS[field])}
    with pytest.raises(FingerprintError) as caught:
        FULL.check_accepts(theirs, "'m'", "slide 'A1'")
    message = str(caught.value)
    assert str(getattr(FULL, field)) in message and str(OTHERS[field]) in message
    assert field == "encoder" or field in message
    assert message.startswith("'m' was made for uni features")
    assert "Widths may agree, the features do not." in message
    scale = "wsizoo extract SLIDE -e uni --patch-mpp 0.5 --patch-size 256"
    advice = {"encoder": "--encoder resnet50", "mpp": scale, "patch_size": scale}
    assert message.endswith(advice.get(field, "wsizoo extract SLIDE -e uni"))


def test_another_encoder_is_told_as_in_the_manual() -> None:
    theirs = Fingerprint("resnet50")
    with pytest.raises(
        FingerprintError,
        match=r"^'m' was made for uni features; slide 'A1' was encoded with resnet50\. Widths .*"
        r"Use features of uni, or .* wsizoo list --encoder resnet50$",
    ):
        FULL.check_accepts(theirs, "'m'", "slide 'A1'")


def test_two_bags_that_were_made_differently_are_told_apart() -> None:
    with pytest.raises(
        FingerprintError, match=r"^A1 and A2 were encoded differently: mpp 0\.5 and 1\.0\. Extract"
    ):
        FULL.check_same(dataclasses.replace(FULL, mpp=1.0), "A1", "A2")
    FULL.check_same(FULL, "A1", "A2")


@pytest.mark.parametrize("field", OTHERS)
def test_a_field_that_one_side_does_not_know_is_not_compared(field: str) -> None:
    nothing: dict[str, Any] = {field: None}
    unknown = dataclasses.replace(FULL, **nothing)
    FULL.check_accepts(unknown, "m", "bag")
    unknown.check_accepts(FULL, "m", "bag")
    assert FULL.unverified(unknown) == [field]
    assert unknown.unverified(FULL) == []


@pytest.mark.parametrize(
    ("mine", "theirs", "agree"),
    [(0.5, 0.50049, True), (0.5, 0.5006, False), (1, 1.0, True), (4.0, 4.0039, True)],
)
def test_scales_agree_within_a_thousandth(mine: float, theirs: float, agree: bool) -> None:
    found = Fingerprint(mpp=mine).differences(Fingerprint(mpp=theirs))
    assert (found == {}) is agree


@given(SOME, SOME)
def test_agreement_does_not_depend_on_who_asks(a: Fingerprint, b: Fingerprint) -> None:
    assert set(a.differences(b)) == set(b.differences(a))
    assert a.differences(a) == {} and a.unverified(a) == []


@given(SOME)
def test_a_fingerprint_survives_json(fingerprint: Fingerprint) -> None:
    text = json.dumps(fingerprint.to_json())
    assert Fingerprint.from_json(json.loads(text)) == fingerprint


def test_being_declared_is_kept_but_not_compared() -> None:
    declared = dataclasses.replace(FULL, declared=True)
    assert declared.to_json()["declared"] is True and "declared" not in FULL.to_json()
    assert FULL.differences(declared) == {} and FULL.digest() == declared.digest()


def test_a_digest_names_what_is_stated() -> None:
    assert len(FULL.digest()) == 12
    changed = [dataclasses.replace(FULL, **{k: v}).digest() for k, v in OTHERS.items()]
    assert len({FULL.digest(), *changed}) == len(OTHERS) + 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"encoder": "uni", "seed": 3},
            r"fields this wsizoo does not know: \['seed'\]. .*--upgrade",
        ),
        ({"mpp": "0.5"}, r"states mpp '0\.5', expected float or int"),
        ({"patch_size": 224.0}, r"states patch_size 224\.0, expected int"),
        ({"encoder": 3}, "states encoder 3, expected str"),
        ({"declared": "yes"}, "states declared 'yes', expected bool"),
        (["uni"], r"is a mapping of fields, got \['uni'\]"),
    ],
)
def test_a_damaged_record_is_an_error(record: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Fingerprint.from_json(record)
