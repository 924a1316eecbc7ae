"""Files and folders are written complete or not at all."""

import hashlib
import os
import re
import threading
from pathlib import Path

import pytest

from wsizoo.errors import DataError, WeightsError
from wsizoo.files import (
    check_safetensors,
    locked,
    replacing,
    replacing_folder,
    sha256_of,
    write_csv,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with replacing(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert names(target.parent) == ["a.txt"]


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def interrupted() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    for content in ("one", "two"):
        with replacing_folder(target) as temporary:
            (temporary / content).write_text(content)
            (temporary / "sub").mkdir()
        assert names(target) == sorted([content, "sub"])
    assert names(target.parent) == ["model"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_folder_leaves_the_old_one(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()

    def interrupted() -> None:
        with replacing_folder(target) as temporary:
            (temporary / "half").touch()
            raise error

    with pytest.raises(error):
        interrupted()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_folder_that_cannot_be_renamed_in_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    rename = os.rename

    def refuse(source: Path, to: Path) -> None:
        if Path(to) == target.resolve() and (Path(source) / "new").exists():
            raise PermissionError("in use")
        rename(source, to)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(PermissionError, match="in use"), replacing_folder(target) as temporary:
        (temporary / "new").touch()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    with replacing_folder(link) as temporary:
        (temporary / "new").touch()
    assert link.is_symlink()
    assert names(real) == ["new"]


def test_a_temporary_name_is_one_writers_alone_and_tells_the_process(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with replacing(target) as one, replacing(target) as two:
        assert one != two
        for temporary in (one, two):
            assert re.fullmatch(rf"\.a\.txt\.\w+\.tmp-{os.getpid()}", temporary.name)
            temporary.write_text(temporary.name)
    assert target.read_text() == one.name
    with replacing_folder(tmp_path / "b") as first, replacing_folder(tmp_path / "c" / "b") as other:
        assert first.name != other.name


def test_a_lock_lets_one_through_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "n.txt"
    path.write_text("0")

    def add() -> None:
        for _ in range(20):
            with locked(path):
                path.write_text(str(int(path.read_text()) + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "80"
    assert names(tmp_path) == ["n.txt"]


def test_a_lock_that_nobody_gives_back_is_named(tmp_path: Path) -> None:
    (tmp_path / "pins.json.lock").touch()
    told = r"pins\.json\.lock is held by another process\. If none is running, delete that file"
    with pytest.raises(DataError, match=told), locked(tmp_path / "pins.json", patience=0.0):
        pass
    assert names(tmp_path) == ["pins.json.lock"]


def test_text_json_and_tables_are_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "tumör\n")
    assert (tmp_path / "a.txt").read_bytes() == "tumör\n".encode()
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": [\n    1,\n    null\n  ]\n}\n'
    write_csv(tmp_path / "a.csv", [{"x": 1, "y": "a,b"}, {"x": 2}], ["x", "y"])
    assert (tmp_path / "a.csv").read_text() == 'x,y\n1,"a,b"\n2,\n'


def test_what_json_or_a_table_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"auc": float("nan")})
    with pytest.raises(ValueError, match="fields not in fieldnames: 'z'"):
        write_csv(tmp_path / "a.csv", [{"z": 1}], ["x"])
    assert names(tmp_path) == []


def test_a_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"bytes")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"bytes").hexdigest()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "a.safetensors.pkl", "x"])
def test_only_safetensors_is_a_format_of_weights(name: str) -> None:
    check_safetensors("a/model.safetensors")
    with pytest.raises(WeightsError, match=rf"{name} is not safetensors.*can hold code\)\. Ask"):
        check_safetensors(name)
