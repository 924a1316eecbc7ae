from wsizoo import Component, WeightFormat, hookimpl

wsizoo_api = 1

VIM = "https://github.com/hustvl/Vim"
PAPER = "https://arxiv.org/abs/2412.16711"


@hookimpl
def wsizoo_components():
    return (
        Component(
            "aggregator",
            "pixel-mamba",
            target="wsizoo_plugin_pixelmamba.model:PixelMamba",
            summary="Pixel-Mamba, one vector a slide from all its pixels, no patch encoder",
            source=PAPER,
        ),
    )


@hookimpl
def wsizoo_weight_formats():
    return (
        WeightFormat(
            "vim-official",
            ("pixel-mamba",),
            target="wsizoo_plugin_pixelmamba.vim:VimOfficial",
            summary="a Pixel-Mamba under the names of Vim's code",
            source=VIM,
        ),
    )
