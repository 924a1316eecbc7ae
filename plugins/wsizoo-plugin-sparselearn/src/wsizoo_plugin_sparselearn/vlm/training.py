"""Training a SlideVLM on conversations about slides, in two stages."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import wsizoo
from wsizoo.errors import DataError, SpecError
from wsizoo.files import sha256_of
from wsizoo.registry import Registry, default
from wsizoo.stored import StoredModel, find_stored, read_stored
from wsizoo.train.processes import start_processes
from wsizoo.weights import load_strict, weights_digest
from wsizoo.zoo import assemble
from wsizoo_plugin_sparselearn.vlm.formats import read_conversations
from wsizoo_plugin_sparselearn.vlm.questions import IMAGE, Conversation
from wsizoo_plugin_sparselearn.vlm.slide_vlm import SlideVLM
from wsizoo_plugin_sparselearn.vlm.training_config import Training
from wsizoo_plugin_sparselearn.vlm.training_run import Item, Read, Run

log = logging.getLogger(__name__)
FACTS = "training"
USE = "Research on questions about slides. To go on from: start=FOLDER of a training."
LORA = "model.lora={}"


def train(
    conversations: Path | str,
    read: Read,
    out: Path | str,
    config: Training,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> wsizoo.SlideModel:
    """Train on a file of conversations (SlideInstruct, LLaVA) and save the model in `out`.

    What is there already of the same training is loaded, or gone on with, from `OUT.state.pt`
    beside it; neither holds the language model.

    Args:
        read: the bag of a slide by the name in the file. overrides: of the model `config.start`.

    Raises:
        DataError: no conversations, one with several slides or a bad placeholder, a loss that is
            not finite, or `out` is of another training. NotFoundError: no Lightning Fabric (extra
            `train` of wsizoo), no such model or device. SpecError: `start` is no slidevlm.
    """
    out = Path(out)
    items = items_of(read_conversations(conversations))
    whose = {"conversations": sha256_of(conversations), "overrides": list(overrides)}
    if out.exists():
        return _finished(out, {**config.numbers(), **whose}, registry or default())
    fabric = start_processes(config.device, "32-true", key="device")
    model = begun(config, overrides, registry or default())
    bag = read(items[0][0])
    model.check_bag(bag)
    if bag.encoder is not None:  # what the first slide states is required of the others
        stated = {**model.requires.stated(), **bag.encoder.stated()}
        model.requires = dataclasses.replace(bag.encoder, **stated)
    whose["began as"] = weights_digest(model.inference_state())
    model = model.to(fabric.device)
    _set_learning(model, config)
    run = Run(model, items, read, config, Path(f"{out}.state.pt"), fabric, whose)
    run.resume()
    run.finish()
    model.eval().trained = True
    told = {"conversations": len(items), "losses": run.losses}
    model.facts = {FACTS: run.identity, **told, "intended_use": USE}
    if fabric.is_global_zero:
        wsizoo.save(model, out)
        run.state.unlink(missing_ok=True)
        log.info("the model is in '%s'", out)
    return model


def items_of(conversations: Sequence[Conversation]) -> list[Item]:
    """A slide and its turns, the slide before the first.

    The placeholder goes to the front of the first turn, wherever the file has it, as in SlideChat.

    Raises:
        DataError: none at all, or one about no slide or several, or not with one placeholder.
    """
    if not conversations:
        raise DataError("there are no conversations to train on")
    items: list[Item] = []
    for each in conversations:
        where = f"conversation {each.id!r}"
        if len(each.slides) != 1:
            raise DataError(f"{where} is about {len(each.slides)} slides, expected 1")
        said = [turn.human for turn in each.turns]
        count = sum(text.count(IMAGE) for text in said)
        if count != 1 or IMAGE not in said[0]:
            raise DataError(
                f"{where} holds {count} placeholders {IMAGE}, expected 1, in its first turn"
            )
        first = f"{IMAGE}\n{said[0].replace(IMAGE, '').strip()}"
        humans = [first, *said[1:]]
        answers = [turn.assistant for turn in each.turns]
        items.append((each.slides[0], list(zip(humans, answers, strict=True))))
    return items


def begun(config: Training, overrides: Sequence[str], registry: Registry) -> wsizoo.SlideModel:
    """The model before its first step.

    Raises:
        SpecError: `config.start` is no slidevlm. Others: as `wsizoo.build` and `wsizoo.load`.
    """
    texts = list(overrides)
    if config.stage == "instruct" and not any(t.startswith("model.lora") for t in texts):
        texts.append(LORA)
    if config.start in registry.models:
        model = wsizoo.build(config.start, *texts, seed=config.seed, registry=registry)
    else:
        model = _gone_on(read_stored(Path(config.start)), config, texts, registry)
    if not isinstance(model.whole, SlideVLM):
        raise SpecError(f"start is '{config.start}', which is no slidevlm")
    if config.selector_from is not None:
        _take_selector(model, find_stored(config.selector_from, registry))
    return model


def _take_selector(model: wsizoo.SlideModel, stored: StoredModel) -> None:
    """Let the selector be the trained one of another model.

    Raises:
        FingerprintError: that one reads other features. StrictnessError: it is another selector.
    """
    whose = f"the selector of '{stored.name}'"
    stored.fingerprint.check_same(model.requires, whose, f"'{model.name}'")
    load_strict(_selector_of(model.inference_state()), _selector_of(stored.tensors), whose)


def _selector_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The selector's, of a model of parts or of a whole one."""
    named = {name.removeprefix("whole."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if name.startswith("selector.")}


def _gone_on(
    stored: StoredModel, config: Training, overrides: Sequence[str], registry: Registry
) -> wsizoo.SlideModel:
    """A stored model with its weights, and LoRA anew where it had none. Raises as `load`."""
    spec = stored.spec_with(overrides)
    model = assemble(stored.entry, spec, registry, config.seed)
    own = model.inference_state()
    had = any(name.startswith("whole.lora.") for name in stored.tensors)
    own = {name: t for name, t in own.items() if had or not name.startswith("whole.lora.")}
    load_strict(own, stored.tensors, f"'{config.start}'")
    stated = {**model.requires.stated(), **stored.fingerprint.stated()}
    model.requires = dataclasses.replace(stored.fingerprint, **stated)
    return model


def _set_learning(model: wsizoo.SlideModel, config: Training) -> None:
    """Training mode, of what learns in this stage."""
    vlm = model.whole
    assert isinstance(vlm, SlideVLM)
    if config.selection == "hard":
        vlm.selects_hard = True
        if vlm.selector is not None:
            vlm.selector.requires_grad_(False)
    model.train()


def _finished(out: Path, identity: dict[str, Any], registry: Registry) -> wsizoo.SlideModel:
    """The model that is there. Raises DataError: it is of another training."""
    model = wsizoo.load(out, registry=registry)
    there = model.facts.get(FACTS, {})
    for name, mine in identity.items():
        if there.get(name) != mine:
            raise DataError(
                f"'{out}' holds another model: {name} is {there.get(name)}, now {mine}. Choose "
                "another OUT, or delete it"
            )
    log.info("'%s' is finished already", out)
    return model
