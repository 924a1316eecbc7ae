import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import wsizoo
from wsizoo.bag import Bag, BagBatch
from wsizoo.errors import BagError, DataError, FingerprintError, PluginError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Aggregated, Aggregator, Head, Selected, Selector
from wsizoo.mil.abmil import ABMIL
from wsizoo.mil.heads import ClassificationHead, RegressionHead, SegmentationHead, SurvivalHead
from wsizoo.mil.pooling import MaxPooling, MeanPooling
from wsizoo.model import SlideModel
from wsizoo.outputs import unstacked
from wsizoo.spec import ModelSpec

SPEC = ModelSpec(summary="s", licence="MIT", source="x", head={"classes": ["a", "b"]})
DIM = 6
UNI = Fingerprint("uni", pooling="cls", mpp=0.5)


def bag(n: int = 5, seed: int = 0, **fields: Any) -> Bag:
    features = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    return Bag(features, **{"slide_id": "A1", **fields})


def model(aggregator: Aggregator | None = None, head: Head | None = None, **parts: Any) -> Any:
    torch.manual_seed(0)
    aggregator = ABMIL(DIM, 4, 3) if aggregator is None else aggregator
    return SlideModel("m", SPEC, DIM, aggregator=aggregator, head=head, **parts).eval()


def classify() -> Head:
    return ClassificationHead(4, ("a", "b"))


class Counted(MeanPooling):
    """Counts how often somebody asked for its scores; may state that it uses coords."""

    def __init__(self) -> None:
        super().__init__(DIM, 4)
        self.calls = 0

    def scores(self, instances: Tensor, slide: Tensor) -> Tensor:
        self.calls += 1
        return super().scores(instances, slide)


class Placed(MeanPooling):
    uses_coords = True


class PlacedInPixels(Placed):
    uses_spacing = False


class Pixels(Aggregator):
    reads = "pixels"

    def forward(self, bag: Bag) -> Aggregated:
        return Aggregated(bag.features.float().mean((0, 2, 3)))


class Some(Selector):
    """Keeps the rows that it was told to."""

    def __init__(self, index: list[int], everything: bool = False) -> None:
        super().__init__(DIM)
        self.index, self.everything = index, everything

    def forward(self, bag: Bag) -> Selected:
        index = torch.tensor(self.index)
        return Selected(bag if self.everything else bag.subset(index), index)


def with_nan(value: float) -> Bag:
    features = torch.zeros(5, DIM)
    features[3, 2] = value
    return Bag(features, slide_id="A1")


REFUSED: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "a tensor": (
        model,
        torch.zeros(3, DIM),
        r"'m' takes a wsizoo\.Bag, got Tensor\. Make one: wsi",
    ),
    "no patches": (model, bag(0), r"slide 'A1' has no patches: nothing for 'm' to read"),
    "another width": (
        model,
        Bag(torch.zeros(3, 9), slide_id="A1"),
        r"'m' reads features of width 6; those of slide 'A1' have width 9",
    ),
    "another width of a known encoder": (
        lambda: model(requires=UNI),
        Bag(torch.zeros(3, 9), slide_id="A1"),
        r"'m' reads features of uni of width 6",
    ),
    "NaN": (
        model,
        with_nan(float("nan")),
        r"slide 'A1': 1 of 5 patches have NaN or infinite features, first patch 3\. Extract it ag",
    ),
    "infinity": (model, with_nan(float("inf")), "1 of 5 patches have NaN or infinite"),
    "minus infinity": (model, with_nan(float("-inf")), "first patch 3"),
    "pixels": (
        model,
        Bag(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), slide_id="A1"),
        r"'m' reads features, slide 'A1' holds pixels \(N, 3, H, W\)",
    ),
    "features": (
        lambda: model(Pixels(3, 3)),
        bag(),
        r"'m' reads pixels, slide 'A1' holds features \(N, D\)",
    ),
    "no coords": (
        lambda: model(Placed(DIM, 4)),
        bag(),
        r"'m' uses coordinates, slide 'A1' has no coords\. Make it with Bag\(features, coords=xy",
    ),
    "no spacing": (
        lambda: model(Placed(DIM, 4)),
        bag(coords=torch.zeros(5, 2).long()),
        r"'m' uses coordinates, slide 'A1' has no spacing",
    ),
    "no coords where spacing is not used": (
        lambda: model(PlacedInPixels(DIM, 4)),
        bag(),
        r"'m' uses coordinates, slide 'A1' has no coords",
    ),
}


def test_who_does_not_use_spacing_is_given_slides_without() -> None:
    made, given = model(PlacedInPixels(DIM, 4)), bag(coords=torch.zeros(5, 2).long())
    assert made(given).embedding.shape == (4,)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_a_bag_that_does_not_fit_is_refused(case: str, packed: bool) -> None:
    make, given, message = REFUSED[case]
    if packed and isinstance(given, Bag):
        with pytest.raises(BagError, match=message):
            make().forward_packed(BagBatch.pack([given]))
    else:
        with pytest.raises(BagError, match=message):
            make()(given)


@pytest.mark.parametrize("packed", [False, True])
def test_features_of_another_encoder_are_refused(packed: bool) -> None:
    made, given = model(requires=UNI), bag(encoder=Fingerprint("resnet50"))
    with pytest.raises(
        FingerprintError,
        match=r"'m' was made for uni features; slide 'A1' was encoded with resnet50\.",
    ):
        made.forward_packed(BagBatch.pack([given])) if packed else made(given)


def test_what_features_do_not_state_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    made = model(requires=UNI)
    with caplog.at_level(logging.WARNING, logger="wsizoo"):
        for _ in range(3):
            made(bag(encoder=Fingerprint("uni", mpp=0.5)))
    assert caplog.messages == ["'m': the features do not state pooling; unverified"]
    made(bag())
    assert len(caplog.messages) == 1


def test_large_features_are_not_mistaken_for_infinity() -> None:
    features = torch.full((4, DIM), 60000.0, dtype=torch.float16)
    assert torch.isfinite(model()(Bag(features)).embedding).all()
    assert torch.isfinite(
        model(MaxPooling(DIM, None))(Bag(torch.full((4, DIM), 3e38))).embedding
    ).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_precision_meet_the_model_in_its_own(dtype: torch.dtype) -> None:
    made, given = model(head=classify()), bag()
    output = made(given.to(dtype=dtype))
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.logits, made(given).logits, rtol=0, atol=0.05)
    assert made.double()(given).logits.dtype == torch.float64


HEADS: dict[str, Callable[[], Head | None]] = {
    "none": lambda: None,
    "classification": classify,
    "survival": lambda: SurvivalHead(4, bins=3),
    "segmentation": lambda: SegmentationHead(4, ("a", "b")),
    "regression": lambda: RegressionHead(4),
}
BODIES: dict[str, Callable[[], Any]] = {
    "mean": lambda: MeanPooling(DIM, 4),
    "max": lambda: MaxPooling(DIM, 4),
    "abmil": lambda: ABMIL(DIM, 4, 3),
}


@pytest.mark.parametrize("selects", [False, True])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("body", BODIES)
def test_packed_slides_give_the_same_as_one_by_one(body: str, head: str, selects: bool) -> None:
    selector = Some([0, 2]) if selects else None
    made = model(BODIES[body](), HEADS[head](), selector=selector)
    bags = [bag(n, seed=n) for n in (3, 9, 4)]
    packed, singles = made.forward_packed(BagBatch.pack(bags)), [made(b) for b in bags]
    for name in ("logits", "hazards", "risk", "value", "embedding", "instance_logits", "scores"):
        values = [getattr(single, name) for single in singles]
        found = getattr(packed, name)
        if values[0] is None:
            assert found is None
            continue
        join = torch.cat if name in ("instance_logits", "scores") else torch.stack
        torch.testing.assert_close(found, join(values), rtol=0, atol=1e-6)
    assert packed.offsets.tolist() == [0, 3, 12, 16]
    expected = [0, 2, 3, 5, 12, 14] if selects else None
    assert (None if packed.kept is None else packed.kept.tolist()) == expected
    for own, single in zip(unstacked(packed, [3, 9, 4]), singles, strict=True):
        for name in ("logits", "hazards", "risk", "value", "embedding", "instance_logits", "kept"):
            parted, alone = getattr(own, name), getattr(single, name)
            assert (parted is None) == (alone is None), name
            if alone is not None:
                torch.testing.assert_close(parted, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("selector", [None, Some([1, 3])])
def test_scores_are_computed_when_somebody_asks_and_once(selector: Selector | None) -> None:
    body = Counted()
    made = model(body, classify(), selector=selector)
    output = made(bag())
    packed = made.forward_packed(BagBatch.pack([bag(), bag(7)]))
    assert body.calls == 0
    assert output.scores.shape == (5,) and output.scores is output.scores
    assert body.calls == 1
    assert packed.scores.shape == (12,) and body.calls == 3


def test_scores_are_aligned_with_the_bag_that_was_passed_in() -> None:
    made, given = model(selector=Some([1, 4])), bag()
    output = made(given)
    alone = model()(given.subset(torch.tensor([1, 4])))
    assert output.kept.tolist() == [1, 4]
    assert output.scores[[0, 2, 3]].tolist() == [0, 0, 0]
    torch.testing.assert_close(output.scores[[1, 4]], alone.scores)


def test_scores_stay_aligned_when_a_selector_only_reorders() -> None:
    order = [4, 3, 2, 1, 0]
    expected = model()(bag()).scores
    torch.testing.assert_close(model(selector=Some(order))(bag()).scores, expected)


def test_a_selector_that_names_other_patches_than_it_hands_on_is_refused() -> None:
    message = r"the selector of 'm' names 2 patches and hands on 5: index=None means all"
    with pytest.raises(PluginError, match=message):
        model(selector=Some([1, 4], everything=True))(bag())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_half_precision_features_are_checked_by_one_sum(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, looks = model(), "wsizoo.bag_checks._refuse_not_finite"
    monkeypatch.setattr(looks, lambda bag: pytest.fail("looked closer"))
    features = torch.full((9, DIM), 6e4).to(dtype)
    made(Bag(features))
    made.forward_packed(BagBatch.pack([Bag(features), Bag(features)]))


def test_a_slide_of_a_batch_that_is_not_finite_is_named() -> None:
    bad = with_nan(float("nan")).replace(slide_id="A2")
    with pytest.raises(BagError, match="slide 'A2': 1 of 5 patches have NaN"):
        model().forward_packed(BagBatch.pack([bag(), bad]))


def test_a_recipe_may_choose_the_loss() -> None:
    made = model(head=SurvivalHead(4, bins=1))
    bags = [bag(n, seed=n, target={"time": 10.5 * n, "event": n % 2}) for n in (3, 5, 8)]
    batch = BagBatch.pack(bags)

    def cox(raw: Tensor, targets: Any) -> dict[str, Tensor]:
        order = targets["time"].argsort(descending=True)
        risk, event = raw[order, 0], targets["event"][order]
        partial = (risk - risk.logcumsumexp(0)) * event
        return {"cox": -partial.sum() / event.sum(), "small": 0.01 * raw.square().mean()}

    terms = made.losses(made.forward_packed(batch), batch, task_loss=cox)
    assert set(terms) == {"cox", "small"} and float(terms["cox"].detach()) > 0


def test_a_headless_model_gives_an_embedding_and_no_loss() -> None:
    output = model()(bag())
    assert output.logits is None and output.embedding.shape == (4,)
    with pytest.raises(DataError, match=r"'m' has no head, so no loss\. Give it one: head=classif"):
        model().losses(output, bag(target={"label": 0}))


def test_per_patch_values_are_never_slide_logits() -> None:
    output = model(head=SegmentationHead(4, ("a", "b")))(bag())
    assert output.logits is None and output.instance_logits.shape == (5, 2)


def test_the_loss_of_a_batch_is_the_mean_of_its_slides() -> None:
    made = model(head=classify())
    bags = [bag(n, seed=n, target={"label": n % 2}) for n in (3, 8)]
    batch = BagBatch.pack(bags)
    together = made.losses(made.forward_packed(batch), batch)["task"]
    each = [made.losses(made(b), b)["task"] for b in bags]
    torch.testing.assert_close(together, torch.stack(each).mean())


def test_a_model_knows_where_and_what_it_is() -> None:
    made = model(head=classify())
    assert (made.device.type, made.dtype, made.reads) == ("cpu", torch.float32, "features")
    assert made.classes == ["a", "b"] and made.trained is False
    bare = model(Pixels(3, 3))
    assert (bare.device.type, bare.dtype, bare.reads) == ("cpu", torch.float32, "pixels")


def test_what_is_published_is_named_by_part() -> None:
    made = model(head=classify(), selector=Some([0]))
    assert {name.partition(".")[0] for name in made.inference_state()} == {"aggregator", "head"}
    assert set(made.inference_state(only=["head"])) == {"head.linear.weight", "head.linear.bias"}


def test_an_aggregator_that_returns_a_tensor_is_told_what_to_return() -> None:
    model = wsizoo.build("abmil-uni", "head.classes=[a,b]", "encoder.dim=4")
    assert model.aggregator is not None
    model.aggregator.forward = lambda bag: bag.features.mean(0)  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=r"returned a Tensor, expected wsizoo\.Aggregated\(slide"):
        model(Bag(torch.ones(3, 4)))
