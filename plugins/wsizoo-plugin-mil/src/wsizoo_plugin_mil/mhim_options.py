"""The options of MHIM-MIL, and what its versions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wsizoo.errors import SpecError
from wsizoo.mil.options import check_choice, check_shares, check_sizes
from wsizoo.targets import check_kinds
from wsizoo_plugin_mil.attention_pooling import EMBEDDING_ACTIVATIONS
from wsizoo_plugin_mil.mhim_masking import AT_RANDOM, Share

TAKES = ("all", "embedding", "none")


@dataclass(frozen=True)
class Options:
    """Options with the values of version 2.

    Args:
        dim, dropout: width E of the embedding; after it, the teacher's too, training only.
        activation: of the embedding, "relu" or "gelu".
        pooling: activation of the attention network, "relu", "gelu" or "tanh".
        by_class: patches are ranked by the probability of the likeliest class of what they bring
            into the slide, of survival by the risk; or by attention, as of v1, and where there is
            one output.
        high: share of the patches that are masked, of those the teacher ranks highest.
        high_among: they are drawn at random from high / high_among of all; 1: none is drawn.
        at_random: share that is masked at random. low: of those that are ranked lowest.
        fading: `high` falls to 0 along a cosine in training.
        queries: tokens into which `Merging` makes those that are not kept; 0: no merging.
        keep, merge_momentum, merge_test: share of tokens that is not merged; of the queries; in
            evaluation all tokens are merged too, beside themselves.
        alpha: weight of the consistency. temperature: of the teacher's vectors in it.
        momentum: of the teacher. rising: it rises to 1 along a cosine in training.
        teacher: a trained model of this kind, by its name or folder, as which the teacher begins; a
            baseline is one with high=0 at_random=0 queries=0 alpha=0. None: see warm_up.
            student: what the student takes of it then, "none", "embedding" or "all".
        warm_up: without a teacher, share of the steps that train the baseline. It is ours; half, as
            the authors train both networks equally long.
    """

    dim: int = 512
    dropout: float = 0.25
    activation: str = "gelu"
    pooling: str = "relu"
    by_class: bool = True
    high: float = 0.03
    high_among: float = 1.0
    at_random: float = 0.0
    low: float = 0.0
    fading: bool = False
    queries: int = 5
    keep: float = 0.8
    merge_momentum: float = 0.9999
    merge_test: bool = False
    alpha: float = 0.5
    temperature: float = 0.1
    momentum: float = 0.9997
    rising: bool = False
    teacher: str | None = None
    student: str = "embedding"
    warm_up: float = 0.5

    @classmethod
    def of(cls, version: str, given: Mapping[str, Any]) -> Options:
        """Those of a version, but for the given ones.

        Raises:
            SpecError: one that does not exist, or a value that is none of it.
        """
        known = [field.name for field in fields(cls)]
        odd = [name for name in given if name not in known]
        if odd:
            raise SpecError(f"MHIM has no option '{odd[0]}'. It takes: {', '.join(known)}")
        check_choice("MHIM", VERSIONS, version=version)
        check_kinds(cls, "MHIM", dict(given))
        options = cls(**{**VERSIONS[version], **given})
        options.check()
        return options

    def check(self) -> None:
        check_choice("MHIM", TAKES, student=self.student)
        check_choice("MHIM", EMBEDDING_ACTIVATIONS, activation=self.activation)
        check_sizes("MHIM", dim=self.dim)
        check_sizes("MHIM", 0, queries=self.queries)
        for name in ("dropout", "high", "at_random", "low", "keep", "warm_up"):
            check_shares("MHIM", **{name: getattr(self, name)})
        for name in ("high_among", "momentum", "merge_momentum"):
            check_shares("MHIM", whole=True, **{name: getattr(self, name)})
        for name in ("high_among", "temperature"):
            if not getattr(self, name) > 0:
                raise SpecError(f"MHIM's {name} is {getattr(self, name)}, expected more than 0")
        if not self.alpha >= 0:
            raise SpecError(f"MHIM's alpha is {self.alpha}, expected 0 or more")

    def shares(self, high: float) -> list[Share]:
        """What is masked, in the published order, where `high` has come to this."""
        found = [
            Share(self.at_random, False, AT_RANDOM),
            Share(self.low, False),
            Share(high, True, self.high_among),
        ]
        return [share for share in found if share.ratio > 0]


VERSIONS: dict[str, dict[str, Any]] = {
    "v1": {
        "activation": "relu",
        "by_class": False,
        "high": 0.01,
        "high_among": 0.5,
        "at_random": 0.5,
        "fading": True,
        "queries": 0,
        "alpha": 0.1,
        "momentum": 0.9999,
    },
    "v2": {},
}
