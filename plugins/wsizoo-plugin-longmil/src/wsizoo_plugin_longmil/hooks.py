from wsizoo import Component, WeightFormat, hookimpl

wsizoo_api = 1

PAPER = "https://arxiv.org/abs/2410.14195"
CODE = "https://github.com/invoker-LL/Long-MIL"


@hookimpl
def wsizoo_components():
    return (
        Component(
            "aggregator",
            "longmil",
            target="wsizoo_plugin_longmil.model:LongMIL",
            summary="local attention within a radius, 2x2 pooling, one global layer",
            source=PAPER,
        ),
        Component(
            "aggregator",
            "longmil-v1",
            target="wsizoo_plugin_longmil.v1:LongMILV1",
            summary="LongMIL's published code: clamped ALiBi in three layers of full attention",
            source=CODE,
        ),
        Component(
            "aggregator",
            "full-attention",
            target="wsizoo_plugin_longmil.model:FullAttention",
            summary="two layers of full attention with 2-D RoPE (RoFormer), LongMIL's comparison",
            source=PAPER,
        ),
    )


@hookimpl
def wsizoo_weight_formats():
    return (
        WeightFormat(
            "longmil-v1-official",
            ("longmil-v1",),
            target="wsizoo_plugin_longmil.official_format:LongMILOfficial",
            summary="what the published LongMIL saves",
            source=CODE,
        ),
    )
