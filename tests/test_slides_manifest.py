"""wsizoo.slides.manifest: which slides are meant, and what a manifest says of them."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.slides.manifest import SlideEntry, list_files, list_slides, read_manifest

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.svs", "b.tif", "c.ndpi", "TCGA-1.uuid.svs", "notes.txt"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Write:
    def write(text: str | bytes, name: str = "list.csv") -> Path:
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_manifest_says_slide_scale_patient_and_label(folder: Path, write: Write) -> None:
    path = write("slide,mpp,patient,label,site\na.svs,0.25,P1,tumour,x\nb.tif,,P2,,y\n")
    assert read_manifest(path) == [
        SlideEntry(folder / "a.svs", 0.25, "P1", "tumour"),
        SlideEntry(folder / "b.tif", None, "P2", None),
    ]
    assert [entry.slide_id for entry in read_manifest(path)] == ["a", "b"]


def test_numbers_of_a_spreadsheet_with_decimal_commas_are_read(folder: Path, write: Write) -> None:
    assert read_manifest(write("slide;mpp\na.svs;0,25\n")) == [SlideEntry(folder / "a.svs", 0.25)]


def test_lists_of_other_tools_are_read_as_they_are(folder: Path, write: Write) -> None:
    trident = write("wsi,mpp\na.svs,0.5\nb.tif,0.25\n", "trident.csv")
    assert read_manifest(trident) == [
        SlideEntry(folder / "a.svs", 0.5),
        SlideEntry(folder / "b.tif", 0.25),
    ]
    clam = write("case_id,slide_id,label\nP1,TCGA-1.uuid,lusc\nP1,a,luad\n", "clam.csv")
    assert read_manifest(clam) == [
        SlideEntry(folder / "TCGA-1.uuid.svs", None, "P1", "lusc"),
        SlideEntry(folder / "a.svs", None, "P1", "luad"),
    ]
    both = write("slide_id,Slide Path,Patient\nS1,a.svs,P9\n", "both.csv")
    assert read_manifest(both) == [SlideEntry(folder / "a.svs", None, "P9")]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfslide,label\r\na.svs,x\r\n\r\nb.tif,y\r\n",
        b"\n\nslide,label\n  \na.svs,x\n,\nb.tif,y",
        b'"slide","label"\n"a.svs","x"\n" b.tif ",y\n',
        b"slide;label\na.svs;x\nb.tif;y\n",
        b"slide\tlabel\na.svs\tx\nb.tif\ty\n",
        b"slide,label\r./a.svs,x\rb.tif,y\r",
    ],
    ids=["bom and crlf", "empty lines", "quotes", "semicolons", "tabs", "old mac"],
)
def test_a_manifest_may_come_from_any_program(folder: Path, write: Write, text: bytes) -> None:
    entries = read_manifest(write(text))
    assert [(e.path.name, e.label) for e in entries] == [("a.svs", "x"), ("b.tif", "y")]


def test_files_are_relative_to_the_manifest_or_absolute(
    folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "d.svs").write_text("")
    path = write(f"slide\ndeep/d.svs\n{folder / 'a.svs'}\n")
    monkeypatch.chdir("/")
    assert [e.path for e in read_manifest(path)] == [folder / "deep/d.svs", folder / "a.svs"]


def test_missing_slides_are_listed_at_once_the_first_ten_by_name(write: Write) -> None:
    path = write("slide\na.svs\n" + "".join(f"gone{i}.svs\n" for i in range(13)))
    with pytest.raises(DataError, match=r"column slide: 13 of its slides are not there") as caught:
        read_manifest(path)
    text = str(caught.value)
    assert "line 3: gone0.svs; line 4: gone1.svs" in text
    assert "gone9.svs and 3 more. Their place is relative to " in text
    assert "gone10" not in text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("slide,mpp\na.svs,fast\n", r"list.csv', line 2, column mpp: 'fast' is no scan's scale"),
        ("slide,mpp\na.svs,264.58\n", "line 2, column mpp: '264.58' is no scan's scale; expected"),
        ('slide;mpp\na.svs;"0,2,5"\n', "line 2, column mpp: '0,2,5' is no scan's scale"),
        ("slide,mpp\na.svs,nan\n", "line 2, column mpp: 'nan' is no"),
        ("slide\na.svs\n\n./a.svs\n", r"line 4: '.*a.svs' stands in line 2 already"),
        ("slide,mpp\na.svs,0.5\n,0.5\n", "line 3, column slide: empty, expected a slide's file"),
        ("slide,label\na.svs,x,y\n", "line 2 has 3 cells, its header 2: put cells that hold ','"),
        ("slide,label\na.svs\n", "line 2 has 1 cells, its header 2"),
        ("sldie,mpp\na.svs,0.5\n", "no column of slides, expected .* Did you mean 'sldie'"),
        ("x,y\na.svs,0.5\n", "no column of slides, expected .* It has the columns x, y"),
        ("slide,mpp,MPP\na.svs,1,2\n", "line 1: column mpp stands twice"),
        ("", "lists no slide; expected a header and a line a slide"),
        ("slide,mpp\n\n", "lists no slide"),
        ('slide\n"a.svs\n', "is no csv .*expected text such as: slide,mpp"),
        (b"slide\n\xff\xfe\xfa\n", "is no csv"),
        (b"II*\0\x08\0\0\0", r"is no csv \(it holds binary data\)"),
    ],
)
def test_an_error_names_file_line_and_column(write: Write, text: str | bytes, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_manifest(write(text))


def test_a_name_that_two_files_have_is_not_guessed(folder: Path, write: Write) -> None:
    (folder / "a.tif").write_text("")
    with pytest.raises(DataError, match=r"line 2: a may be '.*a.svs' and '.*a.tif'; write the one"):
        read_manifest(write("slide_id\na\n"))


def test_a_manifest_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"Manifest '.*x.csv' cannot be read"):
        read_manifest(folder / "x.csv")


def test_slides_come_from_files_folders_and_manifests_each_once(
    folder: Path, write: Write, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "z.svs"
    other.write_text("")
    manifest = write("slide,mpp\nb.tif,0.3\n", "one.CSV")
    named = SlideEntry(folder / "b.tif", 0.3)
    everything = list_slides([other, folder, manifest])
    assert everything[0] == SlideEntry(other)
    assert [e.path.name for e in everything[1:]] == ["TCGA-1.uuid.svs", "a.svs", "b.tif", "c.ndpi"]
    assert named in everything
    assert list_slides([manifest, folder / "b.tif"]) == [named]
    assert list_slides(manifest) == [named]


def test_manifests_that_differ_on_a_slide_are_an_error(write: Write) -> None:
    one = write("slide,mpp\na.svs,0.25\n", "one.csv")
    same = write("slide,mpp\na.svs,0.25\n", "same.csv")
    two = write("slide,mpp\na.svs,0.5\n", "two.csv")
    assert len(list_slides([one, same])) == 1
    with pytest.raises(DataError, match=r"Two manifests differ on '.*a.svs'"):
        list_slides([one, two])


def test_two_slides_of_one_name_are_an_error(folder: Path) -> None:
    (folder / "a.tif").write_text("")
    with pytest.raises(DataError, match=r"have one name \(a\), so the outputs of one would"):
        list_slides(folder)


def test_no_slides_and_absent_ones_are_errors(folder: Path) -> None:
    with pytest.raises(DataError, match="No slides given"):
        list_slides([])
    for name in ("absent.svs", "absent.csv"):
        with pytest.raises(DataError, match=f"No file or folder at '.*{name}'"):
            list_slides(folder / name)


def test_a_folder_gives_its_slides_and_no_hidden_or_other_files(tmp_path: Path) -> None:
    for name in ("b.SVS", "a.tif", "._a.tif", ".a.svs.tmp-12", "notes.txt", "thumbnail.png"):
        (tmp_path / name).write_text("")
    (tmp_path / "c.svs").mkdir()
    assert [e.path.name for e in list_slides(tmp_path)] == ["a.tif", "b.SVS"]
    assert [f.name for f in list_files([tmp_path], [".svs", ".tif"])] == ["a.tif", "b.SVS"]


def test_slides_deeper_in_a_folder_are_pointed_to(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "a.svs").write_text("")
    with pytest.raises(DataError, match=r"Folders in it are not searched; give them: '.*case'"):
        list_files([tmp_path], [".svs"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120) | st.text(alphabet='slidemp,;"\n\r\t.a0 ', max_size=80))
def test_whatever_a_manifest_holds_is_slides_or_one_clear_error(
    write: Write, content: bytes | str
) -> None:
    path = write(content)
    try:
        entries = read_manifest(path)
    except DataError:
        return
    assert all(entry.path.is_file() for entry in entries)


FULL = (
    b"\xef\xbb\xbfslide,mpp,patient,label,site\r\na.svs,0.25,P1,tumour,x\r\n"
    b'"b.tif",,P2,"a ""b"", c",y\r\nc.ndpi,0.5,P2,,z\r\nTCGA-1.uuid.svs,0.2277,,x,\r\n'
)
PIECES = [b'"', b",", b";", b"\t", b"\n", b"\r", b"\x00", b"\xff", b"../", b"nan", b"1e9", b"slide"]


@pytest.mark.slow
def test_a_manifest_with_anything_wrong_in_it_is_slides_or_one_clear_error(write: Write) -> None:
    rng = random.Random(0)
    refused = []
    for _ in range(1000):
        content = bytearray(FULL)
        for _ in range(rng.choice([1, 1, 3])):
            at, piece = rng.randrange(len(content)), rng.choice(PIECES)
            content[at : at + rng.choice([0, 1, 9])] = piece
        path = write(bytes(content[: rng.choice([len(content), rng.randrange(len(content))])]))
        try:
            entries = list_slides([path])
        except DataError as error:
            refused.append(str(error))
        else:
            assert all(entry.path.is_file() for entry in entries)
    assert 100 < len(refused) < 1000
    assert all("list.csv" in reason or reason == "No slides given" for reason in refused)
