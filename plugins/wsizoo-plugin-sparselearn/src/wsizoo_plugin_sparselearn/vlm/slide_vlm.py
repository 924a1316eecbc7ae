"""SlideVLM: patches of a slide, some of them selected, read by a causal language model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wsizoo import Bag, Selected, Selector, SlideOutput, WholeModel
from wsizoo.errors import DataError
from wsizoo.mil.heads import ClassificationHead
from wsizoo.objectives import training_losses
from wsizoo.outputs import aligned
from wsizoo.selection import check_selected
from wsizoo_plugin_sparselearn.vlm import batches, learning
from wsizoo_plugin_sparselearn.vlm.batches import at_least_float32, evenly, padded
from wsizoo_plugin_sparselearn.vlm.choices import Choice, answer_scores, option_scores
from wsizoo_plugin_sparselearn.vlm.language_model import LanguageModel
from wsizoo_plugin_sparselearn.vlm.learning import frozen, in_eval
from wsizoo_plugin_sparselearn.vlm.lora import adapted, lora_state
from wsizoo_plugin_sparselearn.vlm.parts import (
    check_limits,
    check_question,
    made_base,
    made_lora,
    made_projector,
    made_selector,
)
from wsizoo_plugin_sparselearn.vlm.projector import position_code
from wsizoo_plugin_sparselearn.vlm.showing import Shown, check_bag
from wsizoo_plugin_sparselearn.vlm.text import SLIDE, UNLABELLED, Text, Turns

LORA_LR = 10  # times the rate of the rest: 2e-4 and 2e-5 as published


class SlideVLM(WholeModel):
    """Features (N, D) -> selector -> projector -> in place of `<image>` in a conversation.

    Args:
        in_dim: D. lm: which language model, the keys of `Base`; or, for a model that is never
            saved, a `LanguageModel`, or "tiny": one of random weights, for tests.
        selector: of any plugin, `{name: sparselearn, k: 32}`; None: all patches are shown.
        projector: keys of `Projector`. lora: keys of `Lora`, `{}` for its defaults; None: the
            language model stays as it is.
        template: of conversations, see `Text`. A saved model states the one it was trained with.
        question, options: with both the model is a classifier: `classes` are the options, logits
            their scores by `scoring` (`SCORINGS`).
        train_limit: patches shown at most in training where none are left out, at even distances by
            index (10,240 as SlideChat); limit: the same in eval (38,400).
        checkpointing: keep less of the language model in training, and compute it again.

    Returns (forward): `logits` (C,) where a question is stated; `embedding` (H,) float32, the mean
    of what the language model is shown; `scores`, `kept` of the selector.

    The language model is frozen and its weights are never saved, with or without a checkpoint of a
    training: what is saved are `selector.*`, `projector.*` and `lora.*`, and in the entry the
    repository, commit and digests (`Base`) of the model they belong to.

    Source: SlideChat, https://github.com/uni-medical/SlideChat (aa1ff55e): placeholder, projector,
    limits. Differs: no slide encoder between patches and projector, and see `Projector`.
    """

    order_matters = True
    uses_coords = True  # unless `projector.positions` is false
    uses_spacing = False
    conformance_params: ClassVar[dict[str, Any]] = {
        "lm": "tiny",
        "question": "which is seen ?",
        "options": ["ring", "sheet"],
    }
    conformance_overrides: ClassVar[tuple[str, ...]] = ("model.lm=tiny",)

    def __init__(
        self,
        in_dim: int,
        lm: Mapping[str, Any] | LanguageModel | str,
        selector: str | Mapping[str, Any] | Selector | None = None,
        projector: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        template: str | None = None,
        question: str | None = None,
        options: Sequence[str] = (),
        scoring: str = "letter",
        train_limit: int = 10_240,
        limit: int = 38_400,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_question(question, options, scoring)
        check_limits(train_limit=train_limit, limit=limit)
        self.selector = made_selector(selector, in_dim)
        self.base = made_base(lm)
        self.text = Text(self.base.tokenizer, template)
        self.in_dim, self.limit, self.train_limit = in_dim, limit, train_limit
        self.question, self.scoring, self.classes = question, scoring, tuple(options)
        self.head = ClassificationHead(None, options) if options else None
        self.projector = made_projector(projector or {}, in_dim, self.base.model)
        self.uses_coords = self.projector.positions  # type: ignore[misc]
        self.lora = None if lora is None else made_lora(lora)
        # Last, so that the dtype of the features is that of selector and projector.
        self.lm = self.base.model if self.lora is None else adapted(self.base.model, self.lora)
        if checkpointing:
            learning.compute_again(self.base.model)
        self.selects_hard = False
        self.register_state_dict_post_hook(learning.leave_base_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(learning.base_is_there)  # type: ignore[no-untyped-call]

    def forward(self, bag: Bag) -> SlideOutput:
        shown = self.shown(bag)
        logits = None
        if self.question is not None:
            with self._only_selector(shown.alone):
                told = (shown.tokens, self.question, self.classes, self.scoring)
                logits = option_scores(self, *told, cache=not torch.is_grad_enabled())
        return SlideOutput(
            logits=logits,
            embedding=at_least_float32(shown.tokens).mean(0),
            scores=shown.scores,
            selector_scores=shown.scores,
            kept=shown.kept,
            losses=shown.losses,
        )

    def losses(self, output: SlideOutput, slides: Sequence[Bag]) -> Mapping[str, Tensor]:
        """Cross entropy of the options' scores against `label`, and the selector's own terms."""
        if self.head is None:
            raise DataError(
                "this slidevlm asks no question of its own, so labels teach it nothing: state "
                "model.question and model.options, or train it on conversations"
            )
        return training_losses(self.head, output, slides)

    def conversation_losses(
        self, bags: Sequence[Bag], conversations: Sequence[Turns]
    ) -> dict[str, Tensor]:
        """Everything to minimise: `answers`, the mean cross entropy of all their tokens, and the
        mean of the selector's own terms.

        Args:
            conversations: one a slide, turns (human, answer); `<image>` once, in the first.

        Raises:
            DataError: not one placeholder, or nothing to learn.
        """
        rows = [self.text.answered(turns) for turns in conversations]
        every = [self.shown(bag) for bag in bags]
        pairs = list(zip(rows, every, strict=True))
        x = [self.embedded(row.ids, shown.tokens) for row, shown in pairs]
        labels = batches.padded_labels(
            [batches.spread(row.labels, row.ids, len(s.tokens)) for row, s in pairs]
        )
        losses = {"answers": self._cross_entropy(x, labels, any(s.alone for s in every))}
        for name in dict.fromkeys(name for shown in every for name in shown.losses):
            terms = [shown.losses[name] for shown in every if name in shown.losses]
            losses[name] = torch.stack(terms).sum() / len(every)
        return losses

    @torch.no_grad()
    def generate(
        self, bag: Bag | None, conversation: str | Turns, max_new_tokens: int = 500
    ) -> str:
        """The answer to a question, greedily; see `generate_all`."""
        return self.generate_all([bag], [conversation], max_new_tokens)[0]

    @torch.no_grad()
    def generate_all(
        self,
        bags: Sequence[Bag | None],
        conversations: Sequence[str | Turns],
        max_new_tokens: int = 500,
    ) -> list[str]:
        """Answers, several at once, each the same as alone.

        Args:
            bags: None: no slide is shown, and the placeholder is left out.
            conversations: a human's text, or turns of which the last has no answer (None);
                `<image>` once, in the first.
        """
        stops = self.text.stops()
        with in_eval(self):
            x = []
            for bag, conversation in zip(bags, conversations, strict=True):
                turns = [(conversation, None)] if isinstance(conversation, str) else conversation
                ids = self.text.prompt(turns, slide=bag is not None)
                x.append(self.embedded(ids, self._tokens(bag)))
            embeds, mask, _ = padded(x, left=True)
            found = self.lm.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
        return [self.text.decode(batches.up_to(ids, stops)) for ids in found.tolist()]

    @torch.no_grad()
    def choose(
        self, bag: Bag | None, question: str, options: Sequence[str], scoring: str = "letter"
    ) -> Choice:
        """The likeliest option; see `SCORINGS`.

        Args:
            bag: None: what the text alone says, without a slide.
            question: without its options; `<image>` is put before it if it has none.
        """
        with in_eval(self):
            scores = option_scores(self, self._tokens(bag), question, options, scoring)
        best = int(scores.argmax())
        return Choice(best, options[best], scores, scoring)

    @torch.no_grad()
    def answer_scores(
        self, bag: Bag | None, prompt: str, answers: Sequence[str], scoring: str = "sum"
    ) -> Tensor:
        """Scores (C,) of answers to all that a human says; see `choices.answer_scores`."""
        with in_eval(self):
            return answer_scores(self, self._tokens(bag), prompt, answers, scoring)

    def shown(self, bag: Bag) -> Shown:
        """What the language model sees of a slide.

        Raises:
            BagError: no patches, another width, NaN, or no coords where they are used. Whether the
                features are of the right encoder `SlideModel.check_bag` says.
        """
        check_bag(bag, self.in_dim, self.uses_coords)
        n, own = len(bag), next(self.projector.parameters())
        bag = bag.to(own.device, own.dtype)
        coords = bag.coords if self.uses_coords else None
        code = None if coords is None else position_code(coords)  # (N, 6), of all patches
        rows = None
        if self.selector is None or self.selector.training:
            rows = evenly(n, self.train_limit if self.training else self.limit, own.device)
        if rows is not None:
            bag, code = bag.subset(rows), None if code is None else code[rows]
        selected = Selected(bag) if self.selector is None else self.selector(bag)
        check_selected(selected, len(bag), "slidevlm")
        features, kept = selected.bag.features, selected.index
        if selected.weights is not None:
            features = features * selected.weights[:, None]
        if kept is not None and code is not None:
            code = code[kept]
        scores = aligned(selected.scores, rows, n)
        if rows is not None:
            kept = rows if kept is None else rows[kept]
        with self._only_selector(selected.alone):
            tokens = self.projector(features, code, self.lm.dtype)  # (K, H)
        return Shown(tokens, kept, scores, selected.losses, selected.alone)

    def embedded(self, ids: Sequence[int], tokens: Tensor | None) -> Tensor:
        """A row as the language model reads it, (L, H), the slide's tokens in their place."""
        words = self.lm.get_input_embeddings()
        if SLIDE not in ids:
            own = torch.tensor(ids, dtype=torch.long, device=words.weight.device)
            found: Tensor = words(own)
            return found
        at = list(ids).index(SLIDE)
        assert tokens is not None
        return torch.cat(
            [self.embedded(ids[:at], None), tokens, self.embedded(ids[at + 1 :], None)]
        )

    def train(self, mode: bool = True) -> SlideVLM:
        """Training mode; where `selects_hard`, the selector stays as it is used."""
        super().train(mode)
        if self.selects_hard and self.selector is not None:
            self.selector.eval()
        return self

    def param_groups(self, base_lr: float) -> list[dict[str, Any]]:
        """The selector's own, the projector, and LoRA at `LORA_LR` times the rate."""
        groups = self.selector.param_groups(base_lr) if self.selector is not None else []
        rest = [(self.projector, base_lr), (self.lm, base_lr * LORA_LR)]
        for module, lr in rest:
            params = [p for p in module.parameters() if p.requires_grad]
            groups += [{"params": params, "lr": lr}] if params else []
        return groups

    @property
    def ready(self) -> bool:
        return self.selector is None or self.selects_hard or self.selector.ready

    def start_training(self, total_steps: int, slides: Iterable[Bag]) -> None:
        if self.selector is not None and not self.selects_hard:
            self.selector.start_training(total_steps, slides)

    def after_step(self, step: int, total_steps: int) -> None:
        if self.selector is not None and not self.selects_hard:
            self.selector.after_step(step, total_steps)

    def inference_state(self) -> dict[str, Tensor]:
        """`selector.*`, `projector.*` and `lora.*`.

        Raises:
            DataError: weights of the language model itself were set to learn.
        """
        named = self.lm.named_parameters()
        thawed = [name for name, p in named if p.requires_grad and "lora_" not in name]
        if thawed:
            raise DataError(
                f"{len(thawed)} tensors of the language model itself learn, first {thawed[0]}, "
                "and they are never saved with a slidevlm. Save it as a language model of its own"
            )
        own = {} if self.selector is None else self.selector.inference_state()
        state = {f"selector.{name}": tensor for name, tensor in own.items()}
        state |= {f"projector.{n}": tensor for n, tensor in self.projector.state_dict().items()}
        if self.lora is not None:
            state |= {f"lora.{name}": tensor for name, tensor in lora_state(self.lm).items()}
        return state

    def published_params(self) -> dict[str, Any]:
        """Arguments as they were settled while it was made: language model, template, LoRA.

        Raises:
            DataError: the language model was made by hand.
        """
        told: dict[str, Any] = {"lm": self.base.record(), "template": self.text.template}
        if self.lora is not None:
            told["lora"] = dataclasses.asdict(self.lora)
        return told

    def _tokens(self, bag: Bag | None) -> Tensor | None:
        return None if bag is None else self.shown(bag).tokens

    def _only_selector(self, alone: bool) -> contextlib.AbstractContextManager[None]:
        return frozen(self.projector, self.lm) if alone else contextlib.nullcontext()

    def _cross_entropy(self, x: Sequence[Tensor], labels: Tensor, alone: bool) -> Tensor:
        """Mean over all labels (B, L) of rows; only the places before them meet the vocabulary."""
        embeds, mask, places = padded(x, left=False)
        labels = labels.to(embeds.device)[:, 1:]  # (B, L - 1), of the token after each place
        columns = (labels != UNLABELLED).any(0).nonzero()[:, 0]  # (P,)
        with self._only_selector(alone):
            logits = self.lm(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=places,
                use_cache=False,
                logits_to_keep=columns,
            ).logits  # (B, P, V)
        return F.cross_entropy(at_least_float32(logits).flatten(0, 1), labels[:, columns].flatten())
