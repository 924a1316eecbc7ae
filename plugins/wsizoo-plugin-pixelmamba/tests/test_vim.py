"""Vim's names, and Vim's layers as a start."""

import sys

import pytest
import torch
from torch import nn
from wsizoo_plugin_pixelmamba.vim import main, seed_from_vim

import wsizoo
from wsizoo.conversion import read_weights, write_weights
from wsizoo.errors import SpecError, StrictnessError, WeightsError
from wsizoo.mamba import VimBlock
from wsizoo.registry import default
from wsizoo.testing import parity_cases
from wsizoo.weight_formats import fill, find_layout
from wsizoo.weights import read_tensors

NAME = "pixel-mamba-tiny"
LAYERS = "aggregator.layers=[h-cat,v-avg,'',h-cat,v-avg]"  # widths 3, 6, 6, 6, 12
SMALL = (LAYERS, "head.classes=[a,b]")


def vim(width=6, depth=5, classes=2):
    """What Vim's code saves, but for positions and patches."""
    torch.manual_seed(3)
    found = {"cls_token": torch.randn(1, 1, width), "norm_f.weight": torch.rand(width)}
    head = nn.Linear(width, classes)
    for i in range(depth):
        block = VimBlock(width, divide_out=True)
        found[f"layers.{i}.norm.weight"] = torch.rand(width)
        found |= {f"layers.{i}.mixer.{k}": v for k, v in block.state_dict().items()}
    return {**found, "head.weight": head.weight.detach(), "head.bias": head.bias.detach()}


def test_a_model_is_written_and_read_under_vim_s_names(tmp_path):
    model = wsizoo.build(NAME, *SMALL, seed=1)
    path = write_weights(model, tmp_path / "w.safetensors", "vim-official")
    names = set(read_tensors(path)[0])
    assert {"cls_token", "layers.0.mixer.A_b_log", "norm_f.weight", "head.bias"} <= names
    again = read_weights(path, "vim-official", NAME, *SMALL)
    for name, tensor in model.inference_state().items():
        assert torch.equal(again.inference_state()[name], tensor), name


def test_the_parity_networks_are_in_this_format():
    cases = [case for case in parity_cases("mamba") if case.subject == "pm_net"]
    if not cases:
        pytest.skip("no parity cases of 'mamba' here: set WSIZOO_PARITY")
    for case in cases:
        layers = ",".join(repr(kind) for kind in case.config["layers"])
        classes = ",".join(f"c{i}" for i in range(case.config["classes"]))
        model = wsizoo.build(NAME, f"aggregator.layers=[{layers}]", f"head.classes=[{classes}]")
        fill(
            model, case.weights(), find_layout("vim-official", model, default().plugins), case.name
        )
        own = model.aggregator.network.cls_token
        assert torch.equal(own, case.weights()["cls_token"])


def test_a_whole_vim_is_no_pixel_mamba(tmp_path):
    path = tmp_path / "vim.pt"
    torch.save({"model": vim()}, path)
    with pytest.raises(StrictnessError, match=r"missing|misshapen"):
        read_weights(path, "vim-official", NAME, *SMALL)


@pytest.mark.parametrize("divide_out", [False, True])
def test_seeded_layers_compute_what_vim_s_do(divide_out):
    model = wsizoo.build(NAME, *SMALL, f"aggregator.divide_out={str(divide_out).lower()}")
    donor = vim()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert seed_from_vim(model, donor) == [1, 2, 3]
    block = VimBlock(6, divide_out=True)
    prefix = "layers.2.mixer."
    own = {k.removeprefix(prefix): v for k, v in donor.items() if k.startswith(prefix)}
    block.load_state_dict(own)
    x = torch.randn(11, 6)
    torch.testing.assert_close(model.aggregator.network.layers[2].mixer(x), block(x))
    norm = model.aggregator.network.layers[2].norm.weight
    assert torch.equal(norm, donor["layers.2.norm.weight"])
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[3] for k in changed} == {"1", "2", "3"}


def test_the_donor_of_the_last_width_gives_norm_and_head():
    model, donor = wsizoo.build(NAME, *SMALL), vim(width=12)
    assert seed_from_vim(model, donor) == [4]
    assert torch.equal(model.aggregator.network.norm_f.weight, donor["norm_f.weight"])
    assert torch.equal(model.head.linear.bias, donor["head.bias"])
    other = wsizoo.build(NAME, LAYERS, "head.classes=[a,b,c]")
    seed_from_vim(other, donor)
    assert other.head.linear.weight.shape == (3, 12)


def test_what_cannot_be_a_donor_is_refused():
    model = wsizoo.build(NAME, *SMALL)
    with pytest.raises(WeightsError, match=r"no weights of Vim: .* under 'model'"):
        seed_from_vim(model, {"model": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"width 7 has no layer .* widths are \[3, 6, 12\]"):
        seed_from_vim(model, vim(width=7))
    shared = wsizoo.build(NAME, *SMALL, "aggregator.share_conv=true")
    with pytest.raises(SpecError, match=r"has share_conv=True.*aggregator\.share_conv=false"):
        seed_from_vim(shared, vim())
    with pytest.raises(SpecError, match="'abmil-uni' is no pixel-mamba"):
        seed_from_vim(wsizoo.build("abmil-uni", "head.classes=[a,b]"), vim())


@pytest.mark.parametrize(
    ("size", "widths"), [("6m", {192: 14, 384: 2}), ("21m", {192: 3, 384: 11, 768: 2})]
)
def test_published_vims_fit_the_layers_of_their_widths(size, widths):
    settings = wsizoo.build(f"pixel-mamba-{size}", "head=null").aggregator.settings
    assert {w: settings.widths.count(w) for w in widths} == widths


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layers.3.mixer.x_proj.weight", None, "weight' is missing, expected"),
        ("layers.3.mixer.D", torch.zeros(7), r"'layers\.3\.mixer\.D' is \(7,\), expected \(12,\)"),
        ("layers.3.norm.weight", torch.full((6,), torch.nan), "holds NaN or infinite"),
        ("layers.3.mixer.D", "text", r"'layers\.3\.mixer\.D' is \(\), expected \(12,\)"),
    ],
)
def test_a_damaged_donor_changes_nothing(name, tensor, message):
    model, donor = wsizoo.build(NAME, *SMALL), vim()
    del donor[name]
    donor |= {} if tensor is None else {name: tensor}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        seed_from_vim(model, donor)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["vim", *map(str, words)])
    main()


def test_a_model_is_seeded_on_the_command_line_and_a_run_may_begin_from_it(
    tmp_path, monkeypatch, capsys
):
    torch.save({"model": vim(), "epoch": 300}, tmp_path / "vim.pth")
    command(monkeypatch, tmp_path / "vim.pth", tmp_path / "out", NAME, *SMALL)
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: layers 2, 3, 4 are Vim's\n"
    begun = wsizoo.adapt(tmp_path / "out", "head.classes=[a,b,c]")
    own = begun.aggregator.network.layers[1].norm.weight
    assert torch.equal(own, vim()["layers.1.norm.weight"])
    with pytest.raises(SystemExit, match=r"No file of weights at .*none\.pth"):
        command(monkeypatch, tmp_path / "none.pth", tmp_path / "out", NAME, *SMALL)
