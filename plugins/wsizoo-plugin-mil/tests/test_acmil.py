"""ACMIL's masking and its two losses, each against its definition."""

import pytest
import torch
import torch.nn.functional as F
from wsizoo_plugin_mil.acmil import HIDDEN_SCORE, AcmilGA, AcmilMHA, likeness

from wsizoo import Bag
from wsizoo.errors import SpecError


def test_a_share_of_the_best_patches_is_hidden():
    module = AcmilGA(6, 2, 8, 4, masked=5, mask_drop=0.7)
    raw = torch.randn(3, 40)
    hidden = module.hidden(raw) == HIDDEN_SCORE
    assert hidden.sum(1).tolist() == [3, 3, 3]  # of 3.5
    assert not bool((hidden & (raw < raw.sort(1, descending=True).values[:, 4:5])).any())
    first, second = (module.hidden(raw) for _ in range(2))
    assert not torch.equal(first, second)


def test_small_slides_are_not_hidden_as_a_whole():
    module = AcmilGA(6, 2, 8, 4)
    assert [int((module.hidden(torch.randn(1, n)) < -1e8).sum()) for n in (1, 2, 5)] == [0, 1, 3]


def test_nothing_is_hidden_in_evaluation():
    module = AcmilGA(6, 2, 8, 4).eval()
    scores = module(Bag(torch.randn(9, 6))).scores
    assert float(scores.min()) > 0 and float(scores.sum()) == pytest.approx(1)


def test_likeness_is_the_mean_cosine_of_all_pairs():
    weights = torch.rand(3, 2, 7)
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosines = [F.cosine_similarity(weights[i], weights[j], dim=1).mean() for i, j in pairs]
    torch.testing.assert_close(likeness(weights), torch.stack(cosines).mean())


def test_slides_without_a_label_train_all_branches():
    module = AcmilGA(6, 4, 8, 4).train()
    found = module(Bag(torch.randn(9, 6), target={"time": 1, "event": 1}))
    assert found.predictions["branches/0"].logits.shape == (5, 4)
    assert set(found.losses) == {"diversity"}


def test_tokens_make_no_keys_and_no_values_of_patches():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                largest = max(largest, made.numel())
            return made

    module, n = AcmilMHA(64, 2, 64, heads=2, branches=3), 500
    with Watch():
        module(Bag(torch.randn(n, 64)))
    assert largest == n * 64  # the embedding; scores are n x 6


def test_heads_share_the_width():
    with pytest.raises(SpecError, match=r"ACMIL's dim is 12, expected a multiple of its heads \(8"):
        AcmilMHA(6, 2, dim=12)
