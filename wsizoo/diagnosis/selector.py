"""Does a selector that learns softly hold when it is used hard? Numbers, a page and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import wsizoo
from wsizoo.diagnosis.selector_ablation import Ablated, ablate
from wsizoo.diagnosis.selector_answers import FULL, HARD, RANDOM, SOFT, Answers, answer
from wsizoo.diagnosis.selector_gates import TEMPERATURES, SlideGates, alike, most_entropy
from wsizoo.diagnosis.selector_maps import draw_maps
from wsizoo.diagnosis.selector_probes import LEAK, SHOWN, Probed, probe_patches
from wsizoo.diagnosis.selector_run import OpenRun, open_run, runs_in
from wsizoo.diagnosis.selector_verdict import judge
from wsizoo.errors import DataError
from wsizoo.extraction.folders import check_device, check_writable
from wsizoo.files import write_csv, write_json
from wsizoo.measures.bootstrap import RESAMPLES
from wsizoo.measures.compare import mean_std
from wsizoo.measures.measured import Measured, to_json
from wsizoo.registry import Registry, default
from wsizoo.reports.selector import FOLDER, NUMBERS, TABLE, table_rows, write_page
from wsizoo.train.run_folder import writing

Say = Callable[[str], None]
Tick = Callable[[str, int, int], None]
Told = dict[str, Any]
MAPS = 4


@dataclass(frozen=True)
class Asked:
    """What to do, as the arguments of `diagnose_selector`."""

    part: str | None = None
    probe_slides: int = SHOWN
    without_parts: bool = False
    maps: int = MAPS
    device: str = "cpu"


def diagnose_selector(
    runs: Sequence[Path | str] | Path | str,
    out: Path | str | None = None,
    *,
    say: Say = lambda text: None,
    tick: Tick = lambda what, done, total: None,
    registry: Registry | None = None,
    **asked: Any,
) -> Told:
    """Measure one trained scorer, and what follows it, with soft gates and hard ones.

    On the evaluated part and with the same downstream weights: soft (the training path at the end
    temperature, 5 draws of noise), hard, as many random patches (5 seeds), all patches; how the
    gates spread their budget; what fresh models tell from dropped and kept patches; a verdict.

    Args:
        runs: folders of `wsizoo train`, or of several folds and seeds.
        out: a folder for selector.csv, selector.json, selector.html and heatmaps; None: the run's
            own `diagnosis`, which `wsizoo report` shows.
        part: "test" or "val"; None: test, or without it val.
        probe_slides: that each probe is shown; 0: no probes.
        without_parts: train again without each of the selector's `ablations`, into `out`; goes on
            where it was interrupted.
        maps: slides that are drawn. device: of all of it.

    Returns:
        What selector.json holds.

    Raises:
        DataError: no run, none that is finished, no selector that learns softly, another task.
    """
    how, registry = Asked(**asked), registry or default()
    given = [runs] if isinstance(runs, Path | str) else list(runs)
    check_device(how.device)
    folders = runs_in([Path(one) for one in given])
    if out is None and len(given) != 1:
        raise DataError(f"{len(given)} runs have no folder in common: say where to write, -o OUT")
    out = Path(given[0]) / FOLDER if out is None else Path(out)
    _check_names(folders)
    opened = [open_run(folder, how.part, how.device, registry) for folder in folders]
    check_writable(out)
    found: list[tuple[Told, Sequence[SlideGates]]] = []
    for run in opened:
        own = out / run.name if len(opened) > 1 else out
        found.append(_diagnose(run, own, out, how, registry, say, tick))
    shared = alike([gates for _, gates in found])
    told = {
        "wsizoo": wsizoo.__version__,
        "resamples": RESAMPLES,
        "runs": [one for one, _ in found],
        "alike": None if shared is None else asdict(shared),
    }
    with writing(out):
        rows = table_rows(told)
        write_csv(out / TABLE, rows, list(rows[0]))
        write_json(out / NUMBERS, told)
        write_page(told, out)
    return told


def _check_names(folders: Sequence[Path]) -> None:
    """Raise DataError where the results of two runs would have one name."""
    names = [folder.absolute().name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"two runs are called '{name}', and results go by the names of folders: give each "
                "run once, or rename one"
            )


def _diagnose(
    run: OpenRun,
    own: Path,
    out: Path,
    how: Asked,
    registry: Registry,
    say: Say,
    tick: Tick,
) -> tuple[Told, Sequence[SlideGates]]:
    """What is told of one run, and the gates of its slides. own: folder of what is its alone."""
    if run.missing:
        say(
            f"{run.name}: {run.missing}. Soft answers, transfer gap and leak check are left out; "
            f"to have them: {run.retrain()}"
        )
    answers = answer(run, tick)
    probed = probe_patches(run, how.probe_slides, registry, tick) if how.probe_slides else None
    if how.without_parts and not run.selector.ablations:
        say(f"{run.name}: its selector names no parts to go without, so none are left out")
    ablated = ablate(run, own, how.device, registry, say, tick) if how.without_parts else []
    maps = draw_maps(run, answers.gates, own, how.maps, say, tick)
    told = numbers_of(run, answers, probed)
    told["ablations"] = [_ablated(one, out) for one in ablated]
    told["maps"] = [{**one, "file": Path(one["file"]).relative_to(out).as_posix()} for one in maps]
    say(f"{run.name}: {told['verdict']['headline']}")
    return told, answers.gates


def numbers_of(run: OpenRun, answers: Answers, probed: Probed | None) -> Told:
    """The numbers of a run as selector.json has them."""
    first, patients = run.measures[0], len(set(answers.patients))
    ranks = first != "auc" and "auc" in run.measures
    pairs = [(HARD, other) for other in (SOFT, RANDOM, FULL) if other in answers.rows]
    differences = {f"{a} - {b}": answers.difference(a, b, first) for a, b in pairs}
    gates = answers.gates
    verdict = judge(
        differences.get(f"{HARD} - {SOFT}"),
        fmean(one.overlap for one in gates),
        differences[f"{HARD} - {RANDOM}"],
        differences[f"{HARD} - {FULL}"],
        patients,
        "slides" if patients == len(answers.patients) and run.level == "slide" else "patients",
        answers.difference(HARD, SOFT, "auc") if ranks and SOFT in answers.rows else None,
    )
    choices = answers.rows
    return {
        "run": run.name,
        "model": run.model.name,
        "selector": (run.model.spec.selector or {}).get("name"),
        "k": run.selector.k,
        "temperature": None if run.missing else run.selector.temperature,
        "end_temperature": run.selector.end_temperature,
        "task": run.task,
        "part": run.part,
        "level": run.level,
        "rows": len(answers.patients),
        "patients": patients,
        "missing": run.missing,
        "to_measure_it": run.retrain(whole=False) if run.missing else "",
        "measures": list(run.measures),
        "answers": {c: {m: _answered(answers, c, m) for m in run.measures} for c in choices},
        "differences": {name: _plain(asdict(one)) for name, one in differences.items()},
        "gates": _gates(gates),
        "probes": None if probed is None else _probes(probed),
        "verdict": {**asdict(verdict), "told": [*verdict.told, *_leak(probed)]},
        "slides": [_slide(one) for one in gates],
    }


def _leak(probed: Probed | None) -> list[str]:
    """What a probe found where nothing should be, in a sentence."""
    leak = None if probed is None else probed.measured.get(LEAK)
    if probed is None or leak is None or not leak.low > probed.chance:
        return []
    return [
        f"With every gate 0 a fresh model still finds {leak}, chance {probed.chance:.3f}: the "
        "training path tells something past the gates, as noise made of a slide's own mean does. "
        "Hard answers have none of it; noise that cannot tell: selector.stats=channel-running."
    ]


def _answered(answers: Answers, choice: str, measure: str) -> Told:
    each = answers.each(choice, measure)
    spread = mean_std(each).std  # NaN of one draw
    return {**_json(answers.measured(choice, measure)), **_plain({"sd": spread, "draws": each})}


def _gates(gates: Sequence[SlideGates]) -> Told:
    """Means over slides."""
    warmer = [
        [fmean(one.warmer[i][at] for one in gates) for i in range(len(TEMPERATURES))]
        for at in (0, 1)
    ]
    return {
        "patches": fmean(one.n for one in gates),
        "kept": fmean(one.k for one in gates),
        "slides_kept_whole": sum(one.k == one.n for one in gates),
        "overlap": fmean(one.overlap for one in gates),
        "entropy": fmean(one.entropy for one in gates),
        "entropy_of_equal_gates": fmean(most_entropy(one.n, one.k) for one in gates),
        "effective": fmean(one.effective for one in gates),
        "warmer": {
            "times": TEMPERATURES.tolist(),
            "overlap": warmer[0],
            "entropy": warmer[1],
        },
    }


def _slide(one: SlideGates) -> Told:
    names = ("slide", "n", "k", "overlap", "entropy", "effective")
    largest = [float(f"{gate:.4g}") for gate in one.largest]
    return {**{name: getattr(one, name) for name in names}, "largest": largest}


def _probes(probed: Probed) -> Told:
    lefts = {"left": probed.left(), "left_random": probed.left("random dropped")}
    told = {"chance": probed.chance, "slides": probed.slides, **lefts}
    measured = {kind: _json(one) for kind, one in probed.measured.items()}
    return {**_plain(told), "measured": measured, "notes": list(probed.notes)}


def _ablated(one: Ablated, out: Path) -> Told:
    return {
        "name": one.name,
        "override": one.override,
        "folder": one.folder.relative_to(out).as_posix(),
        "hard": _json(one.hard),
        "soft": None if one.soft is None else _json(one.soft),
        "overlap": one.overlap,
    }


def _json(one: Measured) -> Told:
    return to_json({"": one})[""]


def _plain(told: Mapping[str, Any]) -> Told:
    """NaN as None, for a file."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {key: plain(value) for key, value in told.items()}
