"""The shared pieces, each against its plain definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wsizoo_plugin_mil.along import along
from wsizoo_plugin_mil.attention_pooling import AttentionScores, highest, pooled
from wsizoo_plugin_mil.clam import ClamMB, ClamSB
from wsizoo_plugin_mil.dsmil import DSMIL
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.instance_pooling import MaxInstance, MeanInstance
from wsizoo_plugin_mil.nystrom import NystromAttention, pseudo_inverse
from wsizoo_plugin_mil.packed import label_of
from wsizoo_plugin_mil.ppeg import PPEG
from wsizoo_plugin_mil.smooth_svm import smooth_top1_svm
from wsizoo_plugin_mil.transmil import TransMIL
from wsizoo_plugin_mil.windows import from_windows, to_windows

from wsizoo import Bag
from wsizoo.errors import SpecError
from wsizoo.ops import tiled, use_backend


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize("gated", [True, False])
def test_scores_of_several_rows(activation, gated):
    module = AttentionScores(6, 4, 3, gated, bias=False, activation=activation)
    h = torch.randn(5, 6)
    acts = {"tanh": torch.tanh, "relu": torch.relu, "gelu": F.gelu}
    hidden = acts[activation](h @ module.value.weight.t())
    if gated:
        hidden = hidden * torch.sigmoid(h @ module.gate.weight.t())
    torch.testing.assert_close(module(h), hidden @ module.score.weight.t())
    assert all("bias" not in name for name, _ in module.named_parameters())


def test_sums_are_weighted_slide_by_slide():
    scores, h = torch.randn(7, 2), torch.randn(7, 3)
    weights, sums = pooled(scores.split([4, 3]), h)
    torch.testing.assert_close(weights[1], scores[4:].softmax(0))
    expected = (scores[:4].softmax(0)[:, :, None] * h[:4, None]).sum(0)
    torch.testing.assert_close(sums[0], expected)


def test_of_equal_scores_the_first_are_highest():
    assert highest(torch.tensor([1.0, 3, 3, 2, 3]), 3).tolist() == [1, 2, 4]
    assert highest(torch.tensor([1.0, 3]), 8).tolist() == [1, 0]


def test_the_smooth_svm_is_hard_where_one_score_leads_far():
    scores = torch.tensor([[0.3, -0.2, 1.0], [9.0, 1.0, 0.0], [0.0, 9.0, 1.0]])
    target = torch.tensor([0, 0, 0])
    smooth = math.log(sum(math.exp(d) for d in (0, 1 - 0.5, 1 + 0.7)))
    hard = [0.0, 10.0]
    expected = (smooth + sum(hard)) / 3
    assert float(smooth_top1_svm(scores, target)) == pytest.approx(expected, rel=1e-5)


def test_ppeg_is_the_sum_of_its_convolutions():
    module, x = PPEG(4), torch.randn(2, 30, 4)
    image = x.transpose(1, 2).reshape(2, 4, 5, 6)
    convs = module.conv7(image) + module.conv5(image) + module.conv3(image)
    expected = x + convs.flatten(2).transpose(1, 2)
    torch.testing.assert_close(module(x, 5, 6), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 64, 65, 130])
def test_windows_are_undone(length):
    x = torch.randn(length, 3)
    windows = to_windows(x, 4)
    edge = math.ceil(math.sqrt(length))
    assert windows.shape == (16, math.ceil(edge / 4) ** 2, 3)
    assert torch.equal(from_windows(windows, length), x)


def test_windows_go_row_by_row():
    windows = to_windows(torch.arange(16.0)[:, None], 2)[..., 0]
    assert windows.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def dense(layer, x):
    """Step by step, with all maps."""
    b, n, _ = x.shape
    m, h = layer.landmarks, layer.heads
    pad = (m - n % m) % m
    x = F.pad(x, (0, 0, pad, 0))
    q, k, v = (y.view(b, n + pad, h, -1).transpose(1, 2) for y in layer.qkv(x).chunk(3, -1))
    q = q / q.shape[-1] ** 0.5
    ql, kl = (y.reshape(b, h, m, -1, y.shape[-1]).mean(3) for y in (q, k))
    left, mid, right = ((a @ c.mT).softmax(-1) for a, c in ((q, kl), (ql, kl), (ql, k)))
    y = left @ pseudo_inverse(mid, layer.iterations) @ right @ v + layer.conv(v)
    return layer.out(y.transpose(1, 2).reshape(b, n + pad, -1))[:, pad:]


@pytest.mark.parametrize("n", [1, 5, 16, 37])
def test_nystrom_attention_is_its_dense_definition(n):
    torch.manual_seed(0)
    layer, x = NystromAttention(12, 3, 4, landmarks=8), torch.randn(1, n, 12)
    torch.testing.assert_close(layer(x), dense(layer, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "kernel"), [(1, 33), (64, 33), (150, 15), (200, 81)])
def test_a_convolution_along_the_sequence_is_torchs_with_its_gradients(length, kernel):
    v = torch.randn(2, 3, length, 4, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(3, kernel, dtype=torch.float64, requires_grad=True)
    ours = along(v, kernels)
    theirs = F.conv2d(v, kernels[:, None, :, None], padding=(kernel // 2, 0), groups=3)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn_like(v)
    found, wanted = (torch.autograd.grad(y, (v, kernels), slope) for y in (ours, theirs))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_the_pseudo_inverse_has_the_gradient_of_its_iterations(iterations):
    a = torch.rand(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    ours = pseudo_inverse(a, iterations)
    with use_backend("reference"):
        theirs = pseudo_inverse(a, iterations)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn_like(a)
    found, wanted = (torch.autograd.grad(y, a, slope)[0] for y in (ours, theirs))
    torch.testing.assert_close(found, wanted)


def test_nystrom_attention_has_the_gradients_of_its_dense_definition(monkeypatch):
    monkeypatch.setattr(tiled, "FEW", 0)
    layer = NystromAttention(12, 3, 4, landmarks=8).double()
    x = torch.randn(1, 37, 12, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    ours, theirs = layer(x), dense(layer, x)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn_like(ours)
    found, wanted = (torch.autograd.grad(y, leaves, slope) for y in (ours, theirs))
    torch.testing.assert_close(found, wanted)


def test_nystrom_attention_keeps_its_rows_five_times(monkeypatch):
    monkeypatch.setattr(tiled, "FEW", 0)
    layer = NystromAttention(16, 2, 8, landmarks=8, dropout=0.25)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        layer(torch.randn(1, 4096, 16, requires_grad=True))
    rows = [size // (4096 * 16) for size in kept.values()]
    assert sum(rows) == 5  # given, queries, keys, values, and what the last layer takes


def test_whoever_hears_or_replaces_a_layer_of_nystrom_attention_is_asked():
    layer, x, heard = NystromAttention(12, 3, 4, landmarks=8), torch.randn(1, 9, 12), []
    expected = layer(x)
    hook = layer.qkv.register_forward_hook(lambda *_: heard.append(1))
    torch.testing.assert_close(layer(x), expected)
    hook.remove()
    layer.qkv = nn.Sequential(layer.qkv)
    torch.testing.assert_close(layer(x), expected)
    assert heard == [1]


def test_nystrom_attention_makes_no_map_of_all_by_all():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in _tensors(made))])
            return made

    layer = NystromAttention(16, 2, 8, landmarks=8)
    x = torch.randn(1, 4096, 16, requires_grad=True)
    with use_backend("reference"), Watch():  # others ask for bytes
        layer(x).sum().backward()
    assert largest <= 4096 * 16 * 3  # q, k and v


def _tensors(made):
    made = made if isinstance(made, tuple | list) else [made]
    return [t for t in made if isinstance(t, torch.Tensor)]


def weights_of(how, *layers):
    module = nn.Sequential(*layers)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begin(module, how)
    return module


@pytest.mark.parametrize(
    ("how", "std"),
    [
        ("torch", 1 / math.sqrt(3 * 400)),
        ("xavier", math.sqrt(2 / 700)),
        ("xavier-weights", math.sqrt(2 / 700)),
        ("he", math.sqrt(6 / 400 / 3)),
    ],
)
def test_weights_begin_as_the_repositories_begin_them(how, std):
    (layer,) = weights_of(how, nn.Linear(400, 300))
    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.02)
    assert bool(layer.bias.any()) == (how in ("torch", "xavier-weights"))


def test_dsmil_begins_orthogonal():
    linear, conv = weights_of("orthogonal", nn.Linear(20, 5), nn.Conv1d(3, 4, 10))
    torch.testing.assert_close(linear.weight @ linear.weight.t(), torch.eye(5))
    flat = conv.weight.flatten(1)
    torch.testing.assert_close(flat @ flat.t(), torch.eye(4))
    assert not bool(linear.bias.any() | conv.bias.any())


def test_a_slide_without_a_label_teaches_clam_s_patches_nothing():
    module = ClamSB(6, 3, 8, 4).train()
    x = torch.randn(9, 6)
    for target in (None, {"time": 1, "event": 1}, {"label": -1}):
        output = module(Bag(x, target=target))
        assert (dict(output.losses), output.task_weight) == ({}, 1.0)
    taught = module(Bag(x, target={"label": 2}))
    assert (set(taught.losses), taught.task_weight) == ({"instances"}, 0.7)
    assert label_of(Bag(x, target={"label": torch.tensor(2)}), 3) == 2


@pytest.mark.parametrize("kind", [ClamSB, ClamMB])
def test_one_logit_of_clam_is_of_two_classes_of_patches(kind):
    module = kind(6, 1, 8, 4).train()
    for label in (0, 1):
        output = module(Bag(torch.randn(9, 6), target={"label": label}))
        assert output.logits.shape == (1,)
        assert set(output.losses) == {"instances"}


def test_transmil_decays_no_biases_and_no_norms():
    module = TransMIL(6, dim=16)
    wide, thin = module.param_groups(1e-3)
    assert thin["weight_decay"] == 0 and "weight_decay" not in wide
    assert {p.ndim for p in thin["params"]} == {1}
    assert any(p is module.token for p in wide["params"])


def test_the_mean_of_logits_is_the_logit_of_the_mean():
    module = MeanInstance(6, 3, 8).eval()
    output = module(Bag(torch.randn(9, 6)))
    torch.testing.assert_close(output.logits, module.classify(output.slide))


def test_one_patch_may_answer_for_the_slide():
    for classes in (2, 3):
        module = MaxInstance(6, classes, 8, pool="one-patch").eval()
        output = module(Bag(torch.randn(9, 6)))
        sure = output.instance_logits.softmax(1)
        patch = int((sure[:, 1] if classes == 2 else sure.amax(1)).argmax())
        torch.testing.assert_close(output.logits, output.instance_logits[patch])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionScores(4, 2, activation="elu"), "activation is 'elu', expected one of"),
        (lambda: ClamSB(6, 3, instance_loss="hinge"), "CLAM's instance_loss is 'hinge'"),
        (
            lambda: ClamSB(6, 3, variant="x"),
            "^CLAM's variant is 'x', expected one of clam, mil-lab$",
        ),
        (lambda: DSMIL(6, 3, variant="x"), "DSMIL's variant is 'x', expected one of dsmil, mil"),
        (lambda: MeanInstance(6, 3, activation="x"), "activation is 'x', expected one of relu"),
        (lambda: MaxInstance(6, 3, pool="x"), "pool is 'x', expected one of each-class, one-"),
        (lambda: TransMIL(6, variant="x"), "TransMIL's variant is 'x', expected one of transmil"),
        (lambda: TransMIL(6, dim=20), r"TransMIL's dim is 20, expected a multiple of its heads"),
        (lambda: TransMIL(6, dim=9, heads=3), "TransMIL's dim is 9, expected twice its landmarks"),
    ],
)
def test_options_that_do_not_exist_are_refused(make, message):
    with pytest.raises(SpecError, match=message):
        make()
