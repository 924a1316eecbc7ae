"""Selectors that score every patch: the k best are kept, or all of them softly, by their gates.

A method says how a patch is scored, and what the aggregator sees in training. Budget, ranking, the
temperature and the phases of a training are the same for all of them, and stand here.
"""

from wsizoo.selection.budget import check_budget, check_known, check_option, kept_count
from wsizoo.selection.handing_on import aggregate, check_selected, resting
from wsizoo.selection.phased import SOFT, TUNE, WARM_UP, PhasedSelector, own_generator
from wsizoo.selection.scored import ScoredSelector
from wsizoo.selection.soft import SoftSelector, annealed, given_gates, standard_scores

__all__ = [
    "SOFT",
    "TUNE",
    "WARM_UP",
    "PhasedSelector",
    "ScoredSelector",
    "SoftSelector",
    "aggregate",
    "annealed",
    "check_budget",
    "check_known",
    "check_option",
    "check_selected",
    "given_gates",
    "kept_count",
    "own_generator",
    "resting",
    "standard_scores",
]
