"""kNN: who votes, what the votes are of each head, and what it learns."""

import math

import pytest
import torch
from wsizoo_plugin_mil.knn import KNN

import wsizoo
from wsizoo import Bag
from wsizoo.errors import DataError, SpecError

WAYS = torch.eye(4)


def slide(way, name="S", **target):
    """Three patches whose mean is along one axis, a little off."""
    features = WAYS[way] + torch.tensor([[0.1], [0.0], [-0.1]]) + 0.01
    return Bag(features, target=target or None, slide_id=name)


def trained(n_outputs, task, slides, **options):
    plain = {"capacity": 9, "k": 2, "standardise": False, "temperature": None}
    model = KNN(4, n_outputs, task=task, **{**plain, **options})
    model.start_training(1, slides)
    return model.eval()


def test_more_training_slides_than_there_is_room_for_are_refused():
    slides = [slide(0, str(i), label=0) for i in range(3)]
    with pytest.raises(DataError, match=r"room for 2 training slides.*aggregator.capacity"):
        trained(2, "classification", slides, capacity=2)


def test_training_slides_have_names_of_their_own():
    with pytest.raises(DataError, match=r"two training slides are called 'S'.*Give each bag a sli"):
        trained(2, "classification", [slide(0, label=0), slide(1, label=1)])


def test_a_target_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"slide 'S' has no target 'event', which kNN votes on"):
        trained(4, "survival", [slide(0, time=1)])


CLASSES = [slide(0, "a", label=2), slide(0, "b", label=2), slide(1, "c", label=0)]


def test_the_nearest_slides_vote():
    logits = trained(3, "classification", CLASSES)(slide(0)).logits
    prior = torch.tensor([1, 0, 2]) / 3
    expected = (torch.tensor([0, 0, 2]) + 0.5 * prior) / 2.5
    torch.testing.assert_close(logits, expected.clamp(1e-6).log())
    assert trained(3, "classification", CLASSES, k=1)(slide(1)).logits.argmax() == 0


def test_slides_of_unknown_label_do_not_vote():
    model = trained(3, "classification", [*CLASSES, slide(1, "d", label=-1)])
    assert int(model.filled) == 3


def test_equal_votes_go_to_the_frequent_class():
    slides = [*CLASSES[1:], slide(3, "d", label=2)]
    assert trained(3, "classification", slides)(slide(0)).logits.argmax() == 2


def test_no_slide_is_its_own_neighbour_in_training():
    model = trained(3, "classification", CLASSES, k=1)
    asked = slide(1, "c", label=0)
    assert model(asked).logits.argmax() == 0
    assert model.train()(asked).logits.argmax() == 2


def test_one_logit_is_of_the_second_class():
    model = trained(1, "classification", [slide(0, "a", label=1), slide(1, "b", label=0)], k=1)
    shares = [(1 + 0.25) / 1.5, 0.25 / 1.5]
    for way, share in enumerate(shares):
        expected = torch.tensor([math.log(share / (1 - share))])
        torch.testing.assert_close(model(slide(way)).logits, expected)


def test_hazards_are_of_those_at_risk():
    slides = [slide(0, "a", time=1, event=1), slide(0, "b", time=2, event=0)]
    logits = trained(4, "survival", slides)(slide(0)).logits
    # events and those at risk by bin, and half of their means
    told, of = torch.tensor([0, 1.25, 0, 0]), torch.tensor([2.5, 2.5, 1.25, 0])
    share = (told / of.clamp(min=1e-6)).clamp(1e-6, 1 - 1e-6)
    torch.testing.assert_close(logits, torch.logit(share))


def test_cox_is_events_per_time():
    slides = [slide(0, "a", time=10.0, event=1), slide(1, "b", time=40.0, event=1)]
    model = trained(1, "survival", slides, k=1)
    expected = math.log(1.5 / (10 + 12.5))
    torch.testing.assert_close(model(slide(0)).logits, torch.tensor([expected]))
    assert model(slide(0)).logits > model(slide(1)).logits


def test_regression_is_the_mean_of_the_neighbours():
    slides = [slide(0, "a", value=3.0), slide(0, "b", value=3.0), slide(1, "c", value=9.0)]
    torch.testing.assert_close(
        trained(1, "regression", slides)(slide(0)).logits, torch.tensor([(6 + 0.5 * 5) / 2.5])
    )


def test_votes_weigh_by_likeness_and_add_up_to_their_number():
    model = trained(3, "classification", CLASSES, k=3, temperature=0.5)
    index, votes = model.neighbours(slide(0).features.mean(0)[None], [slide(0, "x")])
    near = model.vectors[index[0]] @ torch.nn.functional.normalize(WAYS[0] + 0.01, dim=0)
    torch.testing.assert_close(votes[0], 3 * torch.softmax(near / 0.5, 0))
    own = model.train().neighbours(slide(1).features.mean(0)[None], [slide(1, "c")])[1][0]
    torch.testing.assert_close(own, torch.tensor([1.0, 1.0, 0.0]))
    alone = trained(3, "classification", CLASSES[:1], temperature=0.5).train()
    assert alone.neighbours(WAYS[:1], CLASSES[:1])[1].tolist() == [[0.0]]


def test_mean_patches_are_standardised_by_the_training_slides():
    ways = [0, 0, 1, 1]
    shift = torch.tensor([500.0, 0, 0, 0])
    slides = [
        Bag(slide(w).features + shift, target={"label": w}, slide_id=str(i))
        for i, w in enumerate(ways)
    ]
    model = trained(2, "classification", slides, standardise=True)
    means = torch.stack([bag.features.mean(0) for bag in slides])
    rows = means - means.mean(0)
    rows[:, :2] /= means.std(0, correction=0)[:2]
    torch.testing.assert_close(model.vectors[:4], torch.nn.functional.normalize(rows, dim=1))
    assert model(slides[0]).logits.argmax() == 0 and model(slides[3]).logits.argmax() == 1


@pytest.mark.parametrize(("m", "expected"), [(3, 1), (20, 5), (60, 10)])
def test_of_few_training_slides_a_quarter_votes(m, expected):
    slides = [slide(i % 4, str(i), label=i % 2) for i in range(m)]
    model = trained(2, "classification", slides, k=None, capacity=m)
    assert model.neighbours(WAYS[:1], slides[:1])[0].shape == (1, expected)


def test_a_temperature_is_above_0():
    with pytest.raises(SpecError, match="kNN's temperature is 0, expected more than 0, or null"):
        KNN(4, 2, temperature=0)


def test_the_factor_changes_no_call():
    model = trained(3, "classification", CLASSES)
    before = model(slide(0)).logits
    with torch.no_grad():
        model.log_factor.fill_(1.0)
    torch.testing.assert_close(model(slide(0)).logits, math.e * before)


def test_it_is_saved_with_its_slides(tmp_path):
    model = wsizoo.build("knn-uni", "head.classes=[a,b]", "aggregator.capacity=5")
    bags = [Bag(torch.randn(9, 1024), target={"label": i % 2}, slide_id=str(i)) for i in range(4)]
    model.start_training(1, bags)
    wsizoo.save(model, tmp_path / "x")
    again = wsizoo.load(tmp_path / "x")
    torch.testing.assert_close(again(bags[1]).logits, model(bags[1]).logits)
    assert again(bags[1]).logits.any()


def test_names_of_slides_are_not_published_and_what_is_is_said(tmp_path):
    model = wsizoo.build("knn-uni", "encoder.dim=4", "aggregator.capacity=3", "head.classes=[a,b]")
    slides = [slide(0, "a", label=0), slide(1, "b", label=1)]
    model.start_training(1, slides)
    model.trained = True
    assert "aggregator.names" in model.state_dict()
    assert "aggregator.names" not in model.inference_state()
    folder = wsizoo.save(model.eval(), tmp_path / "model")
    assert "mean patch vector and the label, time or value" in (folder / "README.md").read_text()
    again = wsizoo.load(folder)
    torch.testing.assert_close(again(slides[0]).logits, model(slides[0]).logits)
