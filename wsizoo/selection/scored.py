"""Selectors that score every patch and keep the k best."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import BagError, PluginError
from wsizoo.interfaces import Selected, Selector
from wsizoo.ops import hard_topk
from wsizoo.selection.budget import check_budget, kept_count

log = logging.getLogger(__name__)


class ScoredSelector(Selector):
    """Keeps the k patches that `score` ranks highest, of equal ones the first.

    Args:
        in_dim: width D of the features.
        k: how many patches are kept, or (a number with a point, up to 1.0) which share of them.
    """

    def __init__(self, in_dim: int, k: int | float = 32) -> None:
        super().__init__(in_dim)
        check_budget(k)
        self.k = k
        self._told = False

    def score(self, bag: Bag) -> Tensor:
        """(N,) float32, larger is rather kept; any scale."""
        raise NotImplementedError

    def finite_scores(self, bag: Bag) -> Tensor:
        """`score`, checked.

        Raises:
            PluginError: not one number a patch, naming the selector.
            BagError: a score that is not finite, naming the slide.
        """
        scores = self.score(bag)
        if scores.shape != (len(bag),):
            raise PluginError(
                f"the selector {type(self).__name__} gives scores {tuple(scores.shape)} for slide "
                f"'{bag.slide_id}', expected ({len(bag)},)"
            )
        bad = torch.nonzero(~torch.isfinite(scores.detach()))[:, 0]
        if len(bad):
            raise BagError(
                f"slide '{bag.slide_id}': the selector's scores of {len(bad)} of {len(bag)} "
                f"patches are {float(scores.detach()[bad[0]])}, first patch {int(bad[0])}, "
                "expected finite ones. Look at its weights: a training with a smaller step keeps "
                "them finite"
            )
        return scores

    def hard(self, bag: Bag) -> Selected:
        """The kept patches as they are, in the order of the bag, and the scores of all."""
        with torch.no_grad():
            scores = self.finite_scores(bag)
        self.tell_if_all(bag)
        index = hard_topk(scores, kept_count(self.k, len(bag)))  # (K,)
        return Selected(bag if len(index) == len(bag) else bag.subset(index), index, scores)

    def tell_if_all(self, bag: Bag) -> None:
        if isinstance(self.k, int) and self.k > len(bag) and not self._told:
            self._told = True
            log.warning(
                "slide '%s' has only %d of the k=%d patches that the selector keeps: all are kept "
                "(said once, of the first such slide)",
                bag.slide_id,
                len(bag),
                self.k,
            )

    def forward(self, bag: Bag) -> Selected:
        return self.hard(bag)
