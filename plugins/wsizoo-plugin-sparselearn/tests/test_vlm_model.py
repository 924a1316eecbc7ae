"""SlideVLM: what the language model is shown, what it says, and what each padding would spoil."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from wsizoo_plugin_sparselearn.vlm import choices
from wsizoo_plugin_sparselearn.vlm.batches import evenly, padded
from wsizoo_plugin_sparselearn.vlm.choices import asked, option_scores
from wsizoo_plugin_sparselearn.vlm.projector import Projector, position_code
from wsizoo_plugin_sparselearn.vlm.slide_vlm import SlideVLM
from wsizoo_plugin_sparselearn.vlm.tiny import CHAT, KINDS, WORDS, bag, language_model

from wsizoo import Selected, Selector
from wsizoo.errors import BagError, DataError, SpecError
from wsizoo.testing import conformance

QUESTION, OPTIONS = "which pattern is seen ?", ("ring", "sheet", "cord", "gland")
PROMPT = f"<image>\n{QUESTION}"


class FirstK(Selector):
    """Eval: the k rows of largest first feature; training: all of them, gated."""

    def __init__(self, in_dim: int, k: int = 3) -> None:
        super().__init__(in_dim)
        self.k = k
        self.score = torch.nn.Linear(in_dim, 1)
        self.calls = 0

    def forward(self, bag: Any) -> Selected:
        self.calls += 1
        scores = self.score(bag.features)[:, 0]  # (N,)
        if self.training:
            gated = bag.features * scores.sigmoid()[:, None]
            return Selected(
                bag.replace(features=gated), None, scores, losses={"few": scores.mean() ** 2}
            )
        index = scores.topk(min(self.k, len(bag))).indices.sort().values  # (K,)
        return Selected(bag.subset(index), index, scores)


def vlm(kind: str = "llama", chat: str | None = None, seed: int = 0, **more: Any) -> SlideVLM:
    torch.manual_seed(seed)
    return SlideVLM(8, language_model(kind, chat), **more).eval()


def test_the_slide_stands_where_the_placeholder_stood() -> None:
    model, slide = vlm(), bag()
    shown = model.shown(slide).tokens
    row = model.text.prompt([(PROMPT, None)])
    x = model.embedded(row, shown)
    at = row.index(-200)
    words = model.lm.get_input_embeddings().weight
    assert x.shape == (len(row) - 1 + len(slide), 32)
    assert torch.equal(x[at : at + len(slide)], shown)
    assert torch.equal(x[:at], words[row[:at]])
    assert torch.equal(x[at + len(slide) :], words[row[at + 1 :]])


@pytest.mark.parametrize("kind", KINDS)
def test_answers_in_a_batch_are_those_of_each_row_alone(kind: str) -> None:
    model = vlm(kind)
    bags = [bag(2, seed=1), bag(9, seed=2), None, bag(5, seed=3)]
    asked = [PROMPT, "<image>\nis ring seen ?", PROMPT, [(PROMPT, "ring"), ("where ?", None)]]
    alone = [model.generate(b, a, 8) for b, a in zip(bags, asked, strict=True)]
    assert model.generate_all(bags, asked, 8) == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_of_rows_padded_on_either_side_are_those_of_each_alone(kind: str) -> None:
    model = vlm(kind)
    rows = [torch.randn(n, 32) for n in (3, 7)]
    alone = [model.lm(inputs_embeds=row[None]).logits[0] for row in rows]
    for left in (False, True):
        x, mask, places = padded(rows, left)
        found = model.lm(inputs_embeds=x, attention_mask=mask, position_ids=places).logits
        for i, row in enumerate(rows):
            own = found[i, -len(row) :] if left else found[i, : len(row)]
            torch.testing.assert_close(own, alone[i], rtol=1e-4, atol=1e-4)
    if kind == "gpt2":  # its places are learned: without them, the padded row is another
        x, mask, _ = padded(rows, True)
        off = model.lm(inputs_embeds=x, attention_mask=mask).logits[0, -3:] - alone[0]
        assert float(off.abs().max()) > 1e-2


def test_generation_is_the_likeliest_token_after_each_other() -> None:
    model, slide = vlm(), bag()
    x = model.embedded(model.text.prompt([(PROMPT, None)]), model.shown(slide).tokens)
    said: list[int] = []
    for _ in range(6):
        best = int(model.lm(inputs_embeds=x[None]).logits[0, -1].argmax())
        if best in model.text.stops():
            break
        said.append(best)
        x = torch.cat([x, model.embedded([best], None)])
    assert model.generate(slide, PROMPT, 6) == model.text.decode(said)
    assert said


def test_generation_stops_at_the_templates_end_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, slide = vlm(chat=CHAT), bag()
    first = model.generate(slide, PROMPT, 1)
    monkeypatch.setattr(model.text, "stops", lambda: [WORDS.index(first)])
    assert model.generate(slide, PROMPT, 8) == ""


@torch.no_grad()
@pytest.mark.parametrize("scoring", ["letter", "sum", "mean", "per-character", "pmi"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_same_without_a_cache(kind: str, scoring: str) -> None:
    model, slide = vlm(kind), bag()
    options = ("ring . yes", "ring", "cord sheet", "gland no no")
    told = (model, model.shown(slide).tokens, QUESTION, options, scoring)
    torch.testing.assert_close(
        option_scores(*told), option_scores(*told, cache=False), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_scores_are_log_p_of_the_continuation() -> None:
    model, slide = vlm(), bag()
    tokens = model.shown(slide).tokens
    options = ("ring . yes", "cord sheet")
    by_hand = []
    for option in options:
        row = model.text.prompt([(PROMPT, None)]) + [WORDS.index(w) for w in option.split()]
        log_p = model.lm(inputs_embeds=model.embedded(row, tokens)[None]).logits[0].log_softmax(-1)
        n = len(option.split())
        by_hand.append(sum(float(log_p[i - n - 1, row[i - n]]) for i in range(n)))
    found = model.answer_scores(slide, PROMPT, options)
    torch.testing.assert_close(found, torch.tensor(by_hand), rtol=1e-4, atol=1e-4)
    mean = model.choose(slide, QUESTION, options, "mean")
    torch.testing.assert_close(mean.scores, found / torch.tensor([3, 2]))
    assert (mean.text, mean.index) == (options[mean.index], int(mean.scores.argmax()))
    each = model.choose(slide, QUESTION, options, "per-character").scores
    torch.testing.assert_close(each, found / torch.tensor([10, 10]))
    blind = model.answer_scores(None, PROMPT, options)
    pmi = model.choose(slide, QUESTION, options, "pmi").scores
    torch.testing.assert_close(pmi, found - blind, rtol=1e-4, atol=1e-4)


def test_the_letter_is_scored_after_the_options_that_it_names() -> None:
    model, slide = vlm(), bag()
    said = "<image>\nwhich pattern is seen ?\nA. ring\nB. sheet\nC. cord\nD. gland"
    assert asked(QUESTION, OPTIONS) == said
    choice = model.choose(slide, QUESTION, OPTIONS)
    x = model.embedded(model.text.prompt([(said, None)]), model.shown(slide).tokens)
    log_p = model.lm(inputs_embeds=x[None]).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(choice.scores, log_p[[WORDS.index(w) for w in "ABCD"]])
    assert choice.text == OPTIONS[int(choice.scores.argmax())]


def test_a_question_may_say_where_the_slide_stands() -> None:
    assert asked("is <image> ring ?") == "is <image> ring ?"


@pytest.mark.parametrize(
    ("options", "scoring", "error", "match"),
    [
        (["ring"], "letter", DataError, "a choice needs 2 or more answers, got"),
        (["one", "six", "ten"], "sum", DataError, "'one', 'six', 'ten' are the same tokens"),
        (["one", ""], "sum", DataError, r"an empty answer among \['one', ''\]"),
        (["one"] * 27, "letter", DataError, "there are 27 options and 26 letters"),
        (["one", "two"], "best", SpecError, "scoring is 'best', expected letter, sum, mean"),
    ],
)
def test_options_that_cannot_be_told_apart(
    options: list[str], scoring: str, error: Any, match: str
) -> None:
    with pytest.raises(error, match=match):
        vlm().choose(bag(), QUESTION, options, scoring)


def test_pmi_needs_a_slide() -> None:
    with pytest.raises(DataError, match="'pmi' compares with and without a slide"):
        vlm().choose(None, QUESTION, OPTIONS, "pmi")


def test_the_cache_is_copied_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    model, slide = vlm(), bag()
    options = ("ring . yes", "cord sheet", "gland no no")
    first = model.answer_scores(slide, PROMPT, options)
    monkeypatch.setattr(choices.copy, "deepcopy", lambda cache: cache)
    with pytest.raises((RuntimeError, AssertionError, ValueError)):
        # one cache for all grows in place: the mask no longer fits, or the scores are others
        torch.testing.assert_close(model.answer_scores(slide, PROMPT, options), first)


def test_the_loss_is_the_cross_entropy_of_the_labelled_tokens() -> None:
    model, slides = vlm(), [bag(4, seed=1), bag(7, seed=2)]
    talks = [[(PROMPT, "ring . yes")], [(PROMPT, "no"), ("where ?", "A .")]]
    terms = []
    for slide, talk in zip(slides, talks, strict=True):
        row = model.text.answered(talk)
        at, tokens = row.ids.index(-200), model.shown(slide).tokens
        labels = row.labels[:at] + [-100] * len(tokens) + row.labels[at + 1 :]
        logits = model.lm(inputs_embeds=model.embedded(row.ids, tokens)[None]).logits[0]
        target = torch.tensor(labels[1:])
        terms.append(
            F.cross_entropy(logits[:-1][target >= 0], target[target >= 0], reduction="none")
        )
    assert [len(term) for term in terms] == [4, 5]
    found = model.conversation_losses(slides, talks)
    torch.testing.assert_close(found["answers"], torch.cat(terms).mean(), rtol=1e-4, atol=1e-4)
    assert set(found) == {"answers"}


def test_a_conversation_with_nothing_to_learn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vlm()
    from wsizoo_plugin_sparselearn.vlm.text import Row, Text

    with pytest.raises(DataError, match="no answer to learn from: its loss would be NaN"):
        Text._checked(model.text, Row([1, 2], [-100, -100]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_selector_and_projector_through_a_frozen_model(checkpointing: bool) -> None:
    model = vlm(selector=FirstK(8), checkpointing=checkpointing).train()
    losses = model.conversation_losses([bag()], [[(PROMPT, "ring")]])
    assert set(losses) == {"answers", "few"}
    sum(losses.values()).backward()
    for part in (model.selector, model.projector):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in model.lm.parameters())


def test_training_shows_all_patches_and_eval_the_selected_ones() -> None:
    model, slide = vlm(selector=FirstK(8)), bag(9)
    hard = model(slide)
    assert hard.kept.tolist() == sorted(hard.kept.tolist()) and len(hard.kept) == 3
    assert hard.scores.shape == (9,) and torch.equal(hard.scores, hard.selector_scores)
    assert hard.logits is None and hard.embedding.shape == (32,)
    soft = model.train().shown(slide)
    assert soft.kept is None and len(soft.tokens) == 9
    model.selects_hard = True
    assert len(model.train().shown(slide).tokens) == 3
    assert model.projector.training and not model.selector.training


def test_the_sparselearn_selector_gates_in_training_and_only_scores_in_eval() -> None:
    model = vlm(selector={"name": "sparselearn", "k": 3, "warm_up": 0.0})
    calls: list[str] = []
    for name in ("noise_gate", "denoiser"):
        part = getattr(model.selector, name)
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    hard = model(bag(9))
    model.generate(bag(9), PROMPT, 2)
    model.choose(bag(9), QUESTION, OPTIONS)
    assert len(hard.kept) == 3 and calls == []
    model.train().start_training(10, [])
    losses = model.conversation_losses([bag(9)], [[(PROMPT, "ring")]])
    assert calls == ["noise_gate", "denoiser"]
    losses["answers"].backward()
    assert all(p.grad is None for p in model.projector.parameters())  # it learns alone
    assert any(p.grad.abs().sum() > 0 for p in model.selector.scorer.parameters())
    assert not model.ready


def test_places_are_those_in_the_whole_slide() -> None:
    slide = bag(9)
    model = vlm(selector=FirstK(8))
    kept = model.shown(slide).kept
    code = position_code(slide.coords)[kept]
    expected = model.projector(slide.features[kept], code, torch.float32)
    assert torch.equal(model.shown(slide).tokens, expected)


def test_a_position_is_told_within_the_box_of_the_slide() -> None:
    code = position_code(torch.tensor([[100, 50], [300, 50], [200, 50]]))
    half = [0.5, 0.0, 1.0, 0.0, 0.0, 1.0]
    expected = torch.tensor([[0.0, 0, 0, 0, 1, 1], [1, 0, 0, 0, -1, 1], half])
    torch.testing.assert_close(code, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_too_many_patches_are_taken_at_even_distances(training: bool) -> None:
    model = vlm(limit=5, train_limit=3).train(training)
    slide = bag(9)
    output = model(slide)
    assert output.kept.tolist() == ([0, 4, 8] if training else [0, 2, 4, 6, 8])
    assert evenly(4, 4, torch.device("cpu")) is None


def test_the_limit_of_training_holds_before_a_soft_selector_and_not_before_a_hard_one() -> None:
    model = vlm(selector=FirstK(8, k=4), train_limit=3, limit=2)
    assert len(model.shown(bag(9)).tokens) == 4
    soft = model.train().shown(bag(9))
    assert soft.kept.tolist() == [0, 4, 8] and soft.scores.shape == (9,)
    assert soft.scores[[1, 2, 3, 5, 6, 7]].abs().sum() == 0


def test_a_question_of_its_own_makes_it_a_classifier() -> None:
    model = vlm(question=QUESTION, options=OPTIONS, selector=FirstK(8))
    slide = bag(target={"label": 2})
    output = model(slide)
    assert model.classes == OPTIONS
    torch.testing.assert_close(output.logits, model.choose(slide, QUESTION, OPTIONS).scores)
    model.train()
    output = model(slide)
    losses = model.losses(output, [slide])
    torch.testing.assert_close(
        losses["task"], F.cross_entropy(output.logits[None], torch.tensor([2]))
    )
    sum(losses.values()).backward()
    assert model.selector.score.weight.grad.abs().sum() > 0


def test_labels_teach_nothing_without_a_question() -> None:
    model = vlm()
    with pytest.raises(DataError, match="asks no question of its own, so labels teach it nothing"):
        model.losses(model(bag()), [bag()])


def test_asking_puts_every_mode_back() -> None:
    model = vlm(selector=FirstK(8)).train()
    model.projector.eval()
    text = model.generate(bag(9), PROMPT, 4)
    model.choose(bag(9), QUESTION, OPTIONS)
    assert model.training and model.selector.training and not model.projector.training
    assert text == model.eval().generate(bag(9), PROMPT, 4)


def test_a_step_of_the_selector_alone_leaves_the_rest_without_gradients() -> None:
    class Alone(FirstK):
        def forward(self, bag: Any) -> Selected:
            selected = super().forward(bag)
            selected.alone = True
            return selected

    model = vlm(selector=Alone(8), lora={"r": 2}).train()
    sum(model.conversation_losses([bag()], [[(PROMPT, "ring")]]).values()).backward()
    assert model.selector.score.weight.grad.abs().sum() > 0
    others = [p for n, p in model.named_parameters() if not n.startswith("selector.")]
    assert all(p.grad is None for p in others)
    assert any(p.requires_grad for p in model.lm.parameters())


def test_weights_of_a_selector_count_in_the_tokens() -> None:
    class Half(FirstK):
        def forward(self, bag: Any) -> Selected:
            selected = super().forward(bag)
            selected.weights = torch.full((len(selected.bag),), 0.5)
            return selected

    model, slide = vlm(selector=Half(8)), bag(9)
    kept = model.shown(slide).kept
    code = position_code(slide.coords)[kept]
    expected = model.projector(0.5 * slide.features[kept], code, torch.float32)
    assert torch.equal(model.shown(slide).tokens, expected)


def test_lora_learns_beside_a_frozen_base() -> None:
    model = vlm(lora={"r": 2, "targets": ["q_proj", "v_proj"]}).train()
    learning = {n for n, p in model.lm.named_parameters() if p.requires_grad}
    assert len(learning) == 8 and all("lora_" in name for name in learning)
    model.conversation_losses([bag()], [[(PROMPT, "ring")]])["answers"].backward()
    assert all(p.grad is not None for p in model.lm.parameters() if p.requires_grad)
    lrs = [group["lr"] for group in model.param_groups(2e-5)]
    assert lrs == pytest.approx([2e-5, 2e-4])
    assert model.eval().generate(bag(), PROMPT, 4) == vlm().generate(bag(), PROMPT, 4)


def test_lora_names_layers_that_are_there() -> None:
    with pytest.raises(SpecError, match=r"names q_proj, .* a GPT2LMHeadModel does not"):
        vlm("gpt2", lora={})
    assert vlm("gpt2", lora={"targets": ["c_attn"]}).lora.targets == ["c_attn"]
    with pytest.raises(SpecError, match="lora has r=0"):
        vlm(lora={"r": 0})


def test_the_projector_begins_with_the_embeddings_spread_and_ends_in_their_dtype() -> None:
    model = vlm()
    spread = float(model.lm.get_input_embeddings().weight.std())
    assert model.projector.scale.item() == pytest.approx(spread)
    assert model.shown(bag(40)).tokens.std().item() == pytest.approx(spread, rel=0.05)
    model.lm.to(torch.bfloat16)
    assert model.shown(bag()).tokens.dtype is torch.bfloat16
    assert model.projector.scale.dtype is torch.float32
    assert isinstance(model.generate(bag(), PROMPT, 3), str)


def test_projectors_as_published_and_their_mistakes() -> None:
    plain = Projector(8, 32, 0.1, kind="linear", positions=False, norm=False)
    assert [tuple(p.shape) for p in plain.parameters()] == [(32, 8), (32,)]
    mlp = Projector(8, 32, 0.1, hidden=5)
    assert mlp.layers[0].weight.shape == (5, 14)
    with pytest.raises(SpecError, match=r"projector.kind is 'conv', expected mlp2x_gelu or linear"):
        Projector(8, 32, 0.1, kind="conv")
    with pytest.raises(SpecError, match="a linear projector has none"):
        Projector(8, 32, 0.1, kind="linear", hidden=4)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"coords": None}, "slide 'slide-0' has no coords; .* projector.positions=false"),
        ({"features": torch.ones(6, 5)}, r"has features \(6, 5\), expected \(N, 8\)"),
        ({"features": torch.full((6, 8), torch.nan)}, "has NaN or infinite features"),
        ({"features": torch.ones(0, 8), "coords": None}, "has no patches"),
    ],
)
def test_slides_that_cannot_be_shown(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(BagError, match=match):
        vlm().generate(bag().replace(**changes), PROMPT)


def test_without_positions_no_coords_are_needed() -> None:
    model = vlm(projector={"positions": False})
    assert not model.uses_coords
    moved = bag().replace(coords=bag().coords.flip(0))
    assert torch.equal(model(bag()).embedding, model(bag().replace(coords=None)).embedding)
    assert torch.equal(model(bag()).embedding, model(moved).embedding)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"question": "where ?"}, "a question of its own needs options"),
        ({"options": ["a", "b"]}, "and options a question"),
        ({"scoring": "luck"}, "scoring is 'luck', expected letter"),
        ({"train_limit": 0}, "train_limit is 0, expected 1 or more"),
        ({"selector": {"k": 3}}, r"selector \{'k': 3\} has no name"),
        ({"lora": {"rank": 3}}, r"lora: unknown field 'rank'"),
    ],
)
def test_arguments_that_do_not_fit(more: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        vlm(**more)


@conformance(SlideVLM, kind="model")
def test_it_conforms(check: Callable[[], None]) -> None:
    check()


def test_a_name_of_a_language_model_says_where_to_find_one() -> None:
    assert SlideVLM(8, "tiny").base.base is None
    with pytest.raises(SpecError, match=r"lm is 'qwen', expected \{repo: owner/name, .* or tiny"):
        SlideVLM(8, "qwen")
