from wsizoo import Component, WeightFormat, hookimpl

wsizoo_api = 1

SOURCE = "https://github.com/wwyi1828/SPAN"


@hookimpl
def wsizoo_components():
    model = "wsizoo_plugin_span.model"
    return [
        Component(
            "aggregator",
            "span",
            f"{model}:Span",
            "sparse pyramid attention, a slide vector",
            SOURCE,
        ),
        Component(
            "aggregator",
            "span-unet",
            f"{model}:SpanUNet",
            "the same with a decoder, per patch",
            SOURCE,
        ),
    ]


@hookimpl
def wsizoo_weight_formats():
    target = "wsizoo_plugin_span.official_format:SpanOfficial"
    summary = "what the published SPAN saves, for all three tasks"
    return [WeightFormat("span-official", ("span", "span-unet"), target, summary, SOURCE)]
