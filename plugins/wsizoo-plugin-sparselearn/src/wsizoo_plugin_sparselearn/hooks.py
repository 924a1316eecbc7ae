from wsizoo import Component, hookimpl

wsizoo_api = 1

PAPER = "https://arxiv.org/abs/2606.08641"
SLIDECHAT = "https://github.com/uni-medical/SlideChat"
HERE = "wsizoo_plugin_sparselearn"
SELECTORS = (
    ("sparselearn", "selector:SparseLearn", "learnt top-k of patches through a noise gate", PAPER),
    ("random", "untrained:Random", "random patches, the same of a slide in eval", "folklore"),
    ("uniform-grid", "untrained:UniformGrid", "every n-th patch in raster order", "folklore"),
    ("norm", "untrained:Norm", "the patches with the largest features", "folklore"),
    (
        "abmil-score",
        "comparison:AbmilScore",
        "the patches that a trained ABMIL attends to most",
        "https://arxiv.org/abs/1802.04712",
    ),
    (
        "straight-through",
        "comparison:StraightThrough",
        "learnt top-k, hard forward and soft backward",
        "https://arxiv.org/abs/1308.3432",
    ),
    (
        "gumbel-topk",
        "comparison:GumbelTopk",
        "straight-through of scores with Gumbel noise",
        "https://arxiv.org/abs/1903.06059",
    ),
)


@hookimpl
def wsizoo_components() -> tuple[Component, ...]:
    selectors = (
        Component("selector", name, target=f"{HERE}.{target}", summary=summary, source=source)
        for name, target, summary, source in SELECTORS
    )
    return (
        *selectors,
        Component(
            "model",
            "slidevlm",
            target=f"{HERE}.vlm.slide_vlm:SlideVLM",
            summary="patches of a slide, selected ones, before a causal language model",
            source=SLIDECHAT,
        ),
    )
