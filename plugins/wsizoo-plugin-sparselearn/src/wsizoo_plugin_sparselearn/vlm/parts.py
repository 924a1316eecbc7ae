"""The parts of a SlideVLM, made from what an entry says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wsizoo import Selector
from wsizoo.errors import SpecError
from wsizoo.plugins import installed
from wsizoo.seeding import refuse_blank
from wsizoo.structured import structured
from wsizoo.targets import call
from wsizoo_plugin_sparselearn.vlm import tiny
from wsizoo_plugin_sparselearn.vlm.choices import SCORINGS
from wsizoo_plugin_sparselearn.vlm.language_model import Base, LanguageModel
from wsizoo_plugin_sparselearn.vlm.lora import Lora
from wsizoo_plugin_sparselearn.vlm.projector import Projector

WHOSE = "model 'slidevlm'"
TINY = "tiny"


def made_base(given: Mapping[str, Any] | LanguageModel | str) -> LanguageModel:
    """The language model. Raises as `LanguageModel.read`; SpecError for a name but `TINY`."""
    if isinstance(given, LanguageModel):
        return given
    if isinstance(given, str):
        if given != TINY:
            raise SpecError(
                f"{WHOSE}: lm is '{given}', expected {{repo: owner/name, revision: COMMIT}}, "
                f"{{folder: DIR}}, or {TINY} (random, for tests)"
            )
        return tiny.language_model()
    return LanguageModel.read(structured(Base, f"{WHOSE}: lm", given))


def made_selector(given: str | Mapping[str, Any] | Selector | None, dim: int) -> Selector | None:
    """A selector of any plugin, made before the language model is read.

    Raises:
        NotFoundError, SpecError: there is none of this name, or it has no such option.
    """
    if given is None or isinstance(given, Selector):
        return given
    params = {"name": given} if isinstance(given, str) else dict(given)
    name = params.pop("name", None)
    if name is None:
        raise SpecError(f"{WHOSE}: selector {params} has no name, expected selector: {{name: ...}}")
    make = installed().load("selector", name)
    made: Selector = call(make, f"selector '{name}' of slidevlm", params, in_dim=dim)
    refuse_blank(made)
    return made


def made_projector(given: Mapping[str, Any], dim: int, lm: Any) -> Projector:
    """From features of width `dim` to the embeddings of a language model."""
    words = lm.get_input_embeddings().weight.detach()
    fixed = {"in_dim": dim, "width": int(words.shape[1]), "std": float(words.float().std())}
    made: Projector = call(Projector, "projector of slidevlm", dict(given), **fixed)
    return made


def made_lora(given: Mapping[str, Any]) -> Lora:
    return structured(Lora, f"{WHOSE}: lora", given)


def check_question(question: str | None, options: Sequence[str], scoring: str) -> None:
    """Raise SpecError unless a question has options, and both a scoring."""
    if (question is None) != (not options):
        raise SpecError("slidevlm: a question of its own needs options, and options a question")
    if scoring not in SCORINGS:
        raise SpecError(f"slidevlm: scoring is '{scoring}', expected {', '.join(SCORINGS)}")


def check_limits(**limits: int) -> None:
    """Raise SpecError for a number of patches below 1."""
    for name, value in limits.items():
        if value < 1:
            raise SpecError(f"slidevlm: {name} is {value}, expected 1 or more")
