from wsizoo import Component, OpBackend, WeightFormat, hookimpl

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


@hookimpl
def wsizoo_op_backends():
    module = "wsizoo_plugin_pixelmamba.mamba_ssm_backend"
    return (
        OpBackend(
            "selective_scan",
            "mamba-ssm",
            target=f"{module}:selective_scan",
            why_not=f"{module}:why_not_scan",
            priority=30,
        ),
        OpBackend(
            "causal_conv1d",
            "mamba-ssm",
            target=f"{module}:causal_conv1d",
            why_not=f"{module}:why_not_conv",
            priority=30,
        ),
    )
