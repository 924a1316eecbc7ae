"""MHIM-MIL's masks, teacher, merging and losses, each against its definition."""

import pytest
import torch
import torch.nn.functional as F
from wsizoo_plugin_mil.mhim import MhimABMIL, MhimDSMIL, MhimTransMIL, consistency
from wsizoo_plugin_mil.mhim_masking import Share, cosine, kept_patches, ranking
from wsizoo_plugin_mil.mhim_merging import Merging

import wsizoo
from wsizoo import Bag, BagBatch
from wsizoo.errors import NotFoundError, SpecError
from wsizoo.losses import cross_entropy

BASELINE = {"high": 0, "at_random": 0, "queries": 0, "alpha": 0}


def bag(n=20, **target):
    return Bag(torch.randn(n, 6), target=target)


@pytest.mark.parametrize(
    ("share", "n", "expected"),
    [
        (Share(0.1), 50, (5, 5)),
        (Share(0.1), 51, (6, 6)),
        (Share(0.05, among=0.5), 150, (15, 8)),
        (Share(0.5, False, 0.001), 150, (150, 75)),
        (Share(0.7, among=0.6), 10, (10, 7)),
        (Share(0.03, among=0.5), 1, (1, 1)),
    ],
)
def test_how_many_are_ranked_and_masked(share, n, expected):
    assert share.counts(n) == expected


def test_what_several_shares_mask_is_united():
    scores = torch.arange(10.0)[None]
    shares = [Share(0.2, largest=False), Share(0.2), Share(0.1, among=0.5)]
    kept = kept_patches(scores, shares, orders=[torch.tensor([1, 0])])
    assert kept.tolist() == [2, 3, 4, 5, 6, 7]  # of ranked 9 and 8 the second is masked
    assert len(kept_patches(scores, [Share(0.5, False, 0.001)])) == 5


def test_a_slide_of_which_nothing_is_left_is_not_masked():
    assert kept_patches(torch.zeros(1, 1), [Share(0.03)]).tolist() == [0]


def test_heads_vote_and_ties_go_to_the_first():
    scores = torch.tensor([[5.0, 4, 3, 2], [1, 5, 4, 2], [9, 8, 0, 8.5]])
    assert ranking(scores, 2, largest=True).tolist() == [0, 1]
    assert ranking(scores, 2, largest=False).tolist() == [2, 3]
    assert ranking(torch.tensor([[1.0, 2, 2]]), 2, largest=True).tolist() == [1, 2]


def test_a_cosine_goes_from_one_end_to_the_other():
    assert [cosine(0.2, 1.0, x) for x in (0, 0.5, 1)] == pytest.approx([0.2, 0.6, 1.0])


def test_hard_patches_fade_and_the_momentum_rises():
    module = MhimABMIL(
        6, 2, dim=8, version="v1", at_random=0.0, fading=True, rising=True, warm_up=0
    )
    module.start_training(4, [])
    assert [share.ratio for share in module.shares()] == [0.01]
    module.after_step(2, 4)
    assert [share.ratio for share in module.shares()] == pytest.approx([0.005])
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.fill_(1.0)
        for buffer in module.teacher.buffers():
            buffer.fill_(0.0)
    module.after_step(3, 4)
    expected = 1 - cosine(0.9999, 1.0, 0.5)
    assert all(torch.allclose(b, torch.tensor(expected)) for b in module.teacher.buffers())


def test_the_teacher_begins_as_the_student_and_is_not_published():
    module = MhimABMIL(6, 2, dim=8)
    with torch.no_grad():
        module.student.embed[0].bias.fill_(3.0)
    module.start_training(4, [])
    assert bool((module.teacher.embed[0].bias == 3).all())
    names = set(module.inference_state())
    assert not any(name.startswith("teacher") or name == "steps" for name in names)
    assert {"student.embed.0.bias", "merging.queries"} <= names
    assert not any(name.startswith("teacher") for name, _ in module.named_parameters())


@pytest.mark.parametrize("student", ["all", "embedding", "none"])
def test_the_teacher_is_a_trained_baseline_and_the_student_takes_some_of_it(student, tmp_path):
    given = "mhim-abmil-uni", "encoder.dim=6", "aggregator.dim=8", "head.classes=[a,b]"
    plain = [f"aggregator.{name}={value}" for name, value in BASELINE.items()]
    baseline = wsizoo.build(*given, *plain, seed=1)
    wsizoo.save(baseline, tmp_path / "baseline")
    more = f"aggregator.teacher={tmp_path}/baseline", f"aggregator.student={student}"
    part = wsizoo.build(*given, *more, seed=2).aggregator
    part.start_training(4, [])
    taken = []
    for name, theirs in baseline.aggregator.student.named_parameters():
        assert torch.equal(part.teacher.get_buffer(name), theirs)
        taken.append(torch.equal(part.student.get_parameter(name), theirs))
    expected = {
        "all": [1, 1, 1, 1, 1, 1],
        "embedding": [1, 1, 0, 0, 0, 1],
        "none": [0, 1, 0, 0, 0, 1],
    }
    assert taken == expected[student]  # all biases begin as 0


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_without_a_teacher_it_first_trains_its_own_baseline(version):
    module = MhimABMIL(6, 2, dim=8, dropout=0.0, version=version, merge_test=True).train()
    plain = MhimABMIL(6, 2, dim=8, dropout=0.0, version=version, **BASELINE).train()
    plain.student.load_state_dict(module.student.state_dict())
    module.start_training(6, [])
    slide = bag()
    for step in (1, 2, 3):
        found = module(slide)
        assert (dict(found.losses), module.ready) == ({}, False)
        torch.testing.assert_close(found.logits, plain(slide).logits)
        assert all(share.ratio == module.options.high for share in module.shares()[-1:])
        module.after_step(step, 6)
    with torch.no_grad():
        module.student.embed[0].bias.fill_(3.0)
    module.after_step(3, 6)
    assert bool((module.teacher.embed[0].bias == 3).all())
    assert (set(module(slide).losses), module.ready) == ({"consistency"}, False)
    module.after_step(4, 6)
    assert module.ready


def test_a_warm_up_postpones_what_rises_and_fades():
    late = {"version": "v1", "fading": True, "rising": True, "at_random": 0.0}
    module = MhimABMIL(6, 2, dim=8, **late)
    module.start_training(8, [])
    module.after_step(6, 8)
    assert [share.ratio for share in module.shares()] == pytest.approx([0.005])
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.fill_(1.0)
        for buffer in module.teacher.buffers():
            buffer.fill_(0.0)
    module.after_step(7, 8)
    expected = torch.tensor(1 - cosine(0.9999, 1.0, 0.5))
    assert all(torch.allclose(b, expected) for b in module.teacher.buffers())


def test_a_teacher_that_has_learned_nothing_is_warned_of(caplog):
    for options, told in (
        ({}, False),
        (BASELINE, False),
        ({"warm_up": 0.0, **BASELINE}, False),
        ({"warm_up": 0.0}, True),
    ):
        caplog.clear()
        MhimABMIL(6, 2, dim=8, **options).start_training(4, [])
        assert ("Train a baseline first (aggregator.high=0 " in caplog.text) is told
    assert "or warm up: aggregator.warm_up=0.5" in caplog.text


def test_a_teacher_that_is_nowhere_is_said_to_be_the_teacher():
    part = MhimABMIL(6, 2, dim=8, teacher="nowhere")
    told = r"MHIM's teacher \(aggregator\.teacher\) cannot be loaded: No model named 'nowhere'"
    with pytest.raises(NotFoundError, match=told):
        part.start_training(4, [])


def test_teachers_of_another_kind_are_refused(tmp_path):
    given = "mhim-abmil-uni", "encoder.dim=6", "head.classes=[a,b]"
    other = wsizoo.build("abmil-uni", "encoder.dim=6", "head.classes=[a,b]")
    wsizoo.save(other, tmp_path / "abmil")
    wsizoo.save(wsizoo.build(*given, "aggregator.dim=8"), tmp_path / "small")
    for name, message in {
        "abmil": r"MHIM's teacher '.*abmil' is ABMIL, expected a trained MhimABMIL with the same",
        "small": r"MHIM's teacher '.*small' is of another size .* Train one: aggregator\.high=0",
    }.items():
        part = wsizoo.build(*given, f"aggregator.teacher={tmp_path}/{name}").aggregator
        with pytest.raises(SpecError, match=message):
            part.start_training(4, [])


def test_a_baseline_asks_no_teacher(monkeypatch):
    module = MhimABMIL(6, 2, dim=8, dropout=0.0, **BASELINE).train()
    monkeypatch.delattr(MhimABMIL, "taught")
    slide = bag()
    found = module(slide)
    assert (dict(found.losses), module.merging) == ({}, None)
    torch.testing.assert_close(found.logits, module.eval()(slide).logits)


def test_masked_patches_and_merged_ones_have_no_score():
    module = MhimABMIL(6, 2, dim=8, high=0.2, queries=3, keep=0.5).train()
    scores = module(bag(20)).scores
    assert int((scores > 0).sum()) == 8  # half of the 16 that are left
    assert float(scores.sum()) < 1  # the merged tokens have theirs


def test_queries_follow_what_they_were_told_in_training_only():
    merging, tokens = Merging(8, 2, momentum=0.75, dropout=0.0), torch.randn(9, 8)
    before = merging.queries.clone()
    told = merging.eval()(tokens)
    assert torch.equal(merging.queries, before)
    merging.train()(tokens).sum().backward()
    torch.testing.assert_close(merging.queries, 0.75 * before + 0.25 * told.detach()[None])


def test_merging_is_attention_of_8_heads():
    merging, tokens = Merging(6, 3, momentum=0.9).eval(), torch.randn(9, 6)
    norm, (k, v) = merging.norm, merging.to_kv(merging.norm(tokens)).chunk(2, 1)
    q = merging.to_q(norm(merging.queries[0]))
    heads = []
    for h in range(8):
        own = slice(64 * h, 64 * h + 64)
        heads.append((q[:, own] @ k[:, own].t() / 8).softmax(1) @ v[:, own])
    torch.testing.assert_close(merging(tokens), merging.out(torch.cat(heads, 1)))


def test_merged_tokens_stand_beside_all_in_evaluation_where_asked():
    module, slide = MhimABMIL(6, 2, dim=8, merge_test=True).eval(), bag()
    rows = module.student.embed(slide.features)
    tokens = torch.cat([rows, module.merging(rows)])
    torch.testing.assert_close(module(slide).slide, module.student.encoder(tokens).rows[0])
    assert module(slide).scores.shape == (20,)


def test_tokens_of_transmil_are_ranked_by_what_they_bring_into_the_token():
    encoder, tokens = MhimTransMIL(6, 3, dim=16).eval().student.encoder, torch.randn(20, 16)
    block, found = encoder.blocks[0], encoder(tokens)
    _, f = block(torch.cat([encoder.token, tokens[None]], 1))
    row = f.token_row(0)[0]  # (H, 1 + n)
    expected = []
    for i in range(1, 21):
        joined = torch.cat([row[h, i] * f.v[0, h, f.padding + i] for h in range(8)])
        z = block.attention.out(joined) @ encoder.classify.weight.t() + encoder.classify.bias[0]
        expected.append(z.softmax(0).max())
    torch.testing.assert_close(found.hardness(by_class=True)[0], torch.stack(expected))
    torch.testing.assert_close(found.hardness(by_class=False), row[:, 1:])


def test_one_output_is_no_class_to_rank_by():
    assert not MhimABMIL(6, 1, dim=8).by_class and not MhimABMIL(6, None, dim=8).by_class
    assert MhimABMIL(6, 2, dim=8).by_class and not MhimABMIL(6, 2, dim=8, version="v1").by_class


@pytest.mark.parametrize("n", [1, 5, 30])
def test_positions_of_few_tokens_are_on_a_square_of_7(n):
    encoder, tokens = MhimTransMIL(6, 2, dim=16).student.encoder, torch.randn(1, n, 16)
    edge = next(e for e in range(1, 9) if e * e >= n)
    cells = torch.cat([tokens, tokens[:, : edge**2 - n]], 1)
    if edge < 7:
        cells = torch.cat([cells, torch.zeros(1, 49 - edge**2, 16)], 1)
    expected = encoder.positions(cells, max(7, edge), max(7, edge))[:, :n]
    torch.testing.assert_close(encoder.placed(tokens), expected)


def test_v1_trains_both_streams_of_dsmil_and_v2_their_mean():
    slide = bag(label=1)
    for version in ("v1", "v2"):
        module = MhimDSMIL(6, 3, dim=8, version=version).train()
        found = module(slide)
        streams = [p.logits for p in found.predictions.values()]
        if version == "v2":
            assert (found.task_weight, streams) == (1.0, [])
            continue
        assert found.task_weight == 0
        torch.testing.assert_close(streams[0].mean(0), found.logits)
        each = [cross_entropy(row[None], torch.tensor([1])) for row in streams[0]]
        both = cross_entropy(streams[0], torch.tensor([1, 1]))
        torch.testing.assert_close(both, torch.stack(each).mean())


def test_consistency_is_the_mean_over_vectors():
    ours, theirs = torch.randn(3, 5), torch.randn(3, 5)
    expected = -(theirs.softmax(1) * F.log_softmax(ours, 1)).sum(1).mean()
    torch.testing.assert_close(consistency(ours, theirs), expected)


def test_teachers_get_no_gradient_and_are_moved():
    module = MhimABMIL(6, 2, dim=8, momentum=0.5, warm_up=0).train()
    module.start_training(2, [])
    before = module.teacher.embed[0].weight.clone()
    batch = BagBatch.pack([bag(12), bag(9)])
    found = module.forward_packed(batch)
    (found.logits.sum() + found.losses["consistency"]).backward()
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.sub_(0.1 * parameter.grad)
    module.after_step(1, 2)
    expected = (before + module.student.embed[0].weight) / 2
    torch.testing.assert_close(module.teacher.embed[0].weight, expected)
    assert not any(buffer.requires_grad for buffer in module.buffers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "v3"}, "MHIM's version is 'v3', expected one of v1, v2"),
        ({"hihg": 0.1}, "MHIM has no option 'hihg'. It takes: dim, dropout, activation, pooling"),
        ({"student": "half"}, "^MHIM's student is 'half', expected one of all, embedding, none$"),
        ({"activation": "elu"}, "^MHIM's activation is 'elu', expected one of relu, gelu"),
        ({"pooling": "elu"}, "activation is 'elu', expected one of"),
        ({"warm_up": 1.0}, "MHIM's warm_up is 1.0, expected a share from 0 to below 1"),
        ({"keep": 1.0}, "MHIM's keep is 1.0, expected a share from 0 to below 1"),
        ({"momentum": 2.0}, "MHIM's momentum is 2.0, expected a share from 0 to 1"),
        ({"temperature": 0.0}, "^MHIM's temperature is 0.0, expected more than 0$"),
        ({"alpha": -1.0}, "^MHIM's alpha is -1.0, expected 0 or more$"),
        ({"high_among": 0.0}, "^MHIM's high_among is 0.0, expected more than 0$"),
        ({"dropout": "some"}, "MHIM: dropout is 'some', expected a number"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        MhimABMIL(6, 2, **options)


def test_transmil_s_heads_share_the_width():
    with pytest.raises(
        SpecError, match=r"MHIM's dim is 12, expected a multiple of its heads \(8\)"
    ):
        MhimTransMIL(6, 2, dim=12)
