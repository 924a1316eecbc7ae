"""sparselearn as a selector: the contract, recorded numbers, its parts' properties, phases, saving.

After a change of the method that is meant, record the golden file anew and say why in the commit:

    python tests/test_selector.py
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from wsizoo_plugin_sparselearn.denoiser import Denoiser
from wsizoo_plugin_sparselearn.noise_gate import STATS, NoiseGate
from wsizoo_plugin_sparselearn.scorers import ROWS, SCORERS, make_scorer
from wsizoo_plugin_sparselearn.selector import SparseLearn

import wsizoo
from wsizoo import Bag
from wsizoo.errors import BagError, FingerprintError, SpecError
from wsizoo.ops import hard_topk
from wsizoo.selection import given_gates
from wsizoo.testing import conformance

GOLDEN = Path(__file__).parent / "golden_selector.safetensors"
DIM, K = 24, 8
CLASSES = "head.classes=[normal,tumour]"
MODEL = ("abmil-uni", "encoder.dim=24", "aggregator.dim=8", "aggregator.attention=4", CLASSES)


@conformance(SparseLearn, "selector", k=K)
def test_sparselearn_is_a_selector(check):
    check()


@conformance(SparseLearn, "selector", k=0.2, scorer="context", stats="channel-running")
def test_it_is_with_running_averages_and_a_share(check):
    check()


@conformance(SparseLearn, "selector", k=K, scorer="gated", embedding=[6], stats="token")
def test_it_is_with_a_gated_scorer(check):
    check()


@conformance(SparseLearn, "selector", k=K, scorer="linear", denoiser=False, form="laplace")
def test_it_is_without_a_denoiser(check):
    check()


@conformance(SparseLearn, "selector", k=K, scorer="transformer", heads=4, stats="unit")
def test_it_is_with_a_transformer(check):
    check()


def bag_of(n=40, seed=0, **changes):
    features = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    return Bag(features, slide_id="S1").replace(**changes)


def made(seed=0, **options):
    torch.manual_seed(seed)
    return SparseLearn(DIM, **{"k": K, **options}).eval()


@torch.no_grad()
def golden_outputs(features, tensors=None):
    """Scores, what is kept and what passes in training of one slide, and the tensors."""
    found, weights = {}, {}
    for scorer in ("mlp", "context", "gated"):
        module, prefix = made(scorer=scorer), f"weights.{scorer}."
        module.denoiser.linear2.weight.normal_(0, 0.1)
        if tensors is not None:
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict(own)
        bag = Bag(features)
        hard = module(bag)
        soft = module.soft(bag, torch.Generator().manual_seed(1), temperature=0.3)
        weights |= {prefix + k: v.clone() for k, v in module.state_dict().items()}
        found |= {
            f"out.{scorer}.scores": hard.scores,
            f"out.{scorer}.index": hard.index,
            f"out.{scorer}.gates": soft.scores,
            f"out.{scorer}.features": soft.bag.features,
        }
    return found, weights


def test_it_still_computes_the_recorded_numbers():
    golden = load_file(GOLDEN)
    found, _ = golden_outputs(golden["in.features"], golden)
    assert set(found) == {name for name in golden if name.startswith("out.")}
    for name, value in found.items():
        torch.testing.assert_close(value, golden[name], rtol=1e-4, atol=1e-5)


def test_eval_is_the_scorer_and_the_best_k_and_nothing_else():
    module, called = made(), []
    for name in ("scorer", "noise_gate", "denoiser"):
        module.get_submodule(name).register_forward_hook(lambda *_, n=name: called.append(n))
    bag = bag_of()
    state = torch.get_rng_state()
    selected = module(bag)
    assert called == ["scorer"] and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(selected.index, module.score(bag).topk(K).indices.sort().values)
    assert torch.equal(selected.bag.features, bag.features[selected.index])
    called.clear()
    module.train()(bag)
    assert called == ["scorer", "noise_gate", "denoiser"]


def test_cold_gates_are_the_mask_of_the_kept():
    @given(st.integers(1, 60), st.integers(1, 70), st.sampled_from(["sigmoid", "laplace"]))
    def cold(n, k, form):
        module, bag = made(k=k, form=form), bag_of(n, seed=n)
        with torch.no_grad():
            scores = module.score(bag)
            gates = module.gates(scores, temperature=1e-5).gates
        mask = torch.zeros(n).index_fill(0, hard_topk(scores, k), 1.0)
        torch.testing.assert_close(gates, mask, rtol=0, atol=1e-3)

    cold()


@given(st.floats(0, 1), st.sampled_from(["channel", "unit"]), st.integers(0, 99))
def test_a_gated_token_has_the_variance_of_the_token(gate, stats, seed):
    drawn = torch.Generator().manual_seed(seed)
    n = 20_000
    x = torch.randn(n, 3, generator=drawn)
    if stats == "channel":
        x = 5 + x * torch.tensor([0.1, 1.0, 7.0])
    module = NoiseGate(3, stats)
    y = module(x, given_gates(torch.full((n,), gate)), torch.randn(n, 3, generator=drawn))
    torch.testing.assert_close(y.var(0), x.var(0), rtol=0.06, atol=0)
    torch.testing.assert_close(y.mean(0), x.mean(0), rtol=0, atol=0.06 * float(x.std(0).max()))


def test_a_token_gate_keeps_the_energy_of_each_token():
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(5, 50_000, generator=drawn) * torch.tensor([[0.1], [1], [2], [5], [9]])
    noise = torch.randn(x.shape, generator=drawn)
    y = NoiseGate(50_000, "token")(x, given_gates(torch.linspace(0, 1, 5)), noise)
    torch.testing.assert_close(y.square().mean(1), x.square().mean(1), rtol=0.05, atol=0)


@pytest.mark.parametrize("stats", STATS)
def test_an_open_gate_passes_the_token_exactly(stats):
    x = bag_of().features * 3 + 1000
    noise = torch.full_like(x, 1e3)
    gate = NoiseGate(DIM, stats)
    assert torch.equal(gate(x, given_gates(torch.ones(40)), noise), x)
    shut = gate(x, given_gates(torch.zeros(40)), noise)
    mean, deviation = gate.moments(x)
    assert torch.equal(shut, (mean + deviation * noise).expand_as(x))


@pytest.mark.parametrize("stats", STATS)
def test_given_gates_of_0_and_1_have_finite_gradients(stats):
    gates = torch.tensor([0.0, 1.0, 0.5]).requires_grad_()
    x = bag_of(3).features.requires_grad_()
    NoiseGate(DIM, stats)(x, given_gates(gates), torch.ones(3, DIM)).sum().backward()
    assert bool(torch.isfinite(gates.grad).all() and torch.isfinite(x.grad).all())


def test_running_averages_are_of_the_slides_of_the_training():
    gate = NoiseGate(DIM, "channel-running").train()
    bags = [bag_of(30, seed).features * (1 + seed) for seed in range(4)]
    for x in bags:
        gate.observe(x)
    torch.testing.assert_close(gate.mean, torch.stack([x.mean(0) for x in bags]).mean(0))
    gate.eval().observe(torch.full((3, DIM), 1e6))
    assert int(gate.slides) == 4 and float(gate.mean.abs().max()) < 10


@given(st.integers(1, 7), st.integers(0, 99))
def test_the_denoiser_keeps_tokens_apart(n, seed):
    torch.manual_seed(seed)
    block = Denoiser(6, 9)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    jacobian = torch.autograd.functional.jacobian(block, torch.randn(n, 6))  # (n, 6, n, 6)
    for i in range(n):
        assert float(jacobian[i, :, i].abs().max()) > 0
        others = [j for j in range(n) if j != i]
        assert not jacobian[i][:, others].any()


def test_the_denoiser_starts_as_the_identity():
    x = torch.randn(5, DIM)
    assert torch.equal(Denoiser(DIM, 2 * DIM)(x), x)


def test_the_denoiser_reads_a_transformer_layer_of_torch():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    block = Denoiser(8, 12)
    block.load_state_dict(layer.state_dict())
    x, alone = torch.randn(1, 5, 8), ~torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(block(x[0]), layer(x, src_mask=alone)[0])
    block.load_state_dict(block.state_dict())


@pytest.mark.parametrize("name", SCORERS)
def test_scores_in_chunks_are_those_of_the_whole_slide(name):
    if name == "transformer":
        return  # patches read each other, so there are no chunks
    torch.manual_seed(0)
    scorer = make_scorer(name, DIM, embedding=[6] if name == "gated" else ())
    x, seen = bag_of(2 * ROWS + 7).features, []
    whole = scorer(x)
    rows = scorer.rows
    scorer.rows = lambda part, shared: seen.append(len(part)) or rows(part, shared)
    with torch.no_grad():
        torch.testing.assert_close(scorer(x), whole, rtol=1e-4, atol=1e-5)
    assert seen == [ROWS, ROWS, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"selector\.k is 0, expected how many patches are kept, from 1, or a share"),
        ({"k": True}, r"selector\.k is True, expected how many"),
        ({"k": 1.5}, r"selector\.k is 1\.5, expected a share of the patches in \(0, 1\]"),
        ({"k": 0.0}, r"selector\.k is 0\.0, expected a share"),
        ({"scorer": "mpl"}, r"selector\.scorer is 'mpl', expected one of linear, mlp, gated"),
        ({"stats": "patch"}, r"selector\.stats is 'patch', expected one of channel, channel-r"),
        ({"form": "erf"}, r"selector\.form is 'erf', expected one of sigmoid, laplace"),
        ({"hidden": 0}, r"selector\.hidden is 0, expected a number from 1"),
        ({"scorer": "linear", "hidden": 8}, r"selector\.hidden is 8, .* with a hidden layer"),
        ({"heads": 4}, r"selector\.heads is 4, expected a number from 1, of scorer=transformer"),
        ({"scorer": "transformer", "heads": -2}, r"heads is -2, expected a number from 1"),
        ({"feedforward": 0}, r"selector\.feedforward is 0, expected a number from 1"),
        ({"denoiser": False, "feedforward": 9}, r"selector\.feedforward is 9, .* of a denoiser"),
        ({"embedding": [8]}, r"selector\.embedding is \[8\], expected scorer=gated"),
        ({"abmil": "RUN"}, r"selector\.abmil is 'RUN', expected scorer=gated"),
        (
            {"scorer": "transformer", "heads": 5},
            r"selector\.heads is 5, expected a divisor of .*24",
        ),
        ({"warm_up": 1.0}, r"selector\.warm_up is 1\.0, expected a share from 0 to below 1"),
        (
            {"warm_up": 0.5, "tune": 0.5},
            r"selector\.tune is 0\.5, expected a share below what warm_up",
        ),
        ({"lr_factor": 0}, r"selector\.lr_factor is 0, expected a number above 0"),
        ({"end_temperature": 0}, r"selector\.end_temperature is 0, expected a number above 0"),
        ({"anneal": 2}, r"selector\.anneal is 2, expected a share from 0 to 1"),
        (
            {"temprature": 1},
            r"no argument 'temprature'\. It takes: |no argument 'temprature'\. Did",
        ),
        ({"end_temperatur": 1}, r"no argument 'end_temperatur'\. Did you mean 'end_temperature'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        SparseLearn(DIM, **options)


def test_more_than_there_are_keeps_all_and_says_so_once(caplog):
    module, bag = made(k=50), bag_of()
    for _ in range(2):
        selected = module(bag)
        assert selected.bag is bag and selected.index.tolist() == list(range(40))
    (told,) = caplog.messages
    assert told.startswith("slide 'S1' has only 40 of the k=50 patches that the selector keeps")
    soft = module.train()(bag)
    assert torch.equal(soft.bag.features, bag.features)  # all gates are 1, the denoiser is new
    with caplog.at_level("WARNING"):
        caplog.clear()
        made(k=1.0)(bag)
    assert caplog.messages == []


def test_equal_scores_share_the_budget_and_the_first_are_kept():
    module, bag = made(), bag_of(features=torch.ones(40, DIM))
    assert module(bag).index.tolist() == list(range(K))
    gates = module.gates(module.score(bag), temperature=0.1).gates
    torch.testing.assert_close(gates, torch.full((40,), K / 40))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_name_the_slide(bad, training):
    module = made().train(training)
    with torch.no_grad():
        module.scorer.score.bias.fill_(bad)
    with pytest.raises(
        BagError, match=r"slide 'S1': the selector's scores of 40 of 40 patches are \w+, f"
    ):
        module(bag_of())


def test_features_of_another_encoder_are_refused(tmp_path):
    model = wsizoo.build(*MODEL, "selector=sparselearn", "selector.k=4")
    folder = wsizoo.save(model, tmp_path / "model")
    other = bag_of(encoder=wsizoo.Fingerprint("resnet50"))
    for again in (wsizoo.load(folder), wsizoo.adapt(folder, "head.classes=[a,b,c]")):
        with pytest.raises(FingerprintError, match=r"uni.*resnet50"):
            again(other)


def test_a_saved_model_holds_the_scorer_and_loads_strictly(tmp_path):
    model = wsizoo.build(*MODEL, "selector=sparselearn", "selector.k=4", seed=3)
    folder = wsizoo.save(model, tmp_path / "model")
    saved = {name for name in load_file(folder / "model.safetensors") if "selector" in name}
    assert saved == {f"selector.scorer.{n}" for n in model.selector.scorer.state_dict()}
    again, bag = wsizoo.load(folder), bag_of()
    with torch.no_grad():
        assert torch.equal(again(bag).logits, model(bag).logits)
        assert torch.equal(again(bag).kept, model(bag).kept)
    tensors = load_file(folder / "model.safetensors")
    whole = {*model.state_dict()}
    assert {"selector.step", "selector.denoiser.linear1.weight"} <= whole - set(tensors)


def test_training_is_all_patches_and_repeats_with_the_seed():
    module, bag = made().train(), bag_of()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        selected = module(bag)
        assert selected.index is None and not selected.alone
        torch.testing.assert_close(selected.scores.sum(), torch.tensor(float(K)))
        found.append(selected.bag.features)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_forced_gates_open_nothing():
    module, bag = made(stats="unit"), bag_of()
    drawn = [torch.Generator().manual_seed(1) for _ in range(2)]
    shut = module.soft(bag, drawn[0], gates=torch.zeros(40)).bag.features
    other = module.soft(bag_of(seed=9), drawn[1], gates=torch.zeros(40)).bag.features
    assert torch.equal(shut, other)


if __name__ == "__main__":
    features = bag_of(60, seed=4).features
    outputs, weights = golden_outputs(features)
    save_file({"in.features": features, **outputs, **weights}, GOLDEN)
