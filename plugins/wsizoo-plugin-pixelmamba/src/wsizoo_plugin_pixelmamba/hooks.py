from wsizoo import Component, hookimpl

wsizoo_api = 1

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
