"""The catalogue of encoders against the facts, and the page that shows it.

`python tests/test_encoders_catalogue.py` writes the page's table anew.
"""

from pathlib import Path
from typing import Any

import pytest

from wsizoo.encoder_spec import EncoderSpec
from wsizoo.encoders.networks import POOLINGS
from wsizoo.plugins import discover
from wsizoo.registry import Registry

PAGE = Path(__file__).parent.parent / "docs" / "encoders.md"
CORE = Registry.of(discover([], allow=""))
SPECS = {name: CORE.encoder_spec(name) for name in CORE.encoders}

IN = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
INC = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
CLIP = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HOPT = [0.707223, 0.578729, 0.703617], [0.211883, 0.230117, 0.177517]
LUNIT = [0.70322989, 0.53606487, 0.66096631], [0.21716536, 0.26081574, 0.20723464]
ND, BSD = "CC-BY-NC-ND-4.0", "BSD-3-Clause"
KAIKO, LUNIT_LICENCE = "Kaiko non-commercial", "Lunit non-commercial"
OWKIN = "Owkin non-commercial"
REFUSED: Any = None

# name: D, patch px, um/px, gated, licence, precision, (resize, cut, interpolation, mean and std)
FACTS: dict[str, tuple[Any, ...]] = {
    "resnet50-trunc": (1024, 256, 0.5, False, BSD, "fp32", (224, 224, "bilinear", IN)),
    "resnet50": (2048, 256, 0.5, False, BSD, "fp32", (256, 224, "bilinear", IN)),
    "uni": (1024, 256, 0.5, True, ND, "fp16", (224, 224, "bilinear", IN)),
    "uni2-h": (1536, 256, 0.5, True, ND, "bf16", (224, 224, "bilinear", IN)),
    "conch": (512, 512, 0.5, True, ND, "fp32", REFUSED),
    "conch-v1.5": (768, 512, 0.5, True, ND, "fp32", REFUSED),
    "gigapath": (
        *(1536, 256, 0.5, True, "Apache-2.0 with conditions", "fp16"),
        (256, 224, "bicubic", IN),
    ),
    "virchow": (2560, 224, 0.5, True, "Apache-2.0", "fp16", (224, 224, "bicubic", IN)),
    "virchow-cls": (1280, 224, 0.5, True, "Apache-2.0", "fp16", (224, 224, "bicubic", IN)),
    "virchow2": (2560, 224, 0.5, True, ND, "fp16", (224, 224, "bicubic", IN)),
    "virchow2-cls": (1280, 224, 0.5, True, ND, "fp16", (224, 224, "bicubic", IN)),
    "h-optimus-0": (1536, 224, 0.5, False, "Apache-2.0", "fp16", (224, 224, "bilinear", HOPT)),
    "h-optimus-1": (1536, 224, 0.5, True, ND, "fp16", (224, 224, "bilinear", HOPT)),
    "h0-mini": (768, 224, 0.5, True, ND, "fp32", REFUSED),
    "phikon": (768, 224, 0.5, False, OWKIN, "fp32", (224, 224, "bilinear", IN)),
    "phikon-v2": (1024, 224, 0.5, False, OWKIN, "fp32", (224, 224, "bilinear", IN)),
    "lunit-vits8": (384, 224, 0.5, False, LUNIT_LICENCE, "fp32", (224, 224, "bilinear", LUNIT)),
    "lunit-vits16": (384, 224, 0.5, False, LUNIT_LICENCE, "fp32", (224, 224, "bilinear", LUNIT)),
    "hipt-vit256": (
        *(384, 256, 0.5, False, "Apache-2.0 with Commons Clause", "fp32"),
        (256, 256, "bilinear", INC),
    ),
    "ctranspath": (768, None, None, False, "GPL-3.0", "fp32", REFUSED),
    "retccl": (2048, None, None, False, "GPL-3.0, non-commercial academic", "fp32", REFUSED),
    "simclr-resnet18-c16": (512, None, None, False, "MIT", "fp32", REFUSED),
    "chief-ctranspath": (768, 256, 1.0, False, "GPL-3.0", "fp32", REFUSED),
    "plip": (512, 224, 0.5, False, "Non-commercial", "fp32", (224, 224, "bicubic", CLIP)),
    "kaiko-vits16": (384, 256, 0.5, False, KAIKO, "fp32", (224, 224, "bilinear", INC)),
    "kaiko-vits8": (384, 256, 0.5, False, KAIKO, "fp32", (224, 224, "bilinear", INC)),
    "kaiko-vitb16": (768, 256, 0.5, False, KAIKO, "fp32", (224, 224, "bilinear", INC)),
    "kaiko-vitb8": (768, 256, 0.5, False, KAIKO, "fp32", (224, 224, "bilinear", INC)),
    "kaiko-vitl14": (1024, 256, 0.5, False, KAIKO, "fp32", (224, 224, "bilinear", INC)),
    "hibou-b": (768, 224, 0.5, True, "Apache-2.0", "fp32", REFUSED),
    "hibou-l": (1024, 224, 0.5, True, "Apache-2.0", "fp32", REFUSED),
    "midnight": (3072, 224, 0.5, True, "MIT", "fp16", (224, 224, "bilinear", INC)),
    "midnight-cls": (1536, 224, 0.5, True, "MIT", "fp16", (224, 224, "bilinear", INC)),
}


@pytest.mark.parametrize("name", FACTS)
def test_an_entry_states_the_facts(name: str) -> None:
    spec = SPECS[name]
    image = spec.image and (
        spec.image.resize or spec.image.size,
        spec.image.size,
        spec.image.interpolation,
        (spec.image.mean, spec.image.std),
    )
    stated = spec.dim, spec.patch_size, spec.mpp, spec.gated, spec.licence, spec.precision, image
    assert stated == FACTS[name]
    assert (image is None) == bool(spec.refused) == (spec.component is None)
    assert spec.pooling in POOLINGS or spec.refused
    assert spec.repo is None or spec.source == f"https://huggingface.co/{spec.repo}"


def test_no_entry_is_left_out() -> None:
    assert set(SPECS) == {*FACTS, "handcrafted-he", "pixels"}


def test_only_what_a_source_states_is_pinned() -> None:
    pinned = {name: spec.revision for name, spec in SPECS.items() if spec.revision}
    assert pinned == {"uni": "77ffbca1ee1cdcee6e87f6deebd2db8a5888c721"}
    assert not any(spec.sha256 for spec in SPECS.values())


def row(name: str, spec: EncoderSpec) -> str:
    reads, runs = "", "yes"
    if spec.image:
        edge, size = spec.image.resize, spec.image.size
        reads = f"{edge} px, centre {size}" if edge else f"{size} px"
        reads += f", {spec.image.interpolation}"
    if spec.refused:
        runs = "no"
    cells = [
        *(f"`{name}`", spec.dim or "pixels", f"{spec.patch_size} px at {spec.mpp}"),
        *(spec.pooling or "", reads, spec.precision if spec.image else ""),
        *(spec.licence, "yes" if spec.gated else "", runs),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = (
    "| Encoder | D | Patch, um/px | Pooling | Resized to | On a GPU | Licence | Gated | Runs |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def table() -> str:
    return "\n".join([HEAD, *(row(name, spec) for name, spec in sorted(SPECS.items()))])


def test_the_page_shows_the_catalogue() -> None:
    told = "Write it anew: python tests/test_encoders_catalogue.py"
    assert f"\n{table()}\n\n" in PAGE.read_text(encoding="utf-8"), told


def test_the_page_tells_every_reason_for_a_refusal() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for name, spec in SPECS.items():
        if spec.refused:
            assert f"`{name}`" in text and spec.refused in text, name


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, there, rest = text.partition(HEAD.partition("\n")[0])
    assert there, "the page has no table that begins like this one"
    after = rest.partition("\n\n")[2]
    PAGE.write_text(f"{before}{table()}\n\n{after}", encoding="utf-8")
