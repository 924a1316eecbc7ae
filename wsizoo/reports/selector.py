"""What a diagnosis of a selector found: its rows, its page, its section in a run's report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsizoo.errors import DataError
from wsizoo.measures.names import title
from wsizoo.reports.selector_charts import (
    answers_plot,
    gates_plot,
    probes_plot,
    shown,
    warmer_plot,
)
from wsizoo.viz.report import Report

Told = Mapping[str, Any]

FOLDER = "diagnosis"  # of a run, where a diagnosis lies unless -o says otherwise
TABLE, NUMBERS, PAGE = "selector.csv", "selector.json", "selector.html"
COLUMNS = ("run", "what", "measure", "value", "low", "high", "sd", "n")
MAP = 460  # CSS px
WARM = 1.5  # times the end temperature: weights of a step before that are not those of the end
CHOICES = {
    "soft": "Soft gates",
    "hard": "Hard, the best k",
    "random": "Random k",
    "full": "All patches",
}
KINDS = {
    "full": "All patches",
    "kept": "Kept patches",
    "dropped": "Dropped patches",
    "random dropped": "Dropped at random",
    "all gates 0": "All gates 0 (leak)",
}
WORDS = """Soft is the path that the selector was trained on: all patches pass, each mixed with
noise by its gate at the end temperature, through the denoiser. Hard is what a user gets: the k
patches of the largest scores, as they are. Aggregator and head are the same weights everywhere.
The gap is hard minus soft.

Overlap is the share of the soft budget k that lies on the kept patches; those are always the k of
the largest gates, so it is 1 where gates are hard. Entropy is in bits a kept patch, 0 where gates
are hard. The effective number is (sum of gates)² / sum of squares, k where gates are hard.

Probes are fresh ABMIL models of one size, trained on one kind of patches of the training slides
and measured on the same kind of the evaluated ones. Left is (dropped - chance) / (all - chance):
what of the evidence is still there after the selector took its patches away. Much is no fault by
itself, as evidence repeats itself on a slide; beside it stands what is left where patches are
dropped at random. With all gates 0 a probe should stay at chance: what it finds more came past
the gates.

"Transfers": the interval of the gap lies within 2 points and the overlap is 0.8 or more. "Soft
path unreliable": hard is within 2 points of all patches, soft is lower than hard by more. "Does
not transfer": hard is lower than soft by more than 2 points. "Not better than random": the
interval of hard minus random includes 0. A point is a hundredth of the measure."""


def table_rows(told: Told) -> list[dict[str, Any]]:
    """A row a number, with the columns `COLUMNS`."""
    found = []
    for run in told["runs"]:
        first = run["measures"][0]

        def add(what: str, measure: str, one: Told, name: str = str(run["run"])) -> None:
            row = {key: one.get(key) for key in ("value", "low", "high", "sd", "n")}
            found.append({"run": name, "what": what, "measure": measure, **row})

        for choice, measures in run["answers"].items():
            for measure, one in measures.items():
                add(choice, measure, one)
        for name, one in run["differences"].items():
            add(name, first, one)
        for name in ("overlap", "entropy", "effective", "kept", "patches"):
            add("gates", name, {"value": run["gates"][name], "n": len(run["slides"])})
        probes = run["probes"] or {"measured": {}}
        for kind, one in probes["measured"].items():
            add(f"probe on {kind}", first, one)
        for name in ("chance", "left", "left_random"):
            if probes.get(name) is not None:
                add("probes", name, {"value": probes[name]})
        for one in run["ablations"]:
            for choice in ("hard", "soft"):
                if one[choice] is not None:
                    add(f"{choice}, {one['name']}", first, one[choice])
            add(f"gates, {one['name']}", "overlap", {"value": one["overlap"]})
    if told["alike"]:
        alike = told["alike"]
        row = {"run": "all", "what": "kept in several runs", "n": alike["slides"]}
        found.append({**row, "measure": "jaccard", "value": alike["jaccard"]})
        found.append({**row, "measure": "jaccard by chance", "value": alike["chance"]})
    return [{key: row.get(key) for key in COLUMNS} for row in found]


def write_page(told: Told, out: Path) -> None:
    """OUT/selector.html; heatmaps are embedded."""
    runs = told["runs"]
    first = runs[0]
    several = len(runs) > 1
    kept = (
        f"{first['k']} patches" if isinstance(first["k"], int) else f"{first['k']:.1%} of patches"
    )
    report = Report(
        "Soft to hard: does the selector transfer?",
        f"{first['model']}, selector {first['selector']} keeps {kept}; {first['part']} part",
    )
    if several:
        report.heading("Verdicts").facts({run["run"]: _headline(run) for run in runs})
    for run in runs:
        if several:
            report.heading(run["run"])
        _add_run(report, run, out, several)
    if told["alike"]:
        _add_alike(report, told["alike"])
    report.heading("What the numbers mean").text(WORDS)
    report.files({"all numbers as CSV": TABLE, "with every slide, as JSON": NUMBERS})
    report.write(out / PAGE)


def add_diagnosis(report: Report, run: Path) -> None:
    """The section of a run's report, where `diagnosis/selector.json` lies in the run.

    Raises:
        DataError: the file is damaged.
    """
    file = run / FOLDER / NUMBERS
    if not file.is_file():
        return
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        report.heading("Selector: soft to hard")
        for one in told["runs"]:
            _add_verdict(report, one, one["run"])
            _add_answers(report, one)
        if told["alike"]:
            _add_alike(report, told["alike"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{file}' cannot be read ({type(error).__name__}: {error}). Make it anew: wsizoo "
            f"diagnose selector {run}; or take it away"
        ) from error
    report.files({"gates, probes and heatmaps": f"{FOLDER}/{PAGE}"})


def _add_run(report: Report, run: Told, out: Path, several: bool) -> None:
    """Everything of one run."""

    def head(text: str) -> None:
        if not several:
            report.heading(text)

    head("Verdict")
    _add_verdict(report, run, "Verdict")
    head("Soft, hard, random")
    _add_answers(report, run)
    head("Gates")
    _add_gates(report, run)
    if run["probes"] is not None:
        head("What is left in the dropped patches")
        _add_probes(report, run)
    if run["ablations"]:
        head("Without a part")
        _add_ablations(report, run)
    if run["maps"]:
        head("Where the kept patches lie")
        pictures = [
            (out / one["file"], f"{one['slide']}, overlap {one['overlap']:.2f}")
            for one in run["maps"]
        ]
        report.text(
            "Colours are ranks of the selector's score within the slide, least to most wanted."
        )
        report.pictures(pictures, MAP)


def _headline(run: Told) -> str:
    name = run["verdict"]["headline"]
    return f"{name[:1].upper()}{name[1:]}."


def _add_verdict(report: Report, run: Told, called: str) -> None:
    report.facts({called: _headline(run)})
    report.text(" ".join(run["verdict"]["told"]))
    if run["missing"]:
        report.text(f"{run['missing']}. To have it: {run['to_measure_it']}")


def _add_answers(report: Report, run: Told) -> None:
    first, names = run["measures"][0], run["measures"]
    drawing = answers_plot(run, CHOICES)
    if drawing:
        report.figure(
            drawing,
            f"{title(first)} of the {run['part']} part by {run['level']}, whiskers 95 %; small "
            "dots are single draws of noise or of random patches. Dashed: chance, where known.",
        )
    rows = []
    for choice, measures in run["answers"].items():
        spread = measures[first].get("sd")
        row = {"Patches": CHOICES[choice], **{title(m): shown(measures[m]) for m in names}}
        rows.append({**row, "SD of draws": "" if spread is None else f"{spread:.3f}"})
    report.table(rows, list(rows[0]), f"{run['rows']} {run['level']}s; intervals of 95 %")
    told = [
        {
            "Difference": name,
            "Points": shown(one, 100, 1),
            "p": "n/a" if one["p"] is None else f"{one['p']:.3f}",
        }
        for name, one in run["differences"].items()
    ]
    report.table(
        told,
        list(told[0]),
        f"{title(first)}, in points of a hundredth; paired bootstrap by patient",
    )


def _add_gates(report: Report, run: Told) -> None:
    gates = run["gates"]
    end, reached = run["end_temperature"], run["temperature"]
    if reached is not None and reached > WARM * end:
        report.text(
            f"The weights that were chosen are of a step at which gates still had the temperature "
            f"{reached:.2g}; the end, at which all is measured here, is {end:g}. To choose the "
            "last weights: selection.checkpoint=last"
        )
    report.facts(
        {
            "Patches": f"{gates['patches']:.0f} a slide, of which {gates['kept']:.4g} are kept",
            "Overlap": f"{gates['overlap']:.3f} of the soft budget on the kept patches",
            "Entropy": f"{gates['entropy']:.3f} bits a kept patch (equal gates: "
            f"{gates['entropy_of_equal_gates']:.2f})",
            "Effective number": f"{gates['effective']:.1f} gates",
        }
    )
    if gates["slides_kept_whole"]:
        report.text(
            f"{gates['slides_kept_whole']} of {len(run['slides'])} slides have no more patches "
            "than are kept: their gates are all 1."
        )
    report.pair(
        [
            (
                gates_plot(run),
                f"The largest gates of three slides at the end temperature {end:g}, descending; "
                "the upright line is k. Hard gates would be a step there.",
            ),
            (
                warmer_plot(run),
                "The trained scores at other temperatures: the share of the soft budget on the "
                "kept patches, and the entropy of the gates as a share of that of equal ones.",
            ),
        ]
    )


def _add_probes(report: Report, run: Told) -> None:
    probes = run["probes"]
    drawing = probes_plot(run, KINDS)
    if drawing:
        report.figure(
            drawing,
            f"{title(run['measures'][0])} of fresh ABMIL models, each shown {probes['slides']} "
            "slides of one kind of patches. Dashed: chance.",
        )
    lefts = {
        "Left after the selector": probes["left"],
        "Left after random dropping": probes["left_random"],
    }
    facts = {name: "n/a" if value is None else f"{value:.2f}" for name, value in lefts.items()}
    if leak := probes["measured"].get("all gates 0"):
        low, chance = leak["low"], probes["chance"]
        seen = low is not None and chance is not None and low > chance
        facts["Leak"] = f"{shown(leak)} with all gates 0, chance {chance:.3f}: " + (
            "something passes beside the gates" if seen else "none seen"
        )
    report.facts(facts)
    for note in probes["notes"]:
        report.text(f"{note[:1].upper()}{note[1:]}.")


def _add_ablations(report: Report, run: Told) -> None:
    first = run["measures"][0]
    soft = run["answers"].get("soft")

    def row(name: str, hard: Any, other: Any, overlap: float) -> dict[str, Any]:
        return {
            "Run": name,
            "Hard": shown(hard),
            "Soft": "n/a" if other is None else shown(other),
            "Overlap": f"{overlap:.3f}",
        }

    whole = run["answers"]["hard"][first], soft and soft[first], run["gates"]["overlap"]
    rows = [row("as trained", *whole)]
    rows += [
        row(f"{one['name']} ({one['override']})", one["hard"], one["soft"], one["overlap"])
        for one in run["ablations"]
    ]
    report.table(rows, list(rows[0]), f"{title(first)}; the same seed, slides and epochs")


def _add_alike(report: Report, alike: Told) -> None:
    report.heading("Do several runs keep the same patches?").text(
        f"Jaccard of the kept sets of two runs is {alike['jaccard']:.3f} in the mean over pairs of "
        f"{alike['runs']} runs and {alike['slides']} slides that they share; sets drawn at random "
        f"have {alike['chance']:.3f}."
    )


def terminal_rows(told: Told) -> list[dict[str, Any]]:
    """The rows that fit into a terminal."""

    def interval(row: Told) -> str:
        known = row["low"] is not None and row["high"] is not None
        return f"{row['low']:.3f} to {row['high']:.3f}" if known else "-"

    return [
        {
            "run": row["run"],
            "what": row["what"],
            "measure": row["measure"].replace("_", " "),
            "value": "-" if row["value"] is None else f"{row['value']:.3f}",
            "95 % interval": interval(row),
            "sd": "" if row["sd"] is None else f"{row['sd']:.3f}",
        }
        for row in table_rows(told)
    ]
