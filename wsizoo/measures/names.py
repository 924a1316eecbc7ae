"""What measures are called, which way they point, and which one speaks for a task."""

from __future__ import annotations

MAIN = {
    "classification": "auc",
    "survival": "c_index",
    "regression": "r2",
    "segmentation": "dice_per_slide",
}
"""What models of a task are ranked by, and what is told first: larger is better in all of them.

AUC and C-index need no threshold. R² has no unit, and 0 is guessing the mean, which an error in the
unit of the value does not tell. Dice per slide counts each slide as often, as the bootstrap draws
them; pooled patches speak for the largest slides.
"""

UNDEFINED = {
    "classification": "all that is tested is of one class",
    "survival": "of no two patients is it known who had the event first",
    "regression": "all values are the same",
    "segmentation": "no patch is positive or was called so",
}
"""Why the main measure of slides is not defined, whatever a model answers."""

BESIDE = {
    "classification": ("balanced_accuracy", "macro_f1"),
    "survival": ("integrated_brier",),
    "regression": ("mae",),
    "segmentation": ("dice_pooled",),
}
"""What is shown beside it where there is no room for all: what it leaves out, that most first."""

LOWER_IS_BETTER = frozenset({"brier", "ece", "log_loss", "mae", "rmse", "integrated_brier"})

AT_TUNED = "_at_tuned_threshold"


def is_share(name: str) -> bool:
    """Whether a measure is the share of rows (of a class) that are right."""
    plain = name.removesuffix(AT_TUNED)
    return plain == "accuracy" or plain.startswith("recall_of_")


TITLES = {
    "auc": "AUC",
    "auprc": "Area under precision-recall",
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    "kappa": "Cohen's kappa",
    "quadratic_kappa": "Cohen's kappa, quadratic",
    "brier": "Brier score",
    "ece": "Calibration error",
    "c_index": "C-index",
    "time_dependent_auc": "Time-dependent AUC",
    "integrated_brier": "Integrated Brier score",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "r2": "R²",
    "dice_per_slide": "Dice, mean of slides",
    "iou_per_slide": "IoU, mean of slides",
    "dice_pooled": "Dice, patches pooled",
    "iou_pooled": "IoU, patches pooled",
}


def title(name: str) -> str:
    """A measure's name as readers know it."""
    return TITLES.get(name, name[:1].upper() + name[1:].replace("_", " "))
