"""A museum of wrong components: for each check of the conformance suite one that it must catch.

Each exhibit names the one check it was made for, and the others that it cannot help failing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsizoo.testing import _museum_aggregators as agg
from wsizoo.testing import _museum_answers as ans
from wsizoo.testing import _museum_others as other


@dataclass(frozen=True)
class Exhibit:
    """One wrong component.

    Args:
        caught_by: the check it was made for. also_fails: others that fail for the same fault.
    """

    maker: Callable[..., Any]
    kind: str
    caught_by: str
    also_fails: tuple[str, ...] = ()


SOUND = (
    (agg.Sound, "aggregator"),
    (agg.Weighing, "aggregator"),
    (agg.Placed, "aggregator"),
    (agg.Owner, "aggregator"),
    (ans.SoundModel, "model"),
    (other.SoundSelector, "selector"),
    (other.SoundEncoder, "encoder"),
)


def _aggregator(maker: Callable[..., Any], caught_by: str, *also_fails: str) -> Exhibit:
    return Exhibit(maker, "aggregator", caught_by, also_fails)


EXHIBITS = (
    _aggregator(agg.NoPart, "base_class"),
    _aggregator(agg.ExcusesUnknownRule, "exceptions_exist"),
    _aggregator(agg.NeedlessExcuse, "one_patch"),
    _aggregator(agg.SetsGlobalSeed, "seeded_build"),
    _aggregator(
        agg.NumpyInitialised, "other_random_states_untouched", "seeded_build", "float64_agrees"
    ),
    _aggregator(
        agg.DropoutAlwaysOn,
        "eval_deterministic",
        "other_random_states_untouched",
        "state_round_trip",
        "float64_agrees",
        "resumes",
        "far_islands",
        "eval_ignores_target",
        "scores_belong_to_their_call",
        "permutation_as_declared",
        "coords_as_declared",
        "translation_as_declared",
    ),
    _aggregator(agg.KeepsAttention, "no_stray_tensors"),
    _aggregator(agg.PublishesCopies, "inference_state_in_state_dict", "state_round_trip"),
    _aggregator(agg.UnsavedProjection, "state_round_trip", "resumes"),
    _aggregator(agg.CastsToFloat32, "float64_agrees"),
    _aggregator(agg.UnusedLayer, "gradients_reach_parameters"),
    _aggregator(agg.ForgetsBiasGroup, "param_groups_cover"),
    _aggregator(agg.StepsOnlyOnce, "trains_two_steps", "resumes"),
    _aggregator(agg.TemperatureOutsideState, "resumes"),
    _aggregator(agg.MisstatesWidth, "stated_widths"),
    _aggregator(
        agg.ReturnsTensor,
        "return_type",
        "losses",
        "predictions",
        "scores_aligned",
        "scores_belong_to_their_call",
        "slide_shape",
        "instances_as_declared",
        "trains_in_a_model",
    ),
    _aggregator(agg.DividesByDeviation, "one_patch", "trains_in_a_model"),
    _aggregator(agg.ThreeNeighbours, "two_patches"),
    _aggregator(agg.BlocksOfFour, "odd_count"),
    _aggregator(agg.PositionTable, "large_count"),
    _aggregator(agg.SixteenBitCells, "far_islands"),
    _aggregator(agg.NaiveSoftmax, "finite_extremes"),
    _aggregator(
        agg.CentresInPlace, "bag_unchanged", "gradients_reach_features", "trains_in_a_model"
    ),
    _aggregator(ans.PeeksAtTarget, "eval_ignores_target"),
    _aggregator(ans.LossInEval, "losses"),
    _aggregator(ans.ColumnOfScores, "scores_aligned"),
    _aggregator(ans.GroupsOfKept, "scores_aligned"),
    _aggregator(ans.SortedScores, "permutation_as_declared", "far_islands"),
    _aggregator(ans.LateScoresOfLastSlide, "scores_belong_to_their_call", "no_stray_tensors"),
    _aggregator(ans.WeighsByRow, "permutation_as_declared", "far_islands"),
    _aggregator(ans.NeedlessOrder, "permutation_as_declared"),
    _aggregator(ans.CutsGradient, "gradients_reach_features"),
    _aggregator(ans.SecretCoords, "coords_as_declared"),
    _aggregator(ans.NeedlessCoords, "coords_as_declared"),
    _aggregator(ans.SecretSpacing, "coords_as_declared"),
    _aggregator(ans.AbsolutePlace, "translation_as_declared"),
    _aggregator(ans.OneLabelTooFew, "predictions", "trains_in_a_model"),
    _aggregator(ans.RowOfSlide, "slide_shape"),
    _aggregator(ans.HiddenInstances, "instances_as_declared"),
    _aggregator(ans.HiddenLogits, "logits_as_declared"),
    _aggregator(ans.UnnamedClassifier, "classifier_tensors"),
    _aggregator(ans.PacksAcrossSlides, "packed_equals_single"),
    _aggregator(agg.IgnoresWeights, "weights_as_declared"),
    _aggregator(ans.NoSlideInTraining, "trains_in_a_model", "slide_shape"),
    Exhibit(ans.RowOfLogits, "model", "output_shapes"),
    Exhibit(other.BestFirst, "selector", "index_ascending"),
    Exhibit(other.GatesInEval, "selector", "rows_are_the_bags"),
    Exhibit(other.NamesHalfHandsOnAll, "selector", "width_handed_on"),
    Exhibit(other.WeighsInEval, "selector", "weights_in_training"),
    Exhibit(other.UnknownTask, "head", "task"),
    Exhibit(other.OnlyProbabilities, "head", "outputs_named"),
    Exhibit(other.SurvivalOverFirstDimension, "head", "outputs_batched", ("risk_larger_is_worse",)),
    Exhibit(other.LogOfSoftmax, "head", "loss_scalar"),
    Exhibit(other.SumsOverRows, "head", "loss_of_rows"),
    Exhibit(other.LabelsFromOne, "head", "loss_points_to_target"),
    Exhibit(other.SurvivalAsRisk, "head", "risk_larger_is_worse"),
    Exhibit(other.DefaultLabel, "head", "missing_target_refused"),
    Exhibit(other.UnknownIsFirstClass, "head", "unknown_labels_left_out"),
    Exhibit(other.InsistsOnClassifier, "head", "works_without_own_classifier"),
    Exhibit(other.MagnificationAsScale, "encoder", "facts_stated"),
    Exhibit(other.DoublePrecision, "encoder", "features_shape"),
    Exhibit(other.NormalisesOverBatch, "encoder", "batch_independent"),
    Exhibit(other.InvertsInPlace, "encoder", "pixels_unchanged", ("batch_independent",)),
    Exhibit(other.WantsContiguous, "encoder", "memory_layout_free"),
    Exhibit(other.DividesByContrast, "encoder", "blank_patches_finite", ("batch_independent",)),
    Exhibit(other.Greyscale, "encoder", "reads_every_channel"),
    Exhibit(other.AnonymousWeights, "encoder", "fingerprint_complete"),
)
