"""Files of the Hub: pinned, checked, one error a cause; the real client against the double."""

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.file_download import are_symlinks_supported

from wsizoo.errors import DigestError, GatedError, OfflineError, RepoNotFoundError, WeightsError
from wsizoo.hub import hub_access, hub_cached, hub_file, hub_head, hub_upload
from wsizoo.testing.hub import HubDouble

REPO = "lab/model"
FILE = "model.safetensors"
DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
NO_COMMIT = "0" * 40


@pytest.fixture
def pin(hub: HubDouble) -> str:
    """The commit of a public repository with one LFS file and one git file."""
    return hub.add_repo(REPO, {FILE: DATA, "config.json": b'{"a": 1}'})


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def login(hub: HubDouble, monkeypatch: pytest.MonkeyPatch, user: str, role: str = "write") -> None:
    hub.add_token(f"hf_{user}", user, role=role)  # type: ignore[arg-type]
    monkeypatch.setenv("HF_TOKEN", f"hf_{user}")


def flip(body: bytes) -> bytes:
    """The same length, one bit another."""
    return body[:-1] + bytes([body[-1] ^ 1])


def requests(hub: HubDouble) -> list[str]:
    return [request.method for request in hub.log]


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# Downloading


def test_a_pinned_file_is_downloaded_once(hub: HubDouble, pin: str) -> None:
    assert hub_file(REPO, pin, FILE, DIGEST).read_bytes() == DATA
    assert requests(hub) == ["HEAD", "GET"]
    assert hub_file(REPO, pin, FILE, DIGEST) == hub_file(REPO, pin, FILE)
    assert requests(hub) == ["HEAD", "GET"]
    assert hub.log[0].headers["user-agent"].startswith("wsizoo/")


def test_files_in_folders_and_of_git_are_checked_too(hub: HubDouble) -> None:
    pin = hub.add_repo(REPO, {"a/b/config.json": b"{}"})
    assert hub_file(REPO, pin, "a/b/config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("revision", ["main", "v1", "abc", "A" * 40, "a" * 39, "a" * 41, ""])
def test_only_a_commit_is_a_revision(hub: HubDouble, revision: str) -> None:
    with pytest.raises(WeightsError, match=r"is not a commit, expected 40 hex.*hf:lab/model"):
        hub_file(REPO, revision, FILE)
    assert hub.log == []


def test_a_cut_download_is_resumed(
    hub: HubDouble, pin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.fault("GET", FILE, cut_at=5000)
    assert hub_file(REPO, pin, FILE, DIGEST).read_bytes() == DATA
    assert hub.log[-1].headers["range"] == "bytes=4096-"


# One error a cause


def test_a_missing_repository_is_named(hub: HubDouble) -> None:
    with pytest.raises(RepoNotFoundError, match=rf"no repository 'lab/none'.*{hub.url}/lab/none"):
        hub_file("lab/none", NO_COMMIT, FILE)


def test_a_private_repository_asks_for_login(
    hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = hub.add_repo(REPO, {FILE: DATA}, private=True)
    with pytest.raises(RepoNotFoundError, match="if it is private: hf auth login"):
        hub_file(REPO, pin, FILE)
    login(hub, monkeypatch, "stranger")
    with pytest.raises(RepoNotFoundError, match="that this token can see"):
        hub_file(REPO, pin, FILE)
    login(hub, monkeypatch, "lab")
    assert hub_file(REPO, pin, FILE, DIGEST).read_bytes() == DATA


def test_a_gate_names_the_next_step_and_opens(
    hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = hub.add_repo(REPO, {FILE: DATA}, gated="manual")
    with pytest.raises(GatedError, match=r"not logged in\. Accept its licence at .*/lab/model"):
        hub_file(REPO, pin, FILE)
    with pytest.raises(GatedError, match="not logged in"):
        hub_access(REPO)
    login(hub, monkeypatch, "guest")
    with pytest.raises(GatedError, match=r"has not been granted access\. Ask for it at"):
        hub_file(REPO, pin, FILE)
    hub.grant(REPO, "guest")
    hub_access(REPO)
    assert hub_file(REPO, pin, FILE, DIGEST).read_bytes() == DATA


def test_an_unknown_commit_is_named(hub: HubDouble, pin: str) -> None:
    with pytest.raises(RepoNotFoundError, match=rf"no commit {NO_COMMIT}.*load\('hf:lab/model'\)"):
        hub_file(REPO, NO_COMMIT, FILE)


def test_an_unknown_file_is_named(hub: HubDouble, pin: str) -> None:
    with pytest.raises(RepoNotFoundError, match=rf"no file 'x.json' at .*/lab/model/tree/{pin}"):
        hub_file(REPO, pin, "x.json")


def test_a_malformed_name_is_refused_before_any_request(hub: HubDouble) -> None:
    with pytest.raises(RepoNotFoundError, match=r"'a/b/c' is not a repository name"):
        hub_file("a/b/c", NO_COMMIT, FILE)
    with pytest.raises(RepoNotFoundError, match=r"'' is not a repository name"):
        hub_head("")
    assert hub.log == []


def test_a_file_outside_the_repository_is_refused(hub: HubDouble, pin: str) -> None:
    with pytest.raises(WeightsError):
        hub_file(REPO, pin, "../../../../canary")
    assert "GET" not in requests(hub)


def test_a_bad_token_is_named(hub: HubDouble, pin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(WeightsError, match=r"refused \(401\).*Your token is not valid: hf auth"):
        hub_file(REPO, pin, FILE)


def test_a_refusal_says_what_the_hub_said(hub: HubDouble, pin: str) -> None:
    headers = {"X-Error-Message": "Access to this resource is disabled."}
    hub.fault("GET", "/api/models", status=403, headers=headers)
    with pytest.raises(WeightsError, match=r"refused \(403\): Access to this resource is disabled"):
        hub_head(REPO)


def test_an_unreachable_server_is_named(hub: HubDouble, pin: str) -> None:
    hub.__exit__(None, None, None)
    with pytest.raises(OfflineError, match=rf"not in the cache .* {hub.url} cannot be reached"):
        hub_file(REPO, pin, FILE)
    with pytest.raises(OfflineError, match="connection to the Hub failed"):
        hub_head(REPO)


def test_an_overloaded_server_is_named(hub: HubDouble, pin: str) -> None:
    hub.fault("HEAD", FILE, times=None, status=503)
    with pytest.raises(OfflineError, match=r"answers 503; try again later"):
        hub_file(REPO, pin, FILE)


def test_a_server_that_is_no_hub_is_named(hub: HubDouble, pin: str) -> None:
    hub.fault("HEAD", FILE, times=None, headers={"X-Repo-Commit": None})
    with pytest.raises(OfflineError, match=rf"{hub.url} does not answer as a Hub does"):
        hub_file(REPO, pin, FILE)


def test_a_short_body_is_refused(hub: HubDouble, pin: str) -> None:
    hub.fault("GET", FILE, times=None, short=-10)
    with pytest.raises(WeightsError, match=r"lab/model/model.safetensors .* download failed: .*"):
        hub_file(REPO, pin, FILE)


def test_a_connection_cut_for_ever_is_named(hub: HubDouble, pin: str, tmp_path: Path) -> None:
    hub.fault("GET", FILE, times=None, cut_at=100)
    with pytest.raises(OfflineError, match=r"connection to the Hub failed: .*Try again"):
        hub_file(REPO, pin, FILE)
    assert list(tmp_path.rglob("*.incomplete")) == []


# Offline


def test_offline_and_not_cached_is_named(hub: HubDouble, pin: str, offline: None) -> None:
    with pytest.raises(OfflineError, match=r"not in the cache .* HF_HUB_OFFLINE is set\. Unset"):
        hub_file(REPO, pin, FILE)
    with pytest.raises(OfflineError, match=r"must be asked of the Hub and HF_HUB_OFFLINE is set"):
        hub_head(REPO)
    assert hub.log == []


def test_offline_and_cached_works_without_a_request(
    hub: HubDouble, pin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub_file(REPO, pin, FILE, DIGEST)
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_file(REPO, pin, FILE, DIGEST) == path
    assert hub.log == []


def test_the_environment_says_offline_and_where(hub: HubDouble, pin: str, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "hf_home")
    get = f"from wsizoo.hub import hub_file as get; print(get('{REPO}', '{pin}', '{FILE}'))"
    online = run(get, environment)
    assert online.returncode == 0, online.stderr
    assert requests(hub) == ["HEAD", "GET"]
    absent = f"{get}; get('{REPO}', '{pin}', 'config.json')"
    offline = run(absent, {**environment, "HF_HUB_OFFLINE": "1"})
    assert offline.stdout == online.stdout
    assert "OfflineError: lab/model/config.json at" in offline.stderr
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert len(hub.log) == 2


# Damage


@pytest.mark.parametrize("recorded", [DIGEST, None])
def test_one_flipped_bit_heals_by_a_second_download(
    hub: HubDouble, pin: str, recorded: str | None
) -> None:
    hub.fault("GET", FILE, mutate=flip)
    assert hub_file(REPO, pin, FILE, recorded).read_bytes() == DATA
    assert requests(hub) == ["HEAD", "GET", "HEAD", "GET"]


@pytest.mark.parametrize("recorded", [DIGEST, None])
def test_a_flipped_bit_that_stays_is_refused(
    hub: HubDouble, pin: str, recorded: str | None
) -> None:
    hub.fault("GET", FILE, times=None, mutate=flip)
    with pytest.raises(DigestError, match=rf"has sha256 .*{DIGEST}\. Nothing of it was used"):
        hub_file(REPO, pin, FILE, recorded)
    assert requests(hub) == ["HEAD", "GET", "HEAD", "GET"]


def test_a_git_file_is_held_to_gits_checksum(hub: HubDouble, pin: str) -> None:
    hub.fault("GET", "config", times=2, mutate=flip)
    with pytest.raises(DigestError, match="has git checksum"):
        hub_file(REPO, pin, "config.json")
    assert hub_file(REPO, pin, "config.json").read_bytes() == b'{"a": 1}'


def test_a_wrong_record_is_refused_with_both_digests(hub: HubDouble, pin: str) -> None:
    with pytest.raises(DigestError, match=rf"sha256 {DIGEST}, expected {'f' * 64}.*ask who made"):
        hub_file(REPO, pin, FILE, "f" * 64)


def test_a_damaged_cache_is_refused_offline(
    hub: HubDouble, pin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub_file(REPO, pin, FILE)
    path.write_bytes(flip(DATA))
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DigestError, match="Nothing of it was used"):
        hub_file(REPO, pin, FILE)
    assert hub.log == []


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("cut", "the connection to the Hub failed"),
        ("503", r"the Hub refused \(503\)"),
        ("gone", "The Hub has no repository 'lab/model'"),
    ],
)
def test_a_second_download_that_fails_is_told_beside_the_damage(
    hub: HubDouble, pin: str, cause: str, told: str
) -> None:
    hub_file(REPO, pin, FILE).write_bytes(flip(DATA))
    if cause == "cut":
        hub.fault("GET", FILE, times=None, cut_at=10)
    elif cause == "503":
        hub.fault("HEAD", FILE, times=None, status=503)
    else:
        hub.delete_repo(REPO)
    with pytest.raises(DigestError, match=rf"has sha256 .* and a second download failed: .*{told}"):
        hub_file(REPO, pin, FILE)


def test_another_commit_than_the_pin_heals_or_is_refused(hub: HubDouble, pin: str) -> None:
    hub.fault("HEAD", FILE, times=1, headers={"X-Repo-Commit": NO_COMMIT})
    assert pin in hub_file(REPO, pin, FILE, DIGEST).parts
    hub.fault("HEAD", "config", times=None, headers={"X-Repo-Commit": NO_COMMIT})
    with pytest.raises(DigestError, match=rf"answered with commit {NO_COMMIT}, asked for {pin}"):
        hub_file(REPO, pin, "config.json")


def test_a_blob_that_links_into_another_store_is_no_damage(
    hub: HubDouble, pin: str, tmp_path: Path
) -> None:
    path = hub_file(REPO, pin, FILE)
    blob = path.resolve()
    store = tmp_path / "store"
    store.mkdir()
    blob.rename(store / ("e" * 64))
    blob.symlink_to(store / ("e" * 64))
    hub.log.clear()
    assert hub_file(REPO, pin, FILE) == path
    assert hub.log == []


@pytest.fixture
def no_symlinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)
    if are_symlinks_supported(constants.HF_HUB_CACHE):
        monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda _: False)


@pytest.mark.parametrize("file", [FILE, "config.json"])
def test_without_symlinks_the_hub_is_asked_for_its_record(
    hub: HubDouble, pin: str, no_symlinks: None, file: str
) -> None:
    hub.fault("GET", file, mutate=flip)
    path = hub_file(REPO, pin, file)
    assert not path.is_symlink()
    assert path.read_bytes() == hub.files(REPO)[file]


def test_without_symlinks_and_offline_the_missing_check_is_told(
    hub: HubDouble,
    pin: str,
    no_symlinks: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = hub_file(REPO, pin, "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_file(REPO, pin, "config.json") == path
    assert "config.json is used without a check of its digest" in caplog.text


# Publishing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / FILE).write_bytes(DATA)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "patients.csv").write_text("name\n")
    return folder


def test_only_the_named_files_are_published(
    hub: HubDouble, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login(hub, monkeypatch, "lab")
    commit = hub_upload(folder, REPO, True, "Add model", [FILE, "README.md"])
    assert set(hub.files(REPO, commit)) == {".gitattributes", FILE, "README.md"}
    assert hub.repo(REPO).private
    assert hub_head(REPO) == commit
    assert hub_file(REPO, commit, FILE, DIGEST).read_bytes() == DATA


def test_a_private_model_is_not_put_into_a_public_repository(
    hub: HubDouble, pin: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login(hub, monkeypatch, "lab")
    with pytest.raises(WeightsError, match=r"there already and public, .*private=False"):
        hub_upload(folder, REPO, True, "Add model")
    assert hub_head(REPO) == pin
    assert "patients.csv" in hub.files(REPO, hub_upload(folder, REPO, False, "Add model"))


def test_publishing_without_the_right_to_is_named(
    hub: HubDouble, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match=r"refused \(401\).* not logged in: hf auth login"):
        hub_upload(folder, REPO, True, "Add model")
    login(hub, monkeypatch, "guest")
    with pytest.raises(WeightsError, match=r"refused \(403\): 'guest' has no right to write"):
        hub_upload(folder, REPO, True, "Add model")


def test_a_card_that_the_hub_refuses_is_named(
    hub: HubDouble, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login(hub, monkeypatch, "lab")
    refusal = b'{"errors": [{"message": "licence is missing"}], "warnings": []}'
    hub.fault("POST", "validate-yaml", status=400, mutate=lambda _: refusal)
    with pytest.raises(WeightsError, match=r"refused \(400\): licence is missing"):
        hub_upload(folder, REPO, True, "Add model")


# Secrets and silence


def test_the_token_is_in_no_message_log_or_cdn(
    hub: HubDouble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pin = hub.add_repo(REPO, {FILE: DATA}, gated="manual")
    hub.use_cdn = True
    login(hub, monkeypatch, "guest")
    told = []
    for repo, revision, file in (
        (REPO, pin, FILE),
        ("lab/none", pin, FILE),
        (REPO, NO_COMMIT, "x"),
    ):
        with pytest.raises(WeightsError) as error:
            hub_file(repo, revision, file)
        told += [repr(error.value), repr(error.value.__cause__)]
    hub.grant(REPO, "guest")
    hub.fault("GET", ".", server="cdn", mutate=flip)
    hub_file(REPO, pin, FILE, DIGEST)
    assert "Downloading it again" in caplog.text
    assert "hf_guest" not in caplog.text + "".join(told)
    assert {r.token for r in hub.log if r.server == "hub"} == {"hf_guest"}
    assert {r.token for r in hub.log if r.server == "cdn"} == {None}


def test_what_is_in_the_cache_is_found_without_asking(hub: HubDouble) -> None:
    pin = hub.add_repo(REPO, {FILE: DATA})
    assert hub_cached(REPO, pin, FILE) is None
    assert not hub.log
    path = hub_file(REPO, pin, FILE, DIGEST)
    asked = len(hub.log)
    assert hub_cached(REPO, pin, FILE) == path
    assert hub_cached(REPO, pin, "other.json") is None
    assert len(hub.log) == asked


def test_importing_wsizoo_opens_no_socket(tmp_path: Path, hub: HubDouble) -> None:
    code = (
        "import sys\n"
        "def watch(event, args):\n"
        "    if event in ('socket.connect', 'socket.bind', 'socket.getaddrinfo'):\n"
        "        sys.exit(f'{event} {args}')\n"
        "sys.addaudithook(watch)\n"
        "import wsizoo, wsizoo.hub, wsizoo.cli\n"
        "assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules\n"
        "[getattr(wsizoo, name) for name in wsizoo.__all__]\n"
        "wsizoo.build('abmil-uni', 'head.classes=[a,b]')\n"
        "assert 'huggingface_hub' not in sys.modules\n"
    )
    done = run(code, hub.environment(tmp_path / "hf_home"))
    assert done.returncode == 0, done.stderr
    assert hub.log == []
