from wsizoo import Component, WeightFormat, hookimpl

wsizoo_api = 1

RRT = "https://github.com/DearCaat/RRT-MIL"
CLAM = "https://github.com/mahmoodlab/CLAM"
DSMIL = "https://github.com/binli123/dsmil-wsi"
ILRA = "https://github.com/jinxixiang/low_rank_wsi"
WIKG = "https://github.com/WonderLandxD/WiKG"
KNN = "https://arxiv.org/abs/2304.07193"
TRANSMIL = "https://github.com/szc19990412/TransMIL"
MARUGOTO = "https://github.com/KatherLab/marugoto"
MIL_LAB = "https://github.com/mahmoodlab/MIL-Lab"

METHODS = (  # name, module:class, summary, source
    ("mean-instance", "instance_pooling:MeanInstance", "mean of the logits of patches", RRT),
    ("max-instance", "instance_pooling:MaxInstance", "largest logits of any patch", RRT),
    ("clam-sb", "clam:ClamSB", "attention pooling, instance clustering", CLAM),
    ("clam-mb", "clam:ClamMB", "attention pooling class by class, instance clustering", CLAM),
    ("dsmil", "dsmil:DSMIL", "attention by likeness to the critical patch of each class", DSMIL),
    ("transmil", "transmil:TransMIL", "Nystrom attention, positions by convolutions", TRANSMIL),
    ("attmil", "attmil:AttMIL", "plain attention pooling, batch norm", MARUGOTO),
    ("rrt", "rrt:RRT", "attention within and across regions, then pooling", RRT),
    ("ilra", "ilra:ILRA", "low-rank attention through latent vectors", ILRA),
    ("wikg", "wikg:WiKG", "a graph of most similar patches", WIKG),
    ("knn", "knn:KNN", "votes of the training slides with the most similar mean", KNN),
    ("transformer", "transformer:Transformer", "class token under full attention", MIL_LAB),
)
FORMATS = (  # name, components, module:class, summary, source
    (
        "clam-official",
        ("clam-sb", "clam-mb"),
        "clam_format:ClamOfficial",
        "what CLAM saves, older files too",
        CLAM,
    ),
    ("dsmil-official", ("dsmil",), "dsmil_format:DSMILOfficial", "what DSMIL saves", DSMIL),
    (
        "transmil-official",
        ("transmil",),
        "transmil_format:TransMILOfficial",
        "what TransMIL saves",
        TRANSMIL,
    ),
    (
        "attmil",
        ("attmil",),
        "attmil_format:AttMILOfficial",
        "what marugoto (STAMP 1) saves",
        MARUGOTO,
    ),
    (
        "rrt-official",
        ("rrt",),
        "rrt_format:RRTOfficial",
        "what RRT-MIL saves",
        RRT,
    ),
    ("wikg-official", ("wikg",), "wikg_format:WiKGOfficial", "what WiKG saves", WIKG),
    ("ilra-official", ("ilra",), "ilra_format:ILRAOfficial", "what ILRA saves", ILRA),
    (
        "mil-lab",
        ("abmil", "clam-sb", "dsmil", "transmil", "transformer", "rrt", "ilra", "wikg"),
        "mil_lab_format:MILLab",
        "what MIL-Lab saves, FEATHER too",
        MIL_LAB,
    ),
)


@hookimpl
def wsizoo_components():
    return tuple(
        Component("aggregator", name, f"wsizoo_plugin_mil.{target}", summary, source)
        for name, target, summary, source in METHODS
    )


@hookimpl
def wsizoo_weight_formats():
    return tuple(
        WeightFormat(name, of, f"wsizoo_plugin_mil.{target}", summary, source)
        for name, of, target, summary, source in FORMATS
    )
