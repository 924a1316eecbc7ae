"""wsizoo.benchmark.results and _tables: what runs add up to, and how it is written."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsizoo.benchmark.cells import Cell
from wsizoo.benchmark.compare import Result, measured, p_value
from wsizoo.benchmark.page import benchmark_page
from wsizoo.benchmark.results import Row, summarise
from wsizoo.benchmark.tables import latex, markdown, write_tables
from wsizoo.measures.compare import delong, holm
from wsizoo.train.config import load_config

CONFIG = load_config({"model": "abmil-demo", "data": {"table": "t.csv"}})
FACTS = {"parameters": 1000, "seconds": 12.34, "ms_per_slide": 1.26, "peak_mb": 512.5}


def cell(model: str, fold: int = 0, seed: int = 0, features: str = "he") -> Cell:
    return Cell(model, features, fold, seed, CONFIG, "0" * 64)


def result(
    model: str, auc: float, fold: int = 0, seed: int = 0, n: int = 40, strength: float = 1.0
) -> Result:
    """Predictions of n patients, patient i of class i % 2, with scores as strong as asked."""
    rng = np.random.default_rng([fold, seed, len(model)])
    rows = []
    for i in range(n):
        score = 1 / (1 + math.exp(-strength * (i % 2 - 0.5) * 2 - rng.normal()))
        row = {"slide": f"S{fold}-{i}", "patient": f"P{fold}-{i}", "label": "ab"[i % 2]}
        rows.append({**row, "p_a": str(1 - score), "p_b": str(score)})
    metrics = {"auc": auc, "macro_f1": auc / 2}
    where = cell(model, fold, seed)
    return Result(where, "classification", ("a", "b"), metrics, FACTS, tuple(rows))


def row(model: str, values: list[float], **more: object) -> Row:
    given = {"finished": len(values), "asked": len(values), "facts": FACTS, **more}
    return Row(model, "he", values={"auc": values}, **given)  # type: ignore[arg-type]


ROWS = [
    row("abmil_1", [0.9, 0.8], low=0.7512, high=0.91, rank=1.25, best=True),
    row("mean|50%", [0.85], asked=2, low=0.6, high=0.9, p=0.0004),
    Row("max", "he", 0, 2),
]


def test_the_markdown_table_exactly() -> None:
    assert markdown(ROWS, "classification") == (
        "| model | features | runs | AUC | 95 % interval | p | rank | parameters | training s "
        "| ms per slide | peak MB |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| **abmil\\_1** | he | 2 | **0.850 ± 0.071** | 0.751 to 0.910 | - | 1.25 | 1000 | 12.3 "
        "| 1.3 | 512 |\n"
        "| mean\\|50% | he | 1 of 2 | 0.850 | 0.600 to 0.900 | \\< 0.001 | - | 1000 | 12.3 "
        "| 1.3 | 512 |\n"
        "| max | he | 0 of 2 | - | - | - | - | - | - | - | - |\n"
    )


def test_the_latex_table_exactly() -> None:
    assert latex(ROWS, "classification") == (
        "% \\usepackage{booktabs}  % \\toprule, \\midrule, \\bottomrule\n"
        "\\begin{tabular}{llrrrrrrrrr}\n"
        "\\toprule\n"
        "model & features & runs & AUC & 95 \\% interval & p & rank & parameters & training s & "
        "ms per slide & peak MB \\\\\n"
        "\\midrule\n"
        "\\textbf{abmil\\_1} & he & 2 & \\textbf{0.850 $\\pm$ 0.071} & 0.751 to 0.910 & - & 1.25 & "
        "1000 & 12.3 & 1.3 & 512 \\\\\n"
        "mean|50\\% & he & 1 of 2 & 0.850 & 0.600 to 0.900 & \\textless{} 0.001 & - & 1000 & 12.3 "
        "& 1.3 & 512 \\\\\n"
        "max & he & 0 of 2 & - & - & - & - & - & - & - & - \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


COMMANDS = {
    *("begin", "end", "toprule", "midrule", "bottomrule", "textbf", "pm"),
    *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater"),
}


def faults(text: str) -> list[str]:
    """What LaTeX would stumble over in a table, found without a LaTeX."""
    found = []
    body = re.sub(r"(?<!\\)%.*", "", text)
    tokens = re.findall(r"\\[A-Za-z]+|\\.|[^\\]", body, re.DOTALL)
    depth, maths = 0, False
    for token in tokens:
        depth += (token == "{") - (token == "}")
        maths ^= token == "$"
        if depth < 0:
            found.append("a brace closes that is not open")
        if token in "#~" or (token in "^_" and not maths):
            found.append(f"{token} is not escaped")
        if re.fullmatch(r"\\[A-Za-z]+", token) and token[1:] not in COMMANDS:
            found.append(f"{token} is unknown")
    found += ["braces are left open"] if depth else []
    found += ["maths is left open"] if maths else []
    stack = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if what == "begin":
            stack.append(name)
        elif not stack or stack.pop() != name:
            found.append(f"{name} ends and did not begin")
    found += [f"{name} is left open" for name in stack]
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", body)
    inner = re.sub(r"\\(begin\{tabular\}\{\w+\}|end\{tabular\}|\w+rule\b)", "", body)
    *rows, rest = re.split(r"\\\\(?![A-Za-z])", inner)
    found += ["text after the last row"] if rest.strip() else []
    for row in rows:
        if row.lstrip().startswith(("[", "*")):
            found.append("a row begins with what belongs to the end of the one above")
        if len(re.findall(r"(?<!\\)&", row)) != len(columns) - 1:
            found.append(f"{row.strip()} has not {len(columns)} cells")
    return found


AWKWARD = [
    row("a_b & 50% #1 $x$ {y} ~z^2 \\w\nv", [0.9, 0.8], low=0.7, high=0.91, best=True),
    row("[tiny] model", [0.5]),
    row("* starred", [0.5], p=0.0001),
    Row("}", "f_1 & f%2", 0, 2),
]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_latex_table_is_whole_whatever_models_are_called(task: str) -> None:
    text = latex(AWKWARD, task)
    assert faults(text) == []
    assert "booktabs" in text.splitlines()[0] and text.startswith("% ")
    assert text.count(r"\\" + "\n") == 1 + len(AWKWARD)


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (r"\_", "_", "_ is not escaped"),
        (r"\#", "#", "# is not escaped"),
        (r"\&", "&", "has not 11 cells"),
        (r"\%", "%", "has not 11 cells|left open"),
        (r"\}", "}", "a brace closes"),
        (r"\{", "{", "left open"),
        (r"\$", "$", "maths is left open"),
        ("{[}", "[", "a row begins with"),
        ("{*}", "*", "a row begins with"),
        (r"\end{tabular}", "", "tabular is left open"),
        ("\n" r"\bottomrule", "\n" r"\bottom", "is unknown"),
    ],
)
def test_a_fault_in_a_latex_table_is_found(right: str, wrong: str, told: str) -> None:
    text = latex(AWKWARD, "classification")
    assert right in text
    assert re.search(told, "; ".join(faults(text.replace(right, wrong, 1))))


def test_every_character_that_latex_reads_is_escaped() -> None:
    (line,) = [t for t in latex([row("\\~^<>&%$#_{}", [0.5])], "classification").split("\n")
               if "0.500" in t]  # fmt: skip
    assert line.startswith(
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
        r"\&\%\$\#\_\{\} & he"
    )


def test_names_cannot_break_a_markdown_table() -> None:
    text = markdown([row("a|b*c`d\n[e]<i>\\", [0.5])], "classification")
    assert text.count("\n") == 3
    assert r"| a\|b\*c\`d \[e\]\<i\>\\ |" in text


def test_the_csv_holds_every_metric_in_full(tmp_path: Path) -> None:
    write_tables(tmp_path, ROWS, "classification")
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        first, second, third = csv.DictReader(file)
    assert float(first["auc_mean"]) == pytest.approx(0.85)
    assert float(first["auc_std"]) == pytest.approx(np.std([0.9, 0.8], ddof=1))
    assert (first["auc_low"], first["best"], first["p"]) == ("0.7512", "1", "")
    assert (second["runs"], second["asked"], second["auc_std"], second["p"]) == (
        "1", "2", "", "0.0004",
    )  # fmt: skip
    assert set(third.values()) == {"max", "he", "0", "2", ""}


def test_rows_are_sorted_and_all_that_show_the_best_number_are_bold() -> None:
    results = [result("low", 0.5), result("one", 0.9001), result("other", 0.90009)]
    cells = [one.cell for one in results]
    rows = summarise(cells, results, resamples=50)
    assert [(r.model, r.best) for r in rows] == [("one", True), ("other", True), ("low", False)]


def test_means_are_over_folds_and_seeds() -> None:
    values = {(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.6, (1, 1): 1.0}
    results = [result("a", value, *where) for where, value in values.items()]
    (found,) = summarise([one.cell for one in results], results, resamples=50)
    assert found.mean("auc") == pytest.approx(0.7)
    assert found.std("auc") == pytest.approx(np.std(list(values.values()), ddof=1))
    assert found.facts == FACTS
    assert (found.p, found.rank, found.best) == (None, 1.0, True)


def test_ranks_are_means_over_runs_and_ties_share_them() -> None:
    values = {"a": (0.9, 0.8), "b": (0.9, 0.7), "c": (0.1, 0.9)}
    results = [result(m, v, seed=s) for m, two in values.items() for s, v in enumerate(two)]
    rows = {r.model: r for r in summarise([one.cell for one in results], results, resamples=50)}
    assert {name: row.ranks for name, row in rows.items()} == {
        "a": (1.5, 2.0),
        "b": (1.5, 3.0),
        "c": (3.0, 1.0),
    }
    assert rows["a"].rank == 1.75


def test_a_model_with_a_missing_run_has_no_rank_and_leaves_those_of_others() -> None:
    results = [result("a", 0.9, seed=0), result("a", 0.8, seed=1), result("b", 0.95, seed=0)]
    cells = [*(one.cell for one in results), cell("b", seed=1)]
    rows = {row.model: row for row in summarise(cells, results, resamples=50)}
    assert (rows["b"].finished, rows["b"].asked, rows["b"].rank) == (1, 2, None)
    assert rows["a"].rank == 1.0


def test_the_interval_is_of_the_mean_over_runs_whatever_their_scales() -> None:
    results = [result("a", 0.9, fold) for fold in (0, 1)]
    shifted = [{**row, "p_b": str(float(row["p_b"]) / 9)} for row in results[1].predictions]
    shifted = [{**row, "p_a": str(1 - float(row["p_b"]))} for row in shifted]
    found = measured([results[0], replace(results[1], predictions=tuple(shifted))], 200)
    aucs = [
        roc_auc_score([i % 2 for i in range(40)], [float(r["p_b"]) for r in one.predictions])
        for one in results
    ]
    assert found.value == pytest.approx(np.mean(aucs))
    assert found.low < found.value < found.high
    assert found.patients == 80
    assert found == measured(results, 200)


def test_a_run_in_which_the_metric_is_not_defined_does_not_count() -> None:
    one = result("a", 0.9)
    only = tuple(row for row in one.predictions if row["label"] == "a")
    other = replace(result("a", math.nan, fold=1), predictions=only)
    assert measured([one, other], 50).value == measured([one], 50).value


def test_two_aucs_of_one_run_are_compared_by_delong() -> None:
    ours, others = result("ours", 0.9, strength=2.0), result("their", 0.8, strength=0.2)
    scores = [[float(row["p_b"]) for row in one.predictions] for one in (ours, others)]
    expected = delong([i % 2 for i in range(40)], *scores).p
    assert p_value([ours], [others], 100) == pytest.approx(expected)
    assert expected < 0.05


def test_several_seeds_are_compared_by_bootstrap_not_as_an_ensemble() -> None:
    ours = [result("ours", 0.9, seed=s, strength=2.0) for s in (0, 1)]
    others = [result("their", 0.8, seed=s, strength=0.2) for s in (0, 1)]
    assert p_value(ours, others, 100) == 2 / 101  # the smallest that 100 resamples can give
    assert p_value(ours, ours, 100) == 1


def test_slides_of_one_patient_are_compared_by_bootstrap() -> None:
    def joined(one: Result) -> list[Result]:
        rows = [{**row, "patient": f"P{i // 4}"} for i, row in enumerate(one.predictions)]
        given = one.metrics, one.facts, tuple(rows)
        return [Result(one.cell, one.task, one.classes, *given)]

    ours, others = result("ours", 0.9, strength=2.0), result("their", 0.8, strength=0.2)
    alone = p_value([ours], [others], 100)
    shared = p_value(joined(ours), joined(others), 100)
    assert shared != alone
    assert shared == 2 / 101  # the smallest that 100 resamples can give


def test_p_values_are_corrected_for_their_number() -> None:
    results = [result("best", 0.9, strength=2.0), result("b2", 0.8, strength=0.3)]
    results.append(result("c03", 0.7, strength=0.1))
    raw = [p_value(results[:1], [one], 100) for one in results[1:]]
    rows = summarise([one.cell for one in results], results, resamples=100)
    assert [row.p for row in rows[1:]] == pytest.approx(holm(raw).tolist())


@pytest.mark.parametrize("task", ["survival", "regression", "segmentation"])
def test_every_task_has_a_row_with_an_interval(task: str) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "survival": ("time", "event", "risk"),
        "regression": ("value", "predicted"),
        "segmentation": ("tp", "fp", "fn"),
    }[task]
    main = {"survival": "c_index", "regression": "r2", "segmentation": "dice_per_slide"}[task]

    def of(model: str) -> Result:
        rows = []
        for i in range(30):
            numbers = {name: str(int(rng.integers(1, 90))) for name in columns}
            if task == "survival":
                numbers["event"] = str(i % 2)
            rows.append({"slide": f"S{i}", "patient": f"P{i}", **numbers})
        return Result(cell(model), task, (), {main: 0.5}, FACTS, tuple(rows))

    rows = summarise([cell("a"), cell("b")], [of("a"), of("b")], resamples=100)
    assert all(r.low is not None and r.low < r.high for r in rows)  # type: ignore[operator]
    assert rows[1].p is not None and 0 < rows[1].p <= 1
    assert markdown(rows, task).count("\n") == 4
    assert ("R$^2$" in latex(rows, task)) == (task == "regression")


def test_the_page_holds_table_charts_and_failures_escaped() -> None:
    results = [result("<one>", 0.9), result("other", 0.8)]
    rows = summarise([one.cell for one in results], results, resamples=50)
    page = benchmark_page(rows, "classification", [("<x>", "a & b")], "2 runs")
    assert "<strong>&lt;one&gt;</strong>" in page
    assert "<one>" not in page and "<x>" not in page
    assert "<dt>&lt;x&gt;</dt><dd>a &amp; b</dd>" in page
    assert page.count("<svg") == 2
    assert "src=" not in page and "://" not in page.replace("http://www.w3.org", "")


def test_without_a_finished_run_there_is_still_a_page() -> None:
    rows = summarise([cell("a")], [])
    assert (rows[0].finished, rows[0].asked) == (0, 1)
    assert "<svg" not in benchmark_page(rows, "classification", [("a", "why")], "0 of 1 runs")


def test_the_page_has_results_and_costs_in_tables_of_their_own() -> None:
    rows = summarise([cell("a")], [result("a", 0.9)], resamples=50)
    tables = benchmark_page(rows, "classification", [], "1 of 1 runs").split("<table>")[1:]
    heads = [re.findall("<th[^>]*>([^<]*)</th>", table) for table in tables]
    assert heads[0][:4] == ["model", "features", "runs", "AUC"] and heads[0][-1] == "rank"
    assert heads[1] == [
        *("model", "features", "parameters", "training s", "ms per slide", "peak MB")
    ]
    assert all(len(re.findall("<td", t)) == len(h) for t, h in zip(tables, heads, strict=True))
    assert "1000" in tables[1] and "1000" not in tables[0]


def test_a_mean_outside_its_interval_is_drawn_outside() -> None:
    """The interval ends where it ends: here at 0.9, left of the mean."""
    rows = [row("a", [0.97], low=0.8, high=0.9), row("b", [0.5], low=0.4, high=0.6)]
    page = benchmark_page(rows, "classification", [], "2 runs")
    assert "a 0.970 (0.800 to 0.900)" in page
    first = page.split('class="bar"')[0]
    ends = [
        float(x) for x in re.findall(r'class="whisker" x1="[^"]*" y1="[^"]*" x2="([^"]*)"', first)
    ]
    (dot, _) = re.findall(r'class="f0" cx="([^"]*)"', page)
    assert max(ends) < float(dot)
