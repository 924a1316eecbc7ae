"""wsizoo.extraction.report: what stands out in a cohort is said, and no row is lost."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.zygote import Zygote
from wsizoo.errors import DataError
from wsizoo.extraction import report
from wsizoo.extraction.job import Extracted
from wsizoo.extraction.report import findings, page, read_rows, write_report


def result(name: str, patches: int = 100, **facts: Any) -> Extracted:
    told = {"state": "done", "mpp": 0.5, "mpp_source": "aperio.MPP", "tissue": 0.3}
    told |= {"scale_error": 0.0, "seconds": 1.5, **facts}
    return Extracted(name, Path(f"{name}.svs"), Path(f"{name}.h5"), patches=patches, **told)


def whys(*results: Extracted) -> dict[str, str]:
    return {finding.slide_id: finding.why for finding in findings([vars(r) for r in results])}


def test_a_usual_cohort_has_nothing_to_look_at() -> None:
    assert whys(*(result(str(i), 100 + 9 * i) for i in range(30))) == {}


def test_slides_that_stand_out_are_named_with_the_reason() -> None:
    usual = [result(str(i), 100 + i) for i in range(12)]
    found = whys(
        *usual,
        result("huge", 90_000),
        result("tiny", 3),
        result("torn", 99, unreadable=2),
        result("edge", 99, beyond_grid=0.32),
        result("within", 111, beyond_grid=0.04),
        result("off", 99, scale_error=0.02),
        result("nominal", 99, mpp_source="objective-power 40", mpp=0.25),
        result("failed", 0, state="failed", reason="no tissue"),
    )
    assert found == {
        "huge": "many patches: 90000, usual here are 104",
        "tiny": "few patches: 3, usual here are 104",
        "torn": "2 patches could not be decoded: the file is damaged in places",
        "edge": "32 % of the tissue is at the right and bottom edge, where no whole patch fits: it "
        "is not read. --pad takes patches there too, smaller ones reach further (--patch-size)",
        "off": "patches are off scale by 2 %",
        "nominal": "um/px only nominal: 0.25 from its objective-power 40",
    }


def test_rows_of_earlier_calls_stay_and_newer_ones_replace_them(tmp_path: Path) -> None:
    write_report(tmp_path, [result("a"), result("b", state="failed", reason='gone, "lost"\n!')])
    write_report(tmp_path, [result("b", 7), result("c")])
    rows = {row["slide_id"]: row for row in read_rows(tmp_path / "extract.csv")}
    assert sorted(rows) == ["a", "b", "c"]
    assert (rows["b"]["state"], rows["b"]["patches"], rows["b"]["reason"]) == ("done", "7", "")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["extract.csv", "extract.html"]


def test_the_page_tells_failures_and_holds_nothing_that_must_be_fetched() -> None:
    rows = [vars(result(f"s{i}", 90 + i)) for i in range(20)]
    rows.append(vars(result("bad", 0, state="failed", reason="<script>alert(1)</script>")))
    html = page(rows).html()
    assert "20 of 21 slides have features" in html
    assert "Failed: 1" in html
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "Histogram: patches per slide" in html


def test_a_cohort_of_failures_and_an_empty_one_have_a_page() -> None:
    failed = vars(result("a", 0, state="failed", reason="no"))
    assert "0 of 1 slides have features" in page([failed]).html()
    assert "0 of 0 slides have features" in page([]).html()


def test_jobs_that_share_a_folder_lose_no_row(tmp_path: Path) -> None:
    with Zygote() as zygote:
        jobs = [zygote.start("report_five", tmp_path, job) for job in range(3)]
        assert [zygote.wait(job) for job in jobs] == [0, 0, 0]
    assert len(read_rows(tmp_path / "extract.csv")) == 15


def test_a_report_that_cannot_be_written_is_an_error_that_says_what_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_csv", full)
    with pytest.raises(DataError, match=r"report '.*extract\.csv' cannot be written: .*No space"):
        write_report(tmp_path, [result("a")])
