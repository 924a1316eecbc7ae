"""The interfaces, and stand-ins which prove that they carry the methods that plugins will bring."""

import copy
import dataclasses
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsizoo.bag import Bag, BagBatch
from wsizoo.errors import PluginError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import (
    Aggregated,
    Aggregator,
    Encoder,
    Part,
    Prediction,
    Selected,
    Selector,
    SlideOutput,
    WholeModel,
)
from wsizoo.mil.abmil import ABMIL
from wsizoo.mil.heads import ClassificationHead, SegmentationHead, SurvivalHead
from wsizoo.mil.pooling import MeanPooling
from wsizoo.model import SlideModel
from wsizoo.objectives import training_losses
from wsizoo.spec import ModelSpec
from wsizoo.testing import check_component
from wsizoo.train.loop import fit

SPEC = ModelSpec(summary="s", licence="MIT", source="x")
DIM = 6


def model(aggregator: Aggregator | None = None, **parts: Any) -> SlideModel:
    in_dim = parts.pop("in_dim", DIM)
    return SlideModel("m", SPEC, in_dim, aggregator=aggregator, **parts)


def bag(n: int = 8, seed: int = 0, **fields: Any) -> Bag:
    features = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    cells = torch.stack([torch.arange(n) % 4, torch.arange(n) // 4], 1)
    given = {"coords": cells * 224, "spacing": 224.0, "slide_id": f"s{seed}", "mpp": 0.5}
    return Bag(features, **{**given, **fields})


def filled(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


class TestLazyScores:
    """`scores` may be a function, which is called when somebody asks, and once."""

    @pytest.mark.parametrize("kind", [Aggregated, SlideOutput])
    def test_it_is_called_once_and_only_on_access(self, kind: Any) -> None:
        calls = []

        def scores() -> Tensor:
            calls.append(1)
            return torch.ones(3)

        output = kind(scores=scores)
        assert calls == []
        assert output.scores is output.scores
        assert calls == [1]

    @pytest.mark.parametrize("value", [None, torch.zeros(2)])
    def test_a_plain_value_stays_as_it_is(self, value: Tensor | None) -> None:
        assert Aggregated(scores=value).scores is value

    @pytest.mark.parametrize("kind", [Aggregated, SlideOutput])
    def test_it_is_called_without_gradients_and_before_pickling(self, kind: Any) -> None:
        weight = torch.ones(3, requires_grad=True)
        assert not filled(kind(scores=lambda: weight * 2).scores).requires_grad
        again = pickle.loads(pickle.dumps(kind(scores=lambda: weight * 2)))
        assert again.scores.tolist() == [2.0, 2.0, 2.0]
        assert copy.deepcopy(kind(scores=lambda: weight + 1)).scores.tolist() == [2.0] * 3

    def test_a_model_wraps_only_what_is_late(self) -> None:
        for selector in (None, SoftSelector(DIM)):
            prompt = model(ABMIL(DIM, 4, 3), selector=selector).eval()
            late = model(MeanPooling(DIM, 4), selector=selector).eval()
            bags = BagBatch.pack([bag(3), bag(4)])
            assert not callable(prompt(bag()).scores_given)
            assert not callable(prompt.forward_packed(bags).scores_given)
            assert callable(late(bag()).scores_given)
            assert callable(late.forward_packed(bags).scores_given)
            restored = pickle.loads(pickle.dumps(late.forward_packed(bags)))
            assert restored.scores.shape == (7,)

    def test_unused_fields_are_none(self) -> None:
        for output in (Aggregated(), SlideOutput()):
            fields = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
            assert fields.pop("task_weight") == 1
            assert {k: v for k, v in fields.items() if v not in (None, {})} == {}

    def test_two_outputs_do_not_share_their_dictionaries(self) -> None:
        assert Aggregated().losses is not Aggregated().losses


class TestPart:
    """What a part tells the trainer unless it says otherwise."""

    def test_only_trainable_parameters_are_grouped(self) -> None:
        part = MeanPooling(4, 3)
        part.get_parameter("embed.0.bias").requires_grad_(False)
        (group,) = part.param_groups(0.1)
        assert group["lr"] == 0.1
        assert [p.shape for p in group["params"]] == [(3, 4)]

    def test_what_is_published_is_the_state(self) -> None:
        part = MeanPooling(4, 3)
        assert list(part.inference_state()) == list(part.state_dict())
        part.start_training(10, [])
        part.after_step(1, 10)

    @pytest.mark.parametrize("base", [Encoder(), Selector(3), Aggregator(3, 3)])
    def test_a_base_class_does_no_work(self, base: Part) -> None:
        with pytest.raises(NotImplementedError):
            base(torch.zeros(1))

    def test_an_encoder_states_its_fingerprint_at_the_scale_asked_for(self) -> None:
        class Mine(Encoder):
            name, dim, mpp, patch_size = "mine", 4, 0.5, 224
            pooling, revision = "cls", "v1"

        own = Mine().fingerprint()
        assert own == Fingerprint("mine", "v1", None, "none", "cls", 0.5, 224)
        assert Mine().fingerprint(1.0, 112).mpp == 1.0
        assert Mine().fingerprint(1.0, 112).patch_size == 112


class TeacherStudent(Aggregator):
    """A student that follows its own moving average (an EMA teacher) while it trains."""

    def __init__(self, in_dim: int, dim: int = 4) -> None:
        super().__init__(in_dim, dim)
        self.student = nn.Linear(in_dim, dim)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("momentum", torch.zeros(()))

    def forward(self, bag: Bag) -> Aggregated:
        slide = self.student(bag.features).mean(0)
        if not self.training:
            return Aggregated(slide)
        target = self.teacher(bag.features).mean(0)
        return Aggregated(slide, losses={"agreement": (slide - target).square().mean()})

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        self.momentum.fill_(0.9)  # type: ignore[operator]

    def after_step(self, step: int, total_steps: int) -> None:
        with torch.no_grad():
            for own, other in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                own.lerp_(other, 1 - float(self.momentum))  # type: ignore[arg-type]

    def inference_state(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.state_dict().items() if k.startswith("student")}


def test_a_teacher_follows_its_student_and_is_not_published() -> None:
    aggregator = TeacherStudent(DIM)
    made = model(aggregator, head=ClassificationHead(4, ("a", "b")))
    before = {k: v.clone() for k, v in aggregator.state_dict().items()}
    fit(made, [bag(seed=i, target={"label": i % 2}) for i in range(4)], epochs=1, lr=0.1)
    after = aggregator.state_dict()
    for name in ("weight", "bias"):
        moved = (after[f"student.{name}"] - before[f"student.{name}"]).abs().max()
        followed = (after[f"teacher.{name}"] - before[f"teacher.{name}"]).abs().max()
        assert 0 < followed < moved
    assert float(after["momentum"]) == pytest.approx(0.9)
    published = made.inference_state()
    assert sorted(published) == [
        "aggregator.student.bias",
        "aggregator.student.weight",
        "head.linear.bias",
        "head.linear.weight",
    ]
    assert published["aggregator.student.bias"].data_ptr() == aggregator.student.bias.data_ptr()


def test_auxiliary_losses_are_there_in_training_only() -> None:
    made = model(TeacherStudent(DIM), head=ClassificationHead(4, ("a", "b")))
    one = bag(target={"label": 1})
    assert set(made.train().losses(made(one), one)) == {"task", "agreement"}
    assert set(made.eval().losses(made(one), one)) == {"task"}


class SoftSelector(Selector):
    """All patches, weighed by their scores, in training; the best half of them in eval."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.scorer = nn.Linear(in_dim, 1)

    def forward(self, bag: Bag) -> Selected:
        scores = torch.sigmoid(self.scorer(bag.features))[:, 0]  # (N,)
        if self.training:
            losses = {"budget": (scores.mean() - 0.5).square()}
            return Selected(
                bag.replace(features=bag.features * scores[:, None]), None, scores, losses
            )
        index = scores.topk(max(1, len(bag) // 2)).indices.sort().values  # (K,)
        return Selected(bag.subset(index), index, scores)


class TestSelector:
    """A selector that learns from all patches and keeps some."""

    def make(self) -> SlideModel:
        torch.manual_seed(0)
        return model(
            MeanPooling(DIM, 4), head=ClassificationHead(4, ("a", "b")), selector=SoftSelector(DIM)
        )

    def test_gradients_reach_its_scorer(self) -> None:
        made, one = self.make().train(), bag(target={"label": 1})
        terms = made.losses(made(one), one)
        assert set(terms) == {"task", "budget"}
        torch.autograd.backward(terms["task"])
        slope = made.get_parameter("selector.scorer.weight").grad
        assert slope is not None and float(slope.abs().sum()) > 0

    def test_in_training_every_patch_has_a_score(self) -> None:
        output = self.make().train()(bag(8))
        assert output.kept is None and filled(output.scores).shape == (8,)

    def test_in_eval_dropped_patches_score_zero_and_kept_ones_are_named(self) -> None:
        output = self.make().eval()(bag(9))
        kept, scores = filled(output.kept), filled(output.scores)
        assert kept.tolist() == sorted(kept.tolist()) and len(kept) == 4
        dropped = [i for i in range(9) if i not in kept.tolist()]
        assert scores.shape == (9,) and scores[dropped].tolist() == [0] * 5
        assert bool((scores[kept] != 0).all())

    def test_its_own_scores_are_told_and_stand_in_for_missing_ones(self) -> None:
        made = self.make().eval()
        output = made(bag(9))
        wanted = filled(output.selector_scores)
        assert wanted.shape == (9,) and bool((wanted > 0).all())
        assert not torch.equal(wanted, filled(output.scores))
        silent = model(TeacherStudent(DIM), selector=made.selector).eval()
        torch.testing.assert_close(silent(bag(9)).scores, wanted)
        assert model(MeanPooling(DIM, 4))(bag(9)).selector_scores is None
        packed = silent.forward_packed(BagBatch.pack([bag(9), bag(2, seed=1)]))
        assert filled(packed.selector_scores).shape == (11,)

    def test_groups_of_fused_patches_are_aligned_with_all_that_were_passed_in(self) -> None:
        class InPairs(MeanPooling):
            forward_packed = None

            def forward(self, bag: Bag) -> Aggregated:
                return dataclasses.replace(super().forward(bag), groups=torch.arange(len(bag)) // 2)

        made = model(InPairs(DIM, 4), selector=SoftSelector(DIM)).eval()
        output = made(bag(9))
        kept, groups = filled(output.kept), filled(output.groups)
        assert groups[kept].tolist() == [0, 0, 1, 1] and groups.shape == (9,)
        packed = model(InPairs(DIM, 4)).forward_packed(BagBatch.pack([bag(3), bag(2, seed=1)]))
        assert filled(packed.groups).tolist() == [0, 0, 1, 0, 0]

    def test_a_batch_falls_back_to_one_by_one(self) -> None:
        made, bags = self.make().eval(), [bag(n, seed=n) for n in (3, 8, 1)]
        packed, singles = made.forward_packed(BagBatch.pack(bags)), [made(b) for b in bags]
        torch.testing.assert_close(packed.logits, torch.stack([filled(s.logits) for s in singles]))
        torch.testing.assert_close(packed.scores, torch.cat([filled(s.scores) for s in singles]))
        starts = [0, 3, 11]
        kept = [filled(s.kept) + a for s, a in zip(singles, starts, strict=True)]
        assert torch.equal(filled(packed.kept), torch.cat(kept))

    def test_it_trains_in_the_loop(self) -> None:
        bags = [bag(seed=i, target={"label": i % 2}) for i in range(4)]
        history = fit(self.make(), bags, epochs=20, lr=0.02)
        assert history.losses[-1] < history.losses[0]


class PixelReader(Aggregator):
    """Reads regions of a slide, not features."""

    reads = "pixels"

    def __init__(self, in_dim: int, dim: int = 4) -> None:
        super().__init__(in_dim, dim)
        self.conv = nn.Conv2d(in_dim, dim, 3, padding=1)

    def forward(self, bag: Bag) -> Aggregated:
        pixels = bag.features.to(self.conv.weight.dtype) / 255  # (N, 3, H, W)
        instances = self.conv(pixels).mean((2, 3))  # (N, E)
        return Aggregated(instances.mean(0), instances.norm(dim=1), instances)


def test_an_aggregator_may_read_pixels() -> None:
    made = model(PixelReader(3), head=ClassificationHead(4, ("a", "b")), in_dim=3)
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    one = Bag(pixels, target={"label": 0})
    output = made(one)
    assert filled(output.logits).shape == (2,) and filled(output.scores).shape == (5,)
    assert len(fit(made, [one], epochs=2).losses) == 2


class PatchLabeller(Aggregator):
    """Owns its classifier and gives one row of logits a patch."""

    owns_classifier = True
    classifier_tensors = ("classify.weight", "classify.bias")

    def __init__(self, in_dim: int, n_outputs: int) -> None:
        super().__init__(in_dim, in_dim)
        self.classify = nn.Linear(in_dim, n_outputs)

    def forward(self, bag: Bag) -> Aggregated:
        return Aggregated(bag.features.mean(0), instance_logits=self.classify(bag.features))


def test_an_aggregator_may_own_per_patch_logits() -> None:
    made = model(PatchLabeller(DIM, 3), head=SegmentationHead(None, ("a", "b", "c")))
    labels = torch.tensor([0, 1, 2, -1, 0, 1, 2, -1])
    one = bag(8, target={"instances": labels})
    output = made(one)
    assert output.logits is None and filled(output.instance_logits).shape == (8, 3)
    expected = nn.functional.cross_entropy(filled(output.instance_logits), labels, ignore_index=-1)
    torch.testing.assert_close(made.losses(output, one)["task"], expected)
    history = fit(made, [one], epochs=30, lr=0.1)
    assert history.losses[-1] < history.losses[0]


def test_per_patch_logits_of_a_subset_are_aligned_with_the_whole() -> None:
    made = model(
        PatchLabeller(DIM, 3),
        head=SegmentationHead(None, ("a", "b", "c")),
        selector=SoftSelector(DIM),
    ).eval()
    output = made(bag(8))
    kept, logits = filled(output.kept), filled(output.instance_logits)
    assert logits.shape == (8, 3)
    zero = [i for i in range(8) if i not in kept.tolist()]
    assert logits[zero].abs().sum().item() == 0 and bool((logits[kept] != 0).all())


class TwoTiers(Aggregator):
    """Pseudo-bags get predictions of their own (tier 1), and their vectors make the slide's."""

    owns_classifier = True
    classifier_tensors = ("first.weight", "first.bias", "second.weight", "second.bias")

    def __init__(self, in_dim: int, n_outputs: int, groups: int = 2) -> None:
        super().__init__(in_dim, in_dim)
        self.groups = groups
        self.first, self.second = nn.Linear(in_dim, n_outputs), nn.Linear(in_dim, n_outputs)

    def forward(self, bag: Bag) -> Aggregated:
        groups = torch.stack([g.mean(0) for g in bag.features.chunk(self.groups)])  # (G, D)
        slide = groups.mean(0)
        predictions = {"tier1": Prediction(self.first(groups))} if self.training else {}
        return Aggregated(slide, logits=self.second(slide), predictions=predictions)


class DualStream(Aggregator):
    """A classifier of patches, the best of which attends to all others: two streams of logits."""

    owns_classifier = True
    gives_instances = True
    classifier_tensors = ("patch.weight", "patch.bias", "slide.weight", "slide.bias")

    def __init__(self, in_dim: int, n_outputs: int, dim: int = 5) -> None:
        super().__init__(in_dim, dim, instance_dim=in_dim)
        self.embed, self.patch = nn.Linear(in_dim, dim), nn.Linear(in_dim, n_outputs)
        self.slide = nn.Linear(dim, n_outputs)

    def forward(self, bag: Bag) -> Aggregated:
        patches = self.patch(bag.features)  # (N, C)
        best = patches.amax(0)  # (C,)
        weights = torch.softmax(patches.amax(1), 0)  # (N,)
        slide = weights @ torch.tanh(self.embed(bag.features))  # (E,)
        predictions = {"patches": Prediction(best, weight=0.5)} if self.training else {}
        return Aggregated(
            slide,
            weights,
            bag.features,
            self.slide(slide),
            patches,
            predictions=predictions,
        )


@pytest.mark.parametrize("maker", [TwoTiers, DualStream, PatchLabeller])
def test_stand_ins_that_own_their_classifier_conform(maker: Any) -> None:
    assert [(r.check, r.reason) for r in check_component(maker) if not r.passed] == []


def test_patch_logits_stand_beside_those_of_the_slide() -> None:
    aggregator = DualStream(DIM, 2)
    assert (aggregator.out_dim, aggregator.instance_dim) == (5, DIM)
    made = model(aggregator, head=ClassificationHead(None, ("a", "b")), selector=SoftSelector(DIM))
    output = made.eval()(bag(8))
    logits, kept = filled(output.instance_logits), filled(output.kept)
    assert filled(output.logits).shape == (2,) and logits.shape == (8, 2)
    dropped = [i for i in range(8) if i not in kept.tolist()]
    assert logits[dropped].abs().sum().item() == 0
    bags = [bag(n, seed=n) for n in (3, 5)]
    assert filled(made.forward_packed(BagBatch.pack(bags)).instance_logits).shape == (8, 2)


@pytest.mark.parametrize(
    ("head", "target"),
    [
        (ClassificationHead(None, ("a", "b", "c")), {"label": 2}),
        (SurvivalHead(None, bins=3), {"time": 1, "event": True}),
    ],
)
def test_further_predictions_train_with_the_task_s_loss(head: Any, target: dict[str, Any]) -> None:
    made = model(TwoTiers(DIM, 3), head=head)
    one = bag(target=target)
    assert set(made.eval().losses(made(one), one)) == {"task"}
    output = made.train()(one)
    terms = made.losses(output, one)
    tier = output.predictions["tier1"].logits
    assert tier.shape == (2, 3)
    rows = {name: torch.tensor([int(value)] * 2) for name, value in target.items()}
    torch.testing.assert_close(terms["tier1"], head.loss(tier, rows))
    torch.autograd.backward(terms["tier1"])
    assert made.get_parameter("aggregator.first.weight").grad is not None


def test_further_predictions_of_a_batch_are_averaged_over_its_slides() -> None:
    made = model(TwoTiers(DIM, 3), head=ClassificationHead(None, ("a", "b", "c"))).train()
    bags = [bag(n, seed=n, target={"label": n % 3}) for n in (4, 5, 6)]
    batch = BagBatch.pack(bags)
    packed = made.losses(made.forward_packed(batch), batch)
    singles = [made.losses(made(b), b) for b in bags]
    assert set(packed) == {"task", "tier1/0", "tier1/1", "tier1/2"}
    total = sum(float(term.detach()) for term in packed.values())
    expected = sum(float(term.detach()) for terms in singles for term in terms.values()) / 3
    assert total == pytest.approx(expected, rel=1e-5)


class Neighbours(Aggregator):
    """Adds to each patch its neighbours on the grid; what lies further away cannot matter."""

    uses_coords = True

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim)

    def forward(self, bag: Bag) -> Aggregated:
        cells = bag.require_unique_cells()
        near = (cells[:, None] - cells[None]).abs().amax(-1) <= 1  # (N, N)
        instances = near.to(bag.features.dtype) @ bag.features  # (N, D)
        return Aggregated(instances.mean(0), instances[:, 0], instances)


def test_a_local_method_reads_a_patient_s_slides_as_if_apart() -> None:
    made = model(Neighbours(DIM))
    slides = [bag(8, seed=1), bag(5, seed=2, spacing=224.3, mpp=0.499), bag(1, seed=3)]
    patient = Bag.concat(slides)
    output = made(patient)
    assert patient.parts is not None
    scores = filled(output.scores).tensor_split(patient.parts[1:-1])
    for slide, own in zip(slides, scores, strict=True):
        torch.testing.assert_close(filled(made(slide).scores), own)
    sizes = torch.tensor([8.0, 5.0, 1.0])
    alone = torch.stack([filled(made(slide).embedding) for slide in slides])
    torch.testing.assert_close(output.embedding, (alone * sizes[:, None]).sum(0) / 14)


class Reporter(WholeModel):
    """A whole model: it takes a bag and says what it has to say."""

    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, 2)
        self.classes = ("no", "yes")

    def forward(self, bag: Bag) -> SlideOutput:
        rows = self.linear(bag.features)
        return SlideOutput(logits=rows.mean(0), embedding=rows.mean(0), scores=rows[:, 0])


def test_a_whole_model_answers_for_itself() -> None:
    made = model(whole=Reporter(DIM)).eval()
    bags = [bag(n, seed=n) for n in (3, 5)]
    output = made.forward_packed(BagBatch.pack(bags))
    assert filled(output.logits).shape == (2, 2) and filled(output.scores).shape == (8,)
    assert [name for name, _ in made.parts()] == ["whole"]
    assert sorted(made.inference_state()) == ["whole.linear.bias", "whole.linear.weight"]
    assert made.classes == ["no", "yes"]


class Talkative(Reporter):
    """Has a loss of its own, a further prediction, and a fast way through a batch."""

    def forward(self, bag: Bag) -> SlideOutput:
        output = super().forward(bag)
        assert output.logits is not None
        if self.training:
            output.predictions = {"again": Prediction(output.logits, weight=0.5)}
        return output

    def forward_packed(self, batch: BagBatch) -> SlideOutput:
        rows = self.linear(batch.features)
        logits = torch.stack([r.mean(0) for r in rows.split(batch.lengths.tolist())])
        return SlideOutput(logits=logits, embedding=logits, scores=rows[:, 0])


class Answering(Talkative):
    def losses(self, output: SlideOutput, slides: Any) -> dict[str, Tensor]:
        return training_losses(ClassificationHead(None, self.classes), output, slides)


def test_a_whole_model_states_its_own_losses_or_is_told_to() -> None:
    one = bag(target={"label": 1})
    for maker, told in ((Reporter, "no losses"), (Talkative, "predictions, which need a loss")):
        silent = model(whole=maker(DIM)).train()
        with pytest.raises(PluginError, match=f"{maker.__name__} gives {told}: fill output.losses"):
            silent.losses(silent(one), one)
    made = model(whole=Answering(DIM)).train()
    terms = made.losses(made(one), one)
    assert set(terms) == {"task", "again"}
    assert float(terms["again"].detach()) == pytest.approx(float(terms["task"].detach()) / 2)


def test_a_recipe_gives_a_whole_model_its_loss() -> None:
    made, one = model(whole=Talkative(DIM)).train(), bag(target={"label": 1})

    def loss(raw: Tensor, targets: Any) -> Tensor:
        return nn.functional.cross_entropy(raw, targets["label"])

    assert set(made.losses(made(one), one, task_loss=loss)) == {"task", "again"}


def test_a_whole_model_may_take_a_batch_at_once() -> None:
    made = model(whole=Talkative(DIM)).eval()
    bags = [bag(n, seed=n) for n in (3, 5)]
    packed, singles = made.forward_packed(BagBatch.pack(bags)), [made(b) for b in bags]
    torch.testing.assert_close(packed.logits, torch.stack([filled(s.logits) for s in singles]))
    assert filled(packed.offsets).tolist() == [0, 3, 8]


def test_stand_in_whole_models_conform() -> None:
    failed = [(r.check, r.reason) for r in check_component(Answering, "model") if not r.passed]
    assert failed == []


class Scheduled(Aggregator):
    """Groups of its own, and a record of what the trainer tells it."""

    def __init__(self) -> None:
        super().__init__(DIM, 4)
        self.slow, self.fast = nn.Linear(DIM, 4), nn.Linear(4, 4)
        self.told: list[Any] = []

    def forward(self, bag: Bag) -> Aggregated:
        return Aggregated(self.fast(self.slow(bag.features)).mean(0))

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        return [
            {"params": list(self.slow.parameters()), "lr": base_lr / 10},
            {"params": list(self.fast.parameters()), "lr": base_lr, "weight_decay": 0.0},
            {"params": []},
        ]

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        self.told.append(("start", total_steps, [b.slide_id for b in slides]))

    def after_step(self, step: int, total_steps: int) -> None:
        self.told.append((step, total_steps))


def test_the_trainer_tells_every_part_where_it_is() -> None:
    part = Scheduled()
    made = model(part, head=ClassificationHead(4, ("a", "b")))
    groups = made.param_groups(1.0)
    assert [group["lr"] for group in groups] == [0.1, 1.0, 1.0]
    assert sum(len(group["params"]) for group in groups) == len(list(made.parameters()))
    fit(made, [bag(seed=i, target={"label": i}) for i in range(2)], epochs=3)
    assert part.told == [("start", 6, ["s0", "s1"]), *((step, 6) for step in range(1, 7))]
