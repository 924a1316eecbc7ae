"""Language models of a few thousand weights and a tokenizer of words, made on the spot."""

from pathlib import Path
from typing import Any

import torch

from wsizoo import Bag
from wsizoo.seeding import READ, seeded
from wsizoo_plugin_sparselearn.vlm.language_model import LanguageModel, library

VOCABULARY = """<pad> <unk> <bos> <eos> <end> User: Assistant: A B C D A. B. C. D. which how many is
seen ? ring sheet cord gland one two where yes no the pattern . answer user : assistant"""
WORDS = VOCABULARY.split()
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ ' ' + m['role'] + ' : ' + m['content'] + ' <end>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' assistant :' }}{% endif %}"
)
KINDS = ("llama", "qwen2", "gpt2")


def ids(text: str) -> list[int]:
    """Ids of words; `@` is the slide."""
    return [-200 if word == "@" else WORDS.index(word) for word in text.split()]


def tokenizer(chat: str | None = None) -> Any:
    library("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {
        name: f"<{name[:3]}>" for name in ("pad_token", "bos_token", "eos_token", "unk_token")
    }
    make: Any = PreTrainedTokenizerFast
    made = make(tokenizer_object=words, additional_special_tokens=["<end>"], **special)
    made.chat_template = chat
    return made


def lm(kind: str = "llama", seed: int = 0, width: int = 32) -> Any:
    """A frozen language model of random weights; `kind` is one of `KINDS`."""
    transformers = library("transformers")
    sizes = {"vocab_size": len(WORDS), "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    if kind == "gpt2":
        sizes |= {"n_embd": width, "n_layer": 2, "n_head": 4, "n_positions": 128}
        config, network = transformers.GPT2Config(**sizes), transformers.GPT2LMHeadModel
    else:
        name = {"llama": "Llama", "qwen2": "Qwen2"}[kind]
        config = getattr(transformers, f"{name}Config")(
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            **sizes,
        )
        network = getattr(transformers, f"{name}ForCausalLM")
    with seeded(seed):
        made = network(config)
    with torch.no_grad():  # far from even, so that what is likeliest stays so
        for parameter in made.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    setattr(made, READ, True)  # it stands for one that was
    return made.requires_grad_(False).eval()


def language_model(kind: str = "llama", chat: str | None = None, seed: int = 0) -> LanguageModel:
    return LanguageModel(lm(kind, seed), tokenizer(chat))


def folder(path: Path, seed: int = 0, kind: str = "llama", width: int = 32) -> Path:
    """A language model as `save_pretrained` writes it."""
    lm(kind, seed, width).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def bag(n: int = 6, dim: int = 8, seed: int = 0, **more: Any) -> Bag:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dim, generator=generator)
    cells = torch.randperm(64, generator=generator)[:n]
    coords = torch.stack([cells % 8, cells // 8], 1) * 224
    return Bag(features, coords, spacing=224.0, slide_id=f"slide-{seed}", **more)
