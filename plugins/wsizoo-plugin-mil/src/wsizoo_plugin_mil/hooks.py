from wsizoo import Component, WeightFormat, hookimpl

wsizoo_api = 1

RRT = "https://github.com/DearCaat/RRT-MIL"
CLAM = "https://github.com/mahmoodlab/CLAM"
DSMIL = "https://github.com/binli123/dsmil-wsi"
ACMIL = "https://github.com/dazhangyu123/ACMIL"
DTFD = "https://github.com/hrzhang1123/DTFD-MIL"
ILRA = "https://github.com/jinxixiang/low_rank_wsi"
WIKG = "https://github.com/WonderLandxD/WiKG"
MHIM = "https://github.com/DearCaat/MHIM-MIL"
KNN = "https://arxiv.org/abs/2304.07193"
TRANSMIL = "https://github.com/szc19990412/TransMIL"
MARUGOTO = "https://github.com/KatherLab/marugoto"
MIL_LAB = "https://github.com/mahmoodlab/MIL-Lab"
KIPF = "https://arxiv.org/abs/1609.02907"
VELICKOVIC = "https://arxiv.org/abs/1710.10903"

METHODS = (  # name, module:class, summary, source
    ("mean-instance", "instance_pooling:MeanInstance", "mean of the logits of patches", RRT),
    ("max-instance", "instance_pooling:MaxInstance", "largest logits of any patch", RRT),
    ("clam-sb", "clam:ClamSB", "attention pooling, instance clustering", CLAM),
    ("clam-mb", "clam:ClamMB", "attention pooling class by class, instance clustering", CLAM),
    ("dsmil", "dsmil:DSMIL", "attention by likeness to the critical patch of each class", DSMIL),
    ("transmil", "transmil:TransMIL", "Nystrom attention, positions by convolutions", TRANSMIL),
    ("attmil", "attmil:AttMIL", "plain attention pooling, batch norm", MARUGOTO),
    ("acmil-ga", "acmil:AcmilGA", "several attentions kept apart, best patches hidden", ACMIL),
    ("acmil-mha", "acmil:AcmilMHA", "tokens with attentions kept apart", ACMIL),
    ("dtfd", "dtfd:DTFD", "attention over pseudo-bags, and over what they hand on", DTFD),
    ("gcn", "gcn:GCN", "our GCN: graph convolutions over neighbouring patches", KIPF),
    ("gat", "gat:GAT", "our GAT: graph attention over neighbouring patches", VELICKOVIC),
    ("rrt", "rrt:RRT", "attention within and across regions, then pooling", RRT),
    ("ilra", "ilra:ILRA", "low-rank attention through latent vectors", ILRA),
    ("wikg", "wikg:WiKG", "a graph of most similar patches", WIKG),
    ("knn", "knn:KNN", "votes of the training slides with the most similar mean", KNN),
    ("transformer", "transformer:Transformer", "class token under full attention", MIL_LAB),
    ("mhim-abmil", "mhim:MhimABMIL", "attention pooling without what a teacher finds easy", MHIM),
    ("mhim-dsmil", "mhim:MhimDSMIL", "DSMIL without what a teacher finds easy", MHIM),
    ("mhim-transmil", "mhim:MhimTransMIL", "TransMIL without what a teacher finds easy", MHIM),
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
        "acmil-official",
        ("acmil-ga", "acmil-mha"),
        "acmil_format:ACMILOfficial",
        "what ACMIL saves",
        ACMIL,
    ),
    ("dtfd-official", ("dtfd",), "dtfd_format:DTFDOfficial", "what DTFD-MIL saves", DTFD),
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
        "mhim-official",
        ("mhim-abmil", "mhim-dsmil", "mhim-transmil"),
        "mhim_format:MHIMOfficial",
        "what MHIM-MIL saves, v1 and v2",
        MHIM,
    ),
    (
        "mil-lab",
        ("abmil", "clam-sb", "dsmil", "transmil", "dtfd", "transformer", "rrt", "ilra", "wikg"),
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
