"""Options of a network: sizes, and what is refused."""

import pytest
from wsizoo_plugin_pixelmamba.settings import SIZES, Settings

from wsizoo.errors import SpecError

WRONG = {
    "size": ("7m", "size is '7m', expected one of 6m, 21m, tiny"),
    "layers": (["h-cat", "d-cat"], r"layers is \['h-cat', 'd-cat'\], expected a list of ''"),
    "alpha": (1.2, "alpha is 1.2, expected a number from 0 to 1"),
    "norm_eps": ("small", "norm_eps is 'small', expected a number"),
    "inner": ("zigzag", "inner is 'zigzag', expected snake or raster"),
    "outer": ("jpeg", "outer is 'jpeg', expected snake or raster"),
    "shift_padding": ("reflect", "shift_padding is 'reflect', expected replicate or zeros"),
    "cls_mode": ("none", "cls_mode is 'none', expected repeat or zero or linear"),
    "split": ("random", "split is 'random', expected alternate or halves"),
    "shared": ("sum", "shared is 'sum', expected mean or pairwise"),
    "count": ("final", "count is 'final', expected input or current"),
    "norm": ("batch", "norm is 'batch', expected rms or layer"),
    "share_conv": ("yes", "share_conv is 'yes', expected true or false"),
    "d_state": (0, "d_state is 0, expected a whole number from 1"),
    "working_mb": (1.5, "working_mb is 1.5, expected a whole number from 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_cannot_be_is_refused(name):
    value, message = WRONG[name]
    with pytest.raises(SpecError, match=f"pixel-mamba: {message}"):
        Settings.of({name: value})


def test_a_name_in_no_list_is_refused_with_the_near_one():
    with pytest.raises(SpecError, match=r"pixel-mamba has no option 'alfa'.*alpha"):
        Settings.of({"alfa": 0.5})


@pytest.mark.parametrize("size", SIZES)
def test_all_sizes_end_with_tokens_of_32_x_32_pixels(size):
    settings = Settings(size=size)
    assert settings.step == (32, 32)
    assert settings.grids((224, 224))[-1] == (7, 7)


def test_the_published_layers():
    small, large = Settings(size="6m"), Settings(size="21m")
    assert len(small.layers) == len(large.layers) == 24
    assert [i for i in range(24) if small.layers[i] != large.layers[i]] == [10]
    assert small.widths == (3, 6, 12, 24, 48, 48, 96, 96, *[192] * 14, 384, 384)
    assert large.widths == (3, 6, 12, 24, 48, 48, 96, 96, *[192] * 3, *[384] * 11, 768, 768)
    assert (small.out_dim, large.out_dim) == (384, 768)


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_of_alpha_are_taken(alpha):
    assert Settings(alpha=alpha).alpha == alpha
