from wsizoo import Component, hookimpl

wsizoo_api = 1

SLIDECHAT = "https://github.com/uni-medical/SlideChat"


@hookimpl
def wsizoo_components():
    return (
        Component(
            "model",
            "slidevlm",
            target="wsizoo_plugin_sparselearn.vlm.slide_vlm:SlideVLM",
            summary="patches of a slide, selected ones, before a causal language model",
            source=SLIDECHAT,
        ),
    )
