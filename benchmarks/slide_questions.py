"""Questions about synthetic slides: 32 learned patches before a tiny language model, or 32 random.

`python -m benchmarks.slide_questions 0 1 2` runs these seeds; `through-the-lm 0 60` in their place
trains the selector through the language model itself (seed, steps). A takes the reader (gated
attention, one head a question) to a criterion; B freezes it and trains the selector; C trains
projector and language model from scratch on the hard 32 patches of SlideVLM.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wsizoo_plugin_sparselearn.selector import SparseLearn
from wsizoo_plugin_sparselearn.untrained import Random
from wsizoo_plugin_sparselearn.vlm.asking import NO_SLIDE, OTHER, SLIDE, Record
from wsizoo_plugin_sparselearn.vlm.evaluation import ALL, Evaluation, measured
from wsizoo_plugin_sparselearn.vlm.formats import question_file, write_questions
from wsizoo_plugin_sparselearn.vlm.language_model import LanguageModel
from wsizoo_plugin_sparselearn.vlm.projector import position_code
from wsizoo_plugin_sparselearn.vlm.questions import IMAGE
from wsizoo_plugin_sparselearn.vlm.readings import GENERATED, LETTER
from wsizoo_plugin_sparselearn.vlm.slide_vlm import SlideVLM

import wsizoo
from benchmarks._measure import load_now
from benchmarks._questions import (
    DIM,
    EDGE,
    QUESTIONS,
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

K, HIDDEN = 32, 64


@dataclass(frozen=True)
class Budget:
    """How long is trained and tested.

    Args:
        reader_loss, reader_cap: A stops where the running losses of `pattern` and `where` are both
            below this, or after so many steps. A reader that overlooks one pattern tells it by
            elimination, but not where it is (0.35); a selector that learns from it drops that
            pattern. Counting is not asked for.
        soft, language: steps of B and C. slides: of which C keeps 32 patches.
        batch: rows of a step of C. test, generated: slides asked by likelihood, and by generation.
    """

    reader_loss: float = 0.03
    reader_cap: int = 2000
    soft: int = 300
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

    def losses(self, slide: Slide, bag: wsizoo.Bag | None = None) -> Tensor:
        """(3,) of the questions about a slide, or about what became of its bag."""
        logits = self(slide.bag if bag is None else bag)
        return F.cross_entropy(logits, torch.tensor(slide.answers), reduction="none")


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
    running = torch.full((3,), math.log(4))
    for step in range(budget.reader_cap):
        slides = [make_slide(TRAIN, 8 * step + i, seed, budget.edge) for i in range(8)]
        losses = torch.stack([reader.losses(each) for each in slides]).mean(0)  # (3,)
        optimiser.zero_grad()
        losses.mean().backward()
        optimiser.step()
        running = 0.95 * running + 0.05 * losses.detach()
        if max(running[0], running[2]) < budget.reader_loss:
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
    special = {
        name: f"<{name[:3]}>" for name in ("unk_token", "pad_token", "bos_token", "eos_token")
    }
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
        drawn = [
            (rows[i], j)
            for i, j in zip(
                rng.integers(len(rows), size=budget.batch),
                rng.integers(3, size=budget.batch),
                strict=True,
            )
        ]
        bags, talks = [row[0] for row, _ in drawn], [row[1][j] for row, j in drawn]
        loss = sum(vlm.conversation_losses(bags, talks).values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
    return vlm.eval()


def examine(
    vlm: SlideVLM, selector: wsizoo.ScoredSelector, budget: Budget, name: str
) -> tuple[Evaluation, float]:
    """The test's questions about whole slides, the selector within the model.

    Returns: what is measured, and which share of the clusters' patches was kept.
    """
    vlm.selector = selector.eval()
    slides = [make_slide(TEST, i, edge=budget.edge) for i in range(budget.test)]
    asked = [question for slide in slides for question in questions_about(slide)]
    texts = list(QUESTIONS)
    blind = [_letters(vlm, None, asked[i].prompt) for i in range(len(texts))]
    records = [Record(row, NO_SLIDE, None, blind[row % len(texts)]) for row in range(len(asked))]
    kept = []
    for i, slide in enumerate(slides):
        index = selector.hard(slide.bag).index
        kept.append(float(np.isin(slide.evidence, index.numpy()).mean()))
        rows = range(len(texts) * i, len(texts) * (i + 1))
        prompts = [asked[row].prompt for row in rows]
        said: Sequence[str | None] = [None] * len(texts)
        if i < budget.generated:
            talks = [f"{IMAGE}\n{prompt}" for prompt in prompts]
            said = vlm.generate_all([slide.bag] * len(texts), talks, max_new_tokens=4)
        other = slides[i - 1].bag
        for row, prompt, output in zip(rows, prompts, said, strict=True):
            records.append(Record(row, SLIDE, output, _letters(vlm, slide.bag, prompt)))
            records.append(Record(row, OTHER, None, _letters(vlm, other, prompt)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "test.csv"
        write_questions(path, asked, "slidebench-vqa-bcnb")
        return measured(question_file(path), records, name), float(np.mean(kept))


def _letters(vlm: SlideVLM, bag: wsizoo.Bag | None, prompt: str) -> dict[str, float]:
    scores = vlm.answer_scores(bag, f"{IMAGE}\n{prompt}", "ABCD")
    return dict(zip("ABCD", scores.tolist(), strict=True))


def learned(seed: int, budget: Budget) -> tuple[SparseLearn, int]:
    """A and B: the selector, and the steps that the reader took."""
    reader, steps = train_reader(seed, budget)
    reader.eval().requires_grad_(False)
    selector = train_selector(
        lambda bag, slide: reader.losses(slide, bag).mean(), seed, budget.soft, budget.edge
    )
    return selector, steps


def compare(seed: int, budget: Budget) -> Iterator[tuple[Evaluation, float]]:
    """32 learned patches, then 32 random ones, before a language model each."""
    start = time.perf_counter()
    selector, steps = learned(seed, budget)
    told = f"{K} learned, seed {seed}"
    print(f"  {told}: reader {steps} steps; {time.perf_counter() - start:.0f} s", flush=True)
    for name, each in ((told, selector), (f"{K} random, seed {seed}", Random(DIM, K, seed=seed))):
        start = time.perf_counter()
        found, kept = examine(train_language(each, seed, budget), each, budget, name)
        report(found, kept, time.perf_counter() - start)
        yield found, kept


def report(found: Evaluation, kept: float, seconds: float) -> None:
    """A line of likelihoods, one of generated answers, one of controls."""
    print(f"  {found.model}: {kept:.3f} of the clusters' patches kept; {seconds:.0f} s")
    for given, reading in (
        (SLIDE, LETTER),
        (SLIDE, GENERATED),
        (NO_SLIDE, LETTER),
        (OTHER, LETTER),
    ):
        own = [x for x in found.lines if (x.given, x.reading) == (given, reading)]
        named = [f"{x.value or ALL} {x.measured}" for x in own]
        print(f"    {reading}, {given}: {', '.join(named)}", flush=True)


def through_the_language_model(seed: int, steps: int = 60, edge: int = 32) -> None:
    """The selector trained through the language model's own loss, its soft path all N patches.

    The language model is one of C, as it is after the learned 32 patches; it stays as it is, and a
    new selector has to find the evidence. Then the same beside a reader, with the same budget.
    """
    budget = Budget(language=600, slides=1000, test=256, edge=edge)
    selector, _ = learned(seed, budget)
    vlm = train_language(selector, seed, budget)
    vlm.selector = None
    vlm.requires_grad_(False)
    rng = np.random.default_rng([seed, 4])

    def through(bag: wsizoo.Bag, slide: Slide) -> Tensor:
        turn = conversation_of(questions_about(slide)[rng.integers(3)]).turns[0]
        return vlm.conversation_losses([bag], [[(turn.human, turn.assistant)]])["answers"]

    start = time.perf_counter()
    print(f"  the LM is ready; {steps} steps through it", flush=True)
    own = train_selector(through, seed, steps, edge)
    seconds = time.perf_counter() - start
    for name, each in (("a reader", selector), (f"the LM, {steps} steps", own)):
        found, kept = examine(vlm, each, budget, f"N = {edge * edge}, selector through {name}")
        report(found, kept, seconds)


def run(*seeds: int) -> None:
    """The comparison, of seed 0 unless told otherwise."""
    if find_spec("transformers") is None:
        print("  left out: pip install 'wsizoo-plugin-sparselearn[vlm]'")
        return
    print(f"  N = {EDGE * EDGE}, letters by likelihood and generated, {load_now()}")
    for seed in seeds or (0,):
        list(compare(seed, Budget()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["through-the-lm"]:
        through_the_language_model(*map(int, sys.argv[2:]))
    else:
        run(*map(int, sys.argv[1:]))
