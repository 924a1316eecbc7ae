from wsizoo import Component, OpBackend, WeightFormat, hookimpl

wsizoo_api = 1

SOURCE = "https://github.com/wwyi1828/SPAN"
V1_PAPER = "https://arxiv.org/abs/2406.09333v1"


@hookimpl
def wsizoo_components():
    return (
        Component(
            "aggregator",
            "span",
            target="wsizoo_plugin_span.model:Span",
            summary="sparse pyramid attention, one vector a slide",
            source=SOURCE,
        ),
        Component(
            "aggregator",
            "span-unet",
            target="wsizoo_plugin_span.model:SpanUNet",
            summary="sparse pyramid attention with a decoder, one vector a patch",
            source=SOURCE,
        ),
        Component(
            "aggregator",
            "span-v1",
            target="wsizoo_plugin_span.v1:SpanV1",
            summary="SPAN of 2024: window attention on a pyramid of grids, attention pooling",
            source=V1_PAPER,
        ),
    )


@hookimpl
def wsizoo_weight_formats():
    return (
        WeightFormat(
            "span-official",
            ("span", "span-unet"),
            target="wsizoo_plugin_span.official_format:SpanOfficial",
            summary="what the published SPAN saves, for all three tasks",
            source=SOURCE,
        ),
    )


@hookimpl
def wsizoo_op_backends():
    module, flash = "wsizoo_plugin_span.spconv_backend", "wsizoo_plugin_span.flash_backend"
    return (
        OpBackend(
            "sparse_conv2d",
            "spconv",
            target=f"{module}:sparse_conv2d",
            why_not=f"{module}:why_not_conv",
            priority=20,
        ),
        OpBackend(
            "sparse_conv_transpose2d",
            "spconv",
            target=f"{module}:sparse_conv_transpose2d",
            why_not=f"{module}:why_not_transpose",
            priority=20,
        ),
        OpBackend(
            "grid_attention",
            "flash",
            target=f"{flash}:grid_attention",
            why_not=f"{flash}:why_not",
            priority=20,
        ),
    )
