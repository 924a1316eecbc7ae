"""Questions about synthetic slides: 32 learned patches before a tiny language model, or 32 random.

`python -m benchmarks.slide_questions 0 1 2` runs these seeds, `... through-the-lm 0` the selector
trained through the language model itself. A takes the reader (gated attention, one head a
question) to a criterion; B freezes it and trains the selector; C trains projector and language
model from scratch on the hard 32 patches of SlideVLM.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wsizoo
from benchmarks._measure import load_now
from benchmarks._questions import (
    DIM,
    EDGE,
    QUESTIONS,
    TASKS,
    TEMPLATE,
    TEST,
    TRAIN,
    Slide,
    conversation_of,
    make_slide,
    questions_about,
    vocabulary,
)
from wsizoo.encoders.libraries import import_library
from wsizoo_plugin_sparselearn.selector import SparseLearn
from wsizoo_plugin_sparselearn.untrained import Random
from wsizoo_plugin_sparselearn.vlm.asking import NO_SLIDE, OTHER, SLIDE, Record
from wsizoo_plugin_sparselearn.vlm.evaluation import ALL, GENERATED, LETTER, Evaluation, measured
from wsizoo_plugin_sparselearn.vlm.formats import question_file, write_questions
from wsizoo_plugin_sparselearn.vlm.language_model import LanguageModel
from wsizoo_plugin_sparselearn.vlm.projector import position_code
from wsizoo_plugin_sparselearn.vlm.slide_vlm import SlideVLM

K, HIDDEN = 32, 64


@dataclass(frozen=True)
class Budget:
    """How long is trained and tested; the defaults are the specification's.

    Args:
        reader_loss, reader_cap: A stops below this running loss, or after so many steps.
        soft, language: steps of B and C. slides: of which C keeps 32 patches.
        batch: rows of a step of C. test, generated: slides asked by likelihood, and by generation.
    """

    reader_loss: float = 0.75
    reader_cap: int = 2000
    soft: int = 200
    language: int = 2000
    slides: int = 4000
    batch: int = 32
    test: int = 512
    generated: int = 128
    edge: int = EDGE


class Reader(nn.Module):
    """Stands in for the language model in A and B: the same questions, the same answers."""

    def __init__(self) -> None:
        super().__init__()
        width = DIM + 6
        self.value, self.gate = nn.Linear(width, HIDDEN), nn.Linear(width, HIDDEN)
        self.weight = nn.Linear(HIDDEN, 1)
        self.embed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, HIDDEN))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 4))
            for _ in QUESTIONS
        )

    def forward(self, bag: wsizoo.Bag) -> Tensor:
        """Logits (3, 4)."""
        x = torch.cat([bag.features, position_code(bag.coords)], 1)  # (N, 38)
        scores = self.weight(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))[:, 0]
        slide = self.embed(scores.softmax(0) @ x)
        return torch.stack([head(slide) for head in self.heads])

    def loss(self, bag: wsizoo.Bag, answers: Sequence[int]) -> Tensor:
        return F.cross_entropy(self(bag), torch.tensor(answers))


class Kept(wsizoo.Selector):
    """Hands on what was kept before: all but the last two patches, the slide's corners."""

    def forward(self, bag: wsizoo.Bag) -> wsizoo.Selected:
        index = torch.arange(len(bag) - 2)
        return wsizoo.Selected(bag.subset(index), index)


def train_reader(seed: int, budget: Budget) -> tuple[Reader, int]:
    """A: to a criterion, since it is learned in a sudden drop; and how many steps that took."""
    torch.manual_seed(seed)
    reader = Reader()
    optimiser = torch.optim.AdamW(reader.parameters(), 5e-3)
    running = math.log(4)
    for step in range(budget.reader_cap):
        slides = [make_slide(TRAIN, 8 * step + i, seed, budget.edge) for i in range(8)]
        loss = torch.stack([reader.loss(each.bag, each.answers) for each in slides]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        running = 0.95 * running + 0.05 * float(loss.detach())
        if running < budget.reader_loss:
            return reader, step + 1
    return reader, budget.reader_cap


def train_selector(
    loss_of: Callable[[wsizoo.Bag, Slide], Tensor], seed: int, steps: int, edge: int = EDGE
) -> SparseLearn:
    """B: scorer and denoiser through the soft path, whatever reads it staying as it is.

    Args:
        loss_of: (all patches of a slide, between noise and themselves; the slide) -> its loss.
    """
    torch.manual_seed(seed)
    selector = SparseLearn(DIM, K, warm_up=0.0).train()
    selector.start_training(steps, [])
    optimiser = torch.optim.AdamW(selector.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        slides = [make_slide(TRAIN, 10**6 + 8 * step + i, seed, edge) for i in range(8)]
        losses = [loss_of(selector(each.bag).bag, each) for each in slides]
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
        schedule.step()
        selector.after_step(step + 1, steps)
    return selector.eval()


def kept_of(selector: wsizoo.ScoredSelector, slide: Slide) -> wsizoo.Bag:
    """The hard 32 patches of a slide, then two without features in its corners."""
    bag = selector.eval().hard(slide.bag).bag
    corners = torch.stack([slide.bag.coords.amin(0), slide.bag.coords.amax(0)])
    features = torch.cat([bag.features, torch.zeros(2, DIM)])
    return bag.replace(features=features, coords=torch.cat([bag.coords, corners]))


def language_model() -> LanguageModel:
    """A Llama of 87 k parameters and its tokenizer of single words, from scratch."""
    transformers, tokenizers = import_library("transformers"), import_library("tokenizers")
    words = vocabulary()
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {name: f"<{name[:3]}>" for name in ("unk_token", "pad_token", "bos_token", "eos_token")}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=words.index("<bos>"),
        eos_token_id=words.index("<eos>"),
        pad_token_id=words.index("<pad>"),
    )
    return LanguageModel(transformers.LlamaForCausalLM(config), fast)


def train_language(selector: wsizoo.ScoredSelector, seed: int, budget: Budget) -> SlideVLM:
    """C: projector and language model from scratch, on the hard 32 patches of each slide."""
    torch.manual_seed(seed)
    vlm = SlideVLM(DIM, language_model(), Kept(DIM))
    vlm.lm.requires_grad_(True)
    slides = [make_slide(TRAIN, 2 * 10**6 + i, seed, budget.edge) for i in range(0)]
    rows = []
    for i in range(budget.slides):
        slide = make_slide(TRAIN, 2 * 10**6 + i, seed, budget.edge)
        turns = [conversation_of(each).turns[0] for each in questions_about(slide)]
        rows.append((kept_of(selector, slide), [[(t.human, t.assistant)] for t in turns]))
    learning = [p for p in vlm.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, 2e-3, weight_decay=0.01)
    rng = np.random.default_rng([seed, 3])
    vlm.train()
    for step in range(budget.language):
        done = (step - 100) / max(1, budget.language - 100)
        rate = (step + 1) / 100 if step < 100 else 0.5 * (1 + math.cos(math.pi * done))
        optimiser.param_groups[0]["lr"] = 2e-3 * rate
        drawn = [(rows[i], j) for i, j in zip(
            rng.integers(len(rows), size=budget.batch), rng.integers(3, size=budget.batch), strict=True
        )]
        bags, talks = [row[0] for row, _ in drawn], [row[1][j] for row, j in drawn]
        loss = sum(vlm.conversation_losses(bags, talks).values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
    return vlm.eval()
