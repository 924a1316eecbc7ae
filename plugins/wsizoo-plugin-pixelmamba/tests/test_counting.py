"""Parameters and multiply-adds of the published networks, and of what is built."""

import pytest
from wsizoo_plugin_pixelmamba.counting import (
    multiply_adds,
    parameters,
    regions_left,
    tokens_of,
)
from wsizoo_plugin_pixelmamba.network import Network
from wsizoo_plugin_pixelmamba.settings import Settings

# Of arXiv 2412.16711, Tables 7 and 8, by hand; a head of 1000 classes adds 385,000 and 769,000.
VARIANTS = {
    "default": ({}, 6_264_210, 20_559_186),
    "LayerNorm": ({"norm": "layer"}, 6_268_383, 20_566_623),
    "shared convolution": ({"share_conv": True}, 6_226_320, 20_492_496),
    "both": ({"norm": "layer", "share_conv": True}, 6_230_493, 20_499_933),
    "learned CLS": ({"cls_mode": "linear"}, 6_362_508, 20_952_396),
}


@pytest.mark.parametrize(("options", "small", "large"), VARIANTS.values(), ids=VARIANTS)
def test_the_published_networks_have_the_derived_parameters(options, small, large):
    for size, expected in (("6m", small), ("21m", large)):
        settings = Settings(size=size, **options)
        built = sum(p.numel() for p in Network(settings).parameters() if p.requires_grad)
        assert built == expected == parameters(settings)


@pytest.mark.parametrize(
    "options",
    [{"final_norm": False}, {"d_state": 5, "d_conv": 2, "expand": 3}, {"layers": ["v-cat", ""]}],
)
def test_parameters_of_other_settings_are_those_of_what_is_built(options):
    settings = Settings(size="tiny", **options)
    assert parameters(settings) == sum(p.numel() for p in Network(settings).parameters())


@pytest.mark.parametrize(
    ("size", "published", "parts"),
    [
        ("6m", 1.4, (1.476, 0.343, 0.063, 0.035, 0.140)),
        ("21m", 3.4, (3.440, 0.492, 0.145, 0.043, 0.174)),
    ],
)
def test_multiply_adds_of_one_image_by_both_rules(size, published, parts):
    found = multiply_adds(Settings(size=size))
    names = ("projections", "x_proj", "dt_proj", "conv", "updates")
    assert tuple(round(getattr(found, name) / 1e9, 3) for name in names) == parts
    assert abs(found.published / 1e9 - published) < 0.1
    assert found.complete == sum(vars(found).values()) + 2 * found.updates


def test_fusion_makes_slides_cheaper_than_their_regions():
    found = multiply_adds(Settings(), regions=300)
    maps = found.projections + found.x_proj + found.dt_proj + found.conv
    assert (round(maps / 1e9), round(found.updates / 1e9)) == (371, 31)
    assert (
        multiply_adds(Settings(alpha=0.0), 300).complete == 300 * multiply_adds(Settings()).complete
    )


def test_all_tokens_of_one_image():
    assert [sum(tokens_of(Settings(size=size), 1)) for size in ("6m", "21m")] == [108_510, 108_510]


@pytest.mark.parametrize(
    ("n", "by_input", "by_current"),
    [(1, 1, 1), (25, 1, 1), (26, 2, 2), (30, 6, 6), (31, 1, 6), (61, 1, 21), (300, 60, 125)],
)
def test_regions_that_are_left(n, by_input, by_current):
    assert regions_left(Settings(), n)[-1] == by_input
    assert regions_left(Settings(count="current"), n)[-1] == by_current
