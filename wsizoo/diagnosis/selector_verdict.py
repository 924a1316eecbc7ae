"""Does what was learned softly hold when patches are chosen hard? In words, by rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsizoo.measures.compare import Difference
from wsizoo.measures.metrics import share_interval

POINTS = 0.02  # of the measure, that hard may be off
OVERLAP = 0.8
ROUNDING = 1e-9

TRANSFERS = "transfers"
UNRELIABLE = "transfers, soft path unreliable"
FAILS = "does not transfer"
NOT_BETTER = "selector not better than random"
OPEN = "not decided"
UNKNOWN = "not measured"


@dataclass(frozen=True)
class Verdict:
    """A headline and the sentences under it."""

    headline: str
    told: tuple[str, ...]


def judge(
    gap: Difference | None,
    overlap: float,
    over_random: Difference,
    over_full: Difference,
    patients: int,
    what: str = "slides",
    ranked: Difference | None = None,
) -> Verdict:
    """The verdict on one run.

    Args:
        gap: hard minus soft; None: the soft path could not be shown. overlap: mean share of the
            soft budget on the kept patches. over_random, over_full: hard minus these.
        patients: that were resampled. what: they are called.
        ranked: hard minus soft by AUC, where the gap is of decisions.
    """
    first, why = _transfer(gap, overlap, over_full)
    heads, told = [first], [why]
    if over_random.low <= ROUNDING and over_random.high >= -ROUNDING:
        heads.append(NOT_BETTER)
        told.append(
            f"Hard minus random is {points(over_random)}: the interval includes 0, so these "
            f"{what} do not show that the learned patches are worth more than random ones."
        )
    elif math.isnan(over_random.value):
        told.append("Hard and random cannot be compared: the measure is not defined here.")
    if first == FAILS and ranked is not None and ranked.value >= -POINTS - ROUNDING:
        told.append(
            f"By AUC hard loses nothing ({points(ranked)}): slides are ranked as well, but the "
            "head's threshold does not fit the kept patches. Let it learn on them at the end of "
            "training: selector.tune=0.1"
        )
    told += _few(gap, patients, what)
    return Verdict("; ".join(heads), tuple(told))


def _transfer(gap: Difference | None, overlap: float, over_full: Difference) -> tuple[str, str]:
    if gap is None:
        return UNKNOWN, "The soft path could not be shown, so that there is nothing to compare."
    if math.isnan(gap.value):
        return UNKNOWN, "The measure is not defined on these slides."
    told = f"Hard minus soft is {points(gap)}, overlap {overlap:.2f}."
    inside = gap.low >= -POINTS - ROUNDING and gap.high <= POINTS + ROUNDING
    if gap.value < -POINTS - ROUNDING:
        return FAILS, f"{told} Hard loses more than 2 points of what was trained."
    if gap.value > POINTS + ROUNDING and over_full.value >= -POINTS - ROUNDING:
        return UNRELIABLE, (
            f"{told} Hard is no worse than all patches, within 2 points, and soft is lower by "
            "more: the training path says less than the kept patches do. Look at the noise."
        )
    if inside and overlap >= OVERLAP:
        return TRANSFERS, (
            f"{told} The interval lies within 2 points, and most of the soft budget lies on the "
            "kept patches."
        )
    why = []
    if not inside:
        why.append("the interval reaches beyond 2 points; more slides would narrow it")
    if overlap < OVERLAP:
        why.append(
            f"less than {100 * OVERLAP:.0f} % of the soft budget lies on the kept patches: end "
            "colder, selector.end_temperature, or train longer"
        )
    return OPEN, f"{told} {_sentence(why)}"


def _few(gap: Difference | None, patients: int, what: str) -> list[str]:
    """What an interval without width leaves open."""
    if gap is None or not gap.high - gap.low <= ROUNDING:
        return []
    _, most = share_interval(0, patients)
    return [
        f"Soft and hard did equally well in all resamples of {patients} {what}, so the interval "
        f"has no width; up to {100 * most:.0f} % of others could still differ (exact, 95 %)."
    ]


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "."


def points(one: Difference) -> str:
    """`-0.8 points (-2.3 to +0.4)`."""
    ends = f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"
    return f"{100 * one.value:+.1f} points ({ends})"
