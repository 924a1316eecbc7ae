"""pixel-mamba as an aggregator: the contract, the recorded numbers, groups, entries.

After a change of the method that is meant, record the golden file anew and say why in the commit:

    python tests/test_model.py
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wsizoo_plugin_pixelmamba.model import MEAN, STD, PixelMamba

import wsizoo
from wsizoo import Bag
from wsizoo.errors import SpecError
from wsizoo.testing import conformance

OTHER = {
    "layers": ["v-avg", "h-cat"],
    "pixels": 2,
    "d_state": 3,
    "alpha": 0.3,
    "inner": "raster",
    "outer": "raster",
    "shift_padding": "zeros",
    "cls_mode": "linear",
    "split": "halves",
    "shared": "pairwise",
    "count": "current",
    "share_conv": True,
    "divide_out": True,
    "norm": "layer",
    "final_norm": False,
    "vim_init": True,
    "recompute": False,
}


@conformance(PixelMamba)
def test_pixel_mamba_is_an_aggregator(check):
    check()


@conformance(PixelMamba, **OTHER)
def test_pixel_mamba_with_every_other_choice_is_an_aggregator(check):
    check()


GOLDEN = Path(__file__).parent / "golden_model.safetensors"
RECORDED = {"layers": ["h-cat", "v-cat", "", "h-avg", "v-avg", ""], "d_state": 8, "alpha": 0.5}


@torch.no_grad()
def golden_outputs(pixels, coords, weights):
    """What the network gives for one slide."""
    module = PixelMamba(3, **RECORDED).eval()
    module.load_state_dict(weights)
    bag = Bag(pixels, coords=coords, spacing=32.0)
    output, found = module(bag), module.look(bag)
    return {"slide": output.slide, "scores": output.scores, "region_of": found.region_of[0]}


def test_it_still_computes_the_recorded_numbers():
    golden = load_file(GOLDEN)
    weights = {k.removeprefix("w."): v for k, v in golden.items() if k.startswith("w.")}
    found = golden_outputs(golden["in.pixels"], golden["in.coords"], weights)
    assert len(set(golden["out.region_of"].tolist())) > 1
    for name, value in found.items():
        torch.testing.assert_close(value, golden[f"out.{name}"], rtol=1e-4, atol=1e-5)


def record():
    torch.manual_seed(0)
    cells = torch.tensor([[0, 0], [1, 0], [3, 0], [0, 1], [2, 1], [3, 1], [1, 2], [2, 2], [0, 3]])
    coords = cells * 32 + 640
    pixels = torch.randint(0, 256, (len(cells), 3, 8, 8)).to(torch.uint8)
    weights = {
        name: tensor + 0.2 * torch.randn_like(tensor)
        for name, tensor in PixelMamba(3, **RECORDED).state_dict().items()
    }
    out = {f"out.{k}": v for k, v in golden_outputs(pixels, coords, weights).items()}
    named = {f"w.{k}": v for k, v in weights.items()}
    save_file({"in.pixels": pixels, "in.coords": coords, **named, **out}, GOLDEN)


def test_pixels_are_normalised_as_imagenet_s():
    bag = Bag(torch.tensor([0, 255]).byte().view(2, 1, 1, 1).expand(2, 3, 8, 8))
    found = PixelMamba(3, **RECORDED).normalised(bag.features)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        expected = torch.tensor([-mean / std, (1 - mean) / std])
        torch.testing.assert_close(found[:, channel, 0, 0], expected)


def test_only_maps_are_decayed():
    module = PixelMamba(3, **RECORDED)
    decayed, kept = module.param_groups(1e-3)
    names = {id(p): name for name, p in module.named_parameters()}
    endings = {names[id(p)].split(".")[-1] for p in kept["params"]}
    assert endings == {"A_log", "A_b_log", "D", "D_b", "bias", "weight", "cls_token"}
    assert kept["weight_decay"] == 0.0
    assert "weight_decay" not in decayed
    assert {names[id(p)].rsplit(".", 2)[-2] for p in decayed["params"]} == {
        *("in_proj", "out_proj", "x_proj", "x_proj_b", "dt_proj", "dt_proj_b"),
        *("conv1d", "conv1d_b"),
    }


def test_it_reads_three_channels():
    with pytest.raises(SpecError, match="pixel-mamba reads RGB pixels, in_dim is 24, expected 3"):
        PixelMamba(24)


@pytest.mark.parametrize("size", ["6m", "21m", "tiny"])
def test_the_entries_build_and_need_224_or_smaller_regions_at_4_microns(size):
    model = wsizoo.build(f"pixel-mamba-{size}", "head.classes=[a,b]")
    assert model.reads == "pixels"
    assert (model.requires.encoder, model.requires.mpp) == ("pixels", 4.0)
    assert model.requires.patch_size == (32 if size == "tiny" else 224)
    assert model.aggregator.settings.size == size


def test_survival_has_four_hazards_and_the_published_clamp():
    model = wsizoo.build("pixel-mamba-surv-6m")
    assert (model.head.n_outputs, model.head.floor) == (4, 1e-7)


if __name__ == "__main__":
    record()
