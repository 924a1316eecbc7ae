"""DTFD-MIL's groups and what they hand on, each against its definition."""

import numpy
import pytest
import torch
from wsizoo_plugin_mil.dtfd import DTFD, drawn_orders, members
from wsizoo_plugin_mil.dtfd_format import DTFDOfficial

import wsizoo
from wsizoo import Bag
from wsizoo.errors import SpecError


@pytest.mark.parametrize("n", [1, 3, 4, 11])
def test_groups_are_cut_as_numpy_does(n):
    order = torch.randperm(n)
    expected = numpy.array_split(order.numpy(), 4)
    found = [group.nonzero()[:, 0].tolist() for group in members(order, 4).unbind(1)]
    assert found == [sorted(each.tolist()) for each in expected]


@pytest.mark.parametrize("compat", [None, "published"])
def test_small_slides_have_empty_groups_only_as_published(compat):
    module = DTFD(6, 2, dim=8, attention=4, compat=compat).train()
    output = module(Bag(torch.randn(3, 6)))
    judged = output.predictions["groups/0"].logits
    assert len(judged) == (4 if compat else 3)
    if compat:
        torch.testing.assert_close(judged[3], module.judge.bias)
    (output.logits.sum() + judged.sum()).backward()
    assert bool(torch.isfinite(module.embed[0].weight.grad).all())


def test_evaluation_draws_the_same_groups_each_time():
    assert torch.equal(*(drawn_orders(9, 2)[1] for _ in range(2)))
    assert not torch.equal(*drawn_orders(9, 2))


def test_several_shuffles_are_the_mean_of_probabilities():
    module, bag = DTFD(6, 3, dim=8, attention=4, shuffles=3).eval(), Bag(torch.randn(20, 6))
    rows = module.embed(bag.features)
    scores = module.attention(rows)[:, 0]
    each = [module.pooled(rows, scores, order)["logits"] for order in drawn_orders(20, 3)]
    expected = torch.stack(each).softmax(1).mean(0)
    torch.testing.assert_close(module(bag).logits.softmax(0), expected)
    assert not torch.allclose(each[0], each[1])
    assert module.mean_of(each[:1]) is each[0]


def test_each_tier_is_trained_by_its_own_loss():
    module = DTFD(6, 3, dim=8, attention=4).train()
    output = module(Bag(torch.randn(20, 6)))
    output.logits.sum().backward()
    assert module.embed[0].weight.grad is None
    assert module.attention_of_groups.value.weight.grad is not None


def test_mil_lab_trains_both_tiers_by_both_losses():
    module = DTFD(6, 3, variant="mil-lab", dim=8, attention=4).train()
    output = module(Bag(torch.randn(20, 6)))
    output.logits.sum().backward()
    assert module.embed[0].weight.grad is not None
    weights = output.task_weight, output.predictions["groups/0"].weight
    assert weights == pytest.approx((0.7, 0.3))


def test_best_and_worst_patches_are_handed_on_group_by_group():
    module = DTFD(6, 2, distill="maxmins", groups=2, total=4, dim=8, attention=4)
    surest = torch.tensor([0.1, 0.9, 0.5, 0.4, 0.3, 0.9])
    member = torch.tensor([[1, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0]]).bool().t()
    assert module.chosen(surest, member).tolist() == [1, 5, 2, 0, 3, 4, 3, 4]
    module.distill = "maxs"
    assert module.chosen(surest, member).tolist() == [1, 5, 3, 4]


def test_published_groups_that_hand_on_no_patch_hand_on_all():
    module = DTFD(
        *(6, 2), distill="maxmins", groups=8, total=4, dim=8, attention=4, compat="published"
    )
    rows = torch.rand(20, 8)
    index = module.pooled(rows, torch.randn(20), None)["index"]
    assert sorted(index.tolist()) == list(range(20))


def test_one_output_ranks_patches_by_itself():
    module = DTFD(6, 1, distill="maxs", dim=8, attention=4)
    rows, paid = torch.rand(20, 8), torch.rand(20)
    expected = paid * (rows @ module.judge.weight[0])
    torch.testing.assert_close(module.surest(rows, paid), expected)


def test_four_state_dicts_in_one_file_are_read(tmp_path):
    model = wsizoo.build("dtfd-uni", "encoder.dim=24", "aggregator.dim=16", "head.classes=[a,b]")
    parts = {}
    for name, tensor in DTFDOfficial().write(model).items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[f"module.{rest}"] = tensor.detach().clone()
    assert len(parts) == 4
    torch.save(parts, tmp_path / "x.pth")
    given = "dtfd-official", "dtfd-uni", "encoder.dim=24", "aggregator.dim=16", "head.classes=[a,b]"
    again, bag = wsizoo.read_weights(tmp_path / "x.pth", *given), Bag(torch.randn(9, 24))
    torch.testing.assert_close(again(bag).logits, model(bag).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "x"}, "^DTFD's variant is 'x', expected one of dtfd, mil-lab$"),
        ({"distill": "max"}, "^DTFD's distill is 'max', expected one of afs, maxs, maxmins$"),
        ({"compat": "x"}, "^DTFD's compat is 'x', expected one of null, published$"),
        ({"distill": "maxs", "total": 3}, "DTFD has groups=4 and total=3, of which no group hands"),
        ({"distill": "maxs", "total": 3, "compat": "published"}, "groups=4 and total=3"),
        ({"shuffles": 2, "n_outputs": 1}, "DTFD's shuffles is 2, expected 1, or more with a head"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        DTFD(**{"in_dim": 6, "n_outputs": 3, **options})
