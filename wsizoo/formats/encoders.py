"""Names that other tools give to encoders, and what each of them means by it.

One name is not one vector: tools differ in pooling, projection, weights and preprocessing. Where a
tool's vectors are those of the zoo's entry, its fingerprint has the zoo's name and leaves to the
zoo what is not said; where they are known to differ, the field in which they do is stated, so that
they are refused by a model that was trained on the others.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from wsizoo.errors import DataError, FingerprintError, NotFoundError
from wsizoo.fingerprint import Fingerprint
from wsizoo.names import near_names, suggest
from wsizoo.registry import default

log = logging.getLogger(__name__)

Meaning = dict[str, Any]
MISSPELT = 0.85  # names at least so near are one name with a slip, not two


def _is(name: str, **differs: Any) -> Meaning:
    return {"encoder": name, **differs}


CHIEF = _is("chief-ctranspath")  # CTransPath's network with the weights that CHIEF was made with
CONCH = _is("conch", pooling="attention")
CONCH_PROJECTED = _is("conch", pooling="contrastive projection")
TRIDENT: dict[str, Meaning] = {
    "uni_v1": _is("uni"),
    "uni_v2": _is("uni2-h"),
    "conch_v1": CONCH,
    "conch_v15": _is("conch-v1.5"),
    "gigapath": _is("gigapath"),
    "virchow": _is("virchow"),
    "virchow2": _is("virchow2"),
    "hoptimus0": _is("h-optimus-0"),
    "hoptimus1": _is("h-optimus-1"),
    "h0-mini": _is("h0-mini", pooling="cls"),
    "phikon": _is("phikon"),
    "phikon_v2": _is("phikon-v2"),
    "resnet50": _is("resnet50-trunc"),
    "ctranspath": CHIEF,
    "lunit-vits8": _is("lunit-vits8"),
    "hibou_l": _is("hibou-l"),
    "midnight12k": _is("midnight-cls"),
    "kaiko-vits8": _is("kaiko-vits8"),
    "kaiko-vits16": _is("kaiko-vits16"),
    "kaiko-vitb8": _is("kaiko-vitb8"),
    "kaiko-vitb16": _is("kaiko-vitb16"),
    "kaiko-vitl14": _is("kaiko-vitl14"),
}
STAMP: dict[str, Meaning] = {
    "ctranspath": _is("ctranspath"),
    "xiyuewang-ctranspath": _is("ctranspath"),
    "chief-ctranspath": CHIEF,
    "mahmood-uni": _is("uni"),
    "mahmood-uni2": _is("uni2-h"),
    "mahmood-conch": CONCH,
    "mahmood-conch1-5": _is("conch-v1.5"),
    "gigapath": _is("gigapath"),
    "h-optimus-0": _is("h-optimus-0"),
    "h-optimus-1": _is("h-optimus-1"),
    "virchow": _is("virchow-cls"),
    "virchow-full": _is("virchow"),
    "virchow2": _is("virchow2-cls"),
}
LAZYSLIDE: dict[str, Meaning] = {
    "uni": _is("uni"),
    "uni2": _is("uni2-h"),
    "conch": CONCH_PROJECTED,
    "conch_v1.5": _is("conch-v1.5"),
    "gigapath": _is("gigapath", preprocessing="resize 224 (LazySlide)"),
    "virchow": _is("virchow"),
    "virchow2": _is("virchow2"),
    "h-optimus-0": _is("h-optimus-0"),
    "h-optimus-1": _is("h-optimus-1"),
    "h0-mini": _is("h0-mini", pooling="cls+mean"),
    "phikon": _is("phikon"),
    "phikonv2": _is("phikon-v2"),
    "ctranspath": _is("ctranspath"),
    "chief": CHIEF,
    "plip": _is("plip"),
    "midnight": _is("midnight"),
    "hibou-b": _is("hibou-b"),
    "hibou-l": _is("hibou-l"),
}
SLIDEFLOW: dict[str, Meaning] = {
    "ctranspath": _is("ctranspath"),
    "uni": _is("uni"),
    "virchow": _is("virchow"),
    "virchow2": _is("virchow2"),
    "gigapath": _is("gigapath"),
    "plip": _is("plip"),
    "phikon": _is("phikon"),
}
OURS = "wsizoo-"  # before a name that a tool uses for something else
TOOLS = {"trident": TRIDENT, "stamp": STAMP, "lazyslide": LAZYSLIDE, "slideflow": SLIDEFLOW}


def fingerprint_of(tool: str, theirs: str, **known: Any) -> Fingerprint:
    """What a tool's name of an encoder means; an unknown name is kept as it is.

    Args:
        known: other fields that the file states.
    """
    meaning = TOOLS[tool].get(_plain(tool, theirs), {"encoder": theirs.removeprefix(OURS)})
    return Fingerprint(**{**meaning, **known})


def name_in(tool: str, made: Fingerprint) -> str:
    """The tool's name for what an encoder of the zoo gives; the zoo's own where it has none.

    Where the tool means something else by the zoo's name, `wsizoo-` comes before it.
    """
    encoder, names = made.encoder or "", TOOLS[tool]
    for theirs, meant in names.items():
        if meant["encoder"] == encoder and not Fingerprint(**meant).differences(made):
            return theirs
    return OURS + encoder if encoder in names else encoder


def declared(made: Fingerprint | None, encoder: str | None, path: object, tool: str) -> Fingerprint:
    """The fingerprint of a file's features, with what the user says of them.

    Raises:
        DataError: neither the file nor the user names an encoder.
        FingerprintError: they contradict each other.
        NotFoundError: the zoo has no such encoder, but one of a near name.
    """
    stated = made or Fingerprint()
    if encoder is None:
        if stated.encoder is None:
            raise DataError(
                f"'{path}' ({tool}) does not say which encoder made its features. Name it: "
                "--encoder NAME (encoder=...); the zoo's names: wsizoo list --encoders"
            )
        return stated
    if stated.encoder is None:
        return Fingerprint(**{**stated.stated(), **_meant(tool, encoder), "declared": True})
    meant = TOOLS.get(tool, {}).get(encoder, {"encoder": encoder})["encoder"]
    if stated.encoder not in (encoder, meant):
        raise FingerprintError(
            f"'{path}' ({tool}) says that its features are of {stated.encoder}, you said "
            f"{encoder}. Leave out --encoder, or give files of {encoder}"
        )
    return stated


def _meant(tool: str, encoder: str) -> Meaning:
    """What a name that the user gives means: the zoo's name, else the tool's."""
    known = default().encoders
    theirs = TOOLS.get(tool, {})
    if encoder in known or encoder in theirs:
        return _is(encoder) if encoder in known else theirs[encoder]
    if near_names(encoder, known, MISSPELT):
        raise NotFoundError(
            f"No encoder named '{encoder}'. {suggest(encoder, known, '')} If you mean one that the "
            "zoo does not know, give it a name that is not so near"
        )
    log.warning(
        "encoder '%s' is unknown to the zoo, so models can be held to its name only; known ones: "
        "wsizoo list --encoders", encoder,
    )  # fmt: skip
    return _is(encoder)


def _plain(tool: str, theirs: str) -> str:
    """Without what differs from run to run."""
    name = theirs.strip().lower()
    if tool == "stamp":  # STAMP-extract-001_01-10-2023_xiyuewang-ctranspath-7c998680
        name = re.sub(r"^stamp-extract-[^_]*_[^_]*_", "", name)
        name = re.sub(r"-[0-9a-f]{8}$", "", name).replace("_", "-")
    if tool == "slideflow":  # slideflow.model.extractors.uni.UNIFeatures
        name = name.rpartition(".")[2].removesuffix("features")
    return name
