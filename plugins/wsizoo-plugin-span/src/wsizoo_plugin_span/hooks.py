from wsizoo import Component, hookimpl

wsizoo_api = 1

SOURCE = "https://github.com/wwyi1828/SPAN"


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
    )


@hookimpl
def wsizoo_op_backends():
    return ()
