"""The encoder fingerprint: what a feature vector is, so that two of them can be compared.

The same encoder name gives different vectors in different tools (a projection on or off, another
resize), and widths agree all the same. A fingerprint travels with every feature file and every set
of weights; fields that both sides state must agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from wsizoo.errors import DataError, FingerprintError

SCALE_TOLERANCE = 1e-3  # relative; an encoder's mpp is a nominal number, not a measurement
OPTIONS = {"mpp": "--patch-mpp", "patch_size": "--patch-size"}  # of wsizoo extract


@dataclass(frozen=True)
class Fingerprint:
    """What made a set of features. None means: not known, and is never compared.

    Args:
        encoder: name in the zoo, e.g. `"uni"`.
        revision: commit of the encoder's weights on the Hub, or the version of built-in code.
        weights: sha256 of the encoder's weights (or of its constants).
        preprocessing: one line that changes whenever the pixels that reach the network change.
        pooling: which output is the vector, e.g. `"cls"`, `"cls+mean"`.
        mpp: microns per pixel at which patches were asked for.
        patch_size: edge of a patch in pixels at that scale.
        declared: the encoder was named by the user, not recorded by a tool that knew.
    """

    encoder: str | None = None
    revision: str | None = None
    weights: str | None = None
    preprocessing: str | None = None
    pooling: str | None = None
    mpp: float | None = None
    patch_size: int | None = None
    declared: bool = False

    def stated(self) -> dict[str, Any]:
        """The comparable fields that are known, by name."""
        fields = dataclasses.asdict(self)
        del fields["declared"]
        return {name: value for name, value in fields.items() if value is not None}

    def differences(self, other: Fingerprint) -> dict[str, tuple[Any, Any]]:
        """Fields that both state and that disagree: name -> (mine, theirs)."""
        mine, theirs = self.stated(), other.stated()
        return {
            name: (mine[name], theirs[name])
            for name in mine
            if name in theirs and not _agree(mine[name], theirs[name])
        }

    def unverified(self, other: Fingerprint) -> list[str]:
        """Fields that I state and the other does not."""
        return [name for name in self.stated() if name not in other.stated()]

    def check_accepts(self, features: Fingerprint, model: str, bag: str) -> None:
        """Raise unless features with this fingerprint may meet a model that requires me.

        Raises:
            FingerprintError: naming the first field that differs, and both values.
        """
        for field, (mine, theirs) in self.differences(features).items():
            if field == "encoder":
                raise FingerprintError(
                    f"{model} was made for {mine} features; {bag} was encoded with {theirs}. "
                    "Widths may agree, the features do not. Use features of "
                    f"{mine}, or a model that reads yours: wsizoo list --encoder {theirs}"
                )
            scale = (f" {OPTIONS[k]} {v}" for k, v in self.stated().items() if k in OPTIONS)
            how = "".join(scale) if field in OPTIONS else ""  # both: one unsaid is a default
            raise FingerprintError(
                f"{model} was made for {self.encoder or 'encoder'} features with {field} {mine}; "
                f"those of {bag} were made with {field} {theirs}. Widths may agree, the features "
                f"do not. Extract again: wsizoo extract SLIDE -e {self.encoder or 'ENCODER'}"
                f"{how}"
            )

    def meet(
        self, features: Fingerprint | None, model: str, bag: str, force: bool = False
    ) -> Meeting:
        """How features with this fingerprint, or with none, come to a model that requires me.

        Args:
            force: go on where they may not meet, and say why in the result.

        Raises:
            FingerprintError: as `check_accepts`, unless forced.
        """
        theirs = features or Fingerprint()
        if not force:
            try:
                self.check_accepts(theirs, model, bag)
            except FingerprintError as error:
                raise FingerprintError(
                    f"{error}. To go on all the same, with every output marked: --force"
                ) from None
        wrong = [f"{name} {b}, not {a}" for name, (a, b) in self.differences(theirs).items()]
        return Meeting("; ".join(wrong), tuple(self.unverified(theirs)), theirs.declared)

    def check_same(self, other: Fingerprint, mine: str, theirs: str) -> None:
        """Raise FingerprintError unless two bags (named for the message) were made alike."""
        for field, (first, second) in self.differences(other).items():
            raise FingerprintError(
                f"{mine} and {theirs} were encoded differently: {field} {first} and {second}. "
                "Extract both with one encoder, at one scale: wsizoo extract SLIDES -e ENCODER"
            )

    def digest(self) -> str:
        """Short stable name of this fingerprint, for file names and reports."""
        text = json.dumps(self.stated(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {**self.stated(), **({"declared": True} if self.declared else {})}

    @classmethod
    def from_json(cls, record: Any) -> Fingerprint:
        """Read back `to_json`. Raises DataError: fields this version does not know, wrong types."""
        if not isinstance(record, dict):
            raise DataError(f"An encoder fingerprint is a mapping of fields, got {record!r}")
        extra = sorted(set(record) - set(_TYPES))
        if extra:
            raise DataError(
                f"An encoder fingerprint states fields this wsizoo does not know: {extra}. "
                "It was written by a newer version: pip install --upgrade wsizoo"
            )
        for name, value in record.items():
            if value is not None and type(value) not in _TYPES[name]:
                expected = " or ".join(kind.__name__ for kind in _TYPES[name])
                raise DataError(
                    f"An encoder fingerprint states {name} {value!r}, expected {expected}"
                )
        return cls(**record)


@dataclass(frozen=True)
class Meeting:
    """How the features of a slide came to a model; what comes of it says so too.

    Args:
        forced: why they should not have met, "" where they may. unverified: fields that the model
            requires and the features do not state. declared: the user named the encoder.
    """

    forced: str = ""
    unverified: tuple[str, ...] = ()
    declared: bool = False

    def stamp(self) -> dict[str, Any]:
        """What there is to say, for the record beside a result."""
        told = {"forced": self.forced, "unverified": list(self.unverified)}
        return {
            name: value for name, value in (*told.items(), ("declared", self.declared)) if value
        }


_TYPES: dict[str, tuple[type, ...]] = {
    **{field.name: (str,) for field in dataclasses.fields(Fingerprint)},
    "mpp": (float, int),
    "patch_size": (int,),
    "declared": (bool,),
}


def _agree(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, float) or isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=SCALE_TOLERANCE)
    return bool(mine == theirs)
