from wsizoo import Component, hookimpl

wsizoo_api = 1

V1_PAPER = "https://arxiv.org/abs/2406.09333v1"


@hookimpl
def wsizoo_components():
    return (
        Component(
            "aggregator",
            "span-v1",
            target="wsizoo_plugin_span.v1:SpanV1",
            summary="SPAN of 2024: window attention on a pyramid of grids, attention pooling",
            source=V1_PAPER,
        ),
    )


@hookimpl
def wsizoo_op_backends():
    return ()
