"""pixel-mamba as an aggregator."""

from wsizoo_plugin_pixelmamba.model import PixelMamba

from wsizoo.testing import conformance

SMALL = {"layers": ["h-cat", "v-avg"], "pixels": 2, "d_state": 4}
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


@conformance(PixelMamba, **SMALL)
def test_pixel_mamba_is_an_aggregator(check):
    check()


@conformance(PixelMamba, **OTHER)
def test_pixel_mamba_with_every_other_choice_is_an_aggregator(check):
    check()
