"""A SlideVLM as something that answers questions of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wsizoo.bag import Bag
from wsizoo.errors import SpecError
from wsizoo.model import SlideModel
from wsizoo.sources import meet
from wsizoo.weights import weights_digest
from wsizoo_plugin_sparselearn.vlm.questions import IMAGE, Question
from wsizoo_plugin_sparselearn.vlm.slide_vlm import SlideVLM


class ModelAnswers:
    """What a model of the zoo answers.

    Args:
        scoring: of options that the question does not list, see `choices.SCORINGS`.
        max_new_tokens: of an answer. force: take features of another encoder all the same.

    Raises:
        SpecError: its whole model is no SlideVLM.
    """

    def __init__(
        self,
        model: SlideModel,
        scoring: str = "mean",
        max_new_tokens: int = 500,
        force: bool = False,
    ) -> None:
        if not isinstance(model.whole, SlideVLM):
            raise SpecError(f"'{model.name}' answers no questions: it is no slidevlm")
        self.model, self.vlm = model.eval(), model.whole
        self.scoring, self.max_new_tokens, self.force = scoring, max_new_tokens, force
        self.identity = f"{model.name} {identity_of(model.whole)}"

    def letter_scores(self, bag: Bag | None, question: Question) -> Mapping[str, float]:
        """log p of each letter."""
        return self._scores(bag, question, list(question.options), "sum")

    def text_scores(self, bag: Bag | None, question: Question) -> Mapping[str, float]:
        """By `scoring`; without a slide `pmi` would compare nothing, and is `sum`."""
        scoring = "sum" if self.scoring == "pmi" and bag is None else self.scoring
        return self._scores(bag, question, list(question.options.values()), scoring)

    def generate(self, bag: Bag | None, text: str) -> str:
        return self.vlm.generate(self._met(bag), f"{IMAGE}\n{text}", self.max_new_tokens)

    def _scores(
        self, bag: Bag | None, question: Question, answers: Sequence[str], scoring: str
    ) -> Mapping[str, float]:
        """By letter; {} where answers are alike or empty, or there is one alone."""
        if len(answers) < 2 or len(set(answers)) < len(answers) or not all(answers):
            return {}
        prompt = f"{IMAGE}\n{question.prompt}"
        scores = self.vlm.answer_scores(self._met(bag), prompt, answers, scoring)
        return dict(zip(question.options, scores.tolist(), strict=True))

    def _met(self, bag: Bag | None) -> Bag | None:
        """The bag, if this model may read it."""
        if bag is None:
            return None
        met, _ = meet(self.model, bag, self.force)
        self.model.check_bag(met)
        return met


def identity_of(vlm: SlideVLM) -> str:
    """Digests of what was trained, and of the language model's weights if they lie in a folder."""
    trained = weights_digest(vlm.inference_state())[:12]
    base = vlm.base.record()["weights_sha256"][:12] if vlm.base.folder else "made by hand"
    return f"{trained}, language model {base}"
