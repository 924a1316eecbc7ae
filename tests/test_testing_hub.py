"""The Hub double against the real `huggingface_hub` client, as installed."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
from safetensors.numpy import load_file, save

from wsizoo.errors import DataError, NotFoundError
from wsizoo.testing.hub import HubDouble

pytestmark = [
    pytest.mark.filterwarnings("error"),
    # httpx itself says this when the client PUTs an LFS file.
    pytest.mark.filterwarnings(
        r"ignore:Use 'content=<\.\.\.>' to upload raw bytes/text content\.:DeprecationWarning"
    ),
]

REPO = "lab/model"
WEIGHTS = "model.safetensors"
CARD = b"---\nlicense: apache-2.0\ntags:\n- pathology\n---\n# A model\n"


def tensors(size: int = 3_000_000) -> bytes:
    """A safetensors file of `size` bytes of tensor data with metadata."""
    values = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    return bytes(save({"weight": values}, metadata={"made_by": "a test"}))


def folder(at: Path, weights: bytes) -> Path:
    """What a publisher uploads: config, card, weights."""
    at.mkdir()
    (at / "config.json").write_text('{"dim": 8}')
    (at / "README.md").write_bytes(CARD)
    (at / WEIGHTS).write_bytes(weights)
    return at


class Puller:
    """`hf_hub_download` of one repository from one double into one cache."""

    def __init__(self, hub: HubDouble, cache: Path) -> None:
        self.fixed: dict[str, Any] = {"endpoint": hub.url, "cache_dir": cache}

    def __call__(self, revision: str, file: str = WEIGHTS, **kwargs: Any) -> Path:
        settings: dict[str, Any] = {"repo_id": REPO, "token": False, **self.fixed, **kwargs}
        return Path(hf_hub_download(filename=file, revision=revision, **settings))

    def snapshot(self, revision: str, **kwargs: Any) -> Path:
        """`snapshot_download` in the same way."""
        settings: dict[str, Any] = {"repo_id": REPO, "token": False, **self.fixed, **kwargs}
        return Path(snapshot_download(revision=revision, **settings))


@pytest.fixture
def pull(hub: HubDouble, tmp_path: Path) -> Puller:
    return Puller(hub, tmp_path / "cache")


@pytest.fixture
def raw() -> Iterator[Any]:
    """An HTTP client that knows nothing of the Hub, nor of the user's proxies."""
    with httpx.Client(trust_env=False) as client:
        yield client


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client store a download every 64 KiB, so that 3 MB can be resumed."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 65536)


def sequence(hub: HubDouble) -> list[str]:
    return [f"{request.method} {request.path}" for request in hub.log]


# Publishing


def test_a_new_private_repository_is_published_and_pulled_as_pinned(
    hub: HubDouble, pull: Puller, tmp_path: Path
) -> None:
    weights = tensors()
    hub.add_token("hf_lab", "someone", orgs=["lab"])
    api = HfApi(endpoint=hub.url, token="hf_lab")
    assert api.whoami()["name"] == "someone"
    assert api.create_repo(REPO, private=True).repo_id == REPO
    pin = api.upload_folder(repo_id=REPO, folder_path=folder(tmp_path / "new", weights)).oid

    path = pull(pin, token="hf_lab")
    assert path.parent.name == pin
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(weights).digest()
    assert load_file(path)["weight"].nbytes == 3_000_000
    assert set(hub.files(REPO)) == {".gitattributes", "config.json", "README.md", WEIGHTS}
    with pytest.raises(RepositoryNotFoundError):
        pull(pin, file="config.json")
    assert [r.status for r in hub.log if r.server == "cdn"] == [200]


def test_publishing_again_uploads_only_what_changed(
    hub: HubDouble, pull: Puller, tmp_path: Path
) -> None:
    hub.add_token("hf_lab", "lab")
    api = HfApi(endpoint=hub.url, token="hf_lab")
    api.create_repo(REPO)
    source = folder(tmp_path / "new", tensors(50_000))
    first = api.upload_folder(repo_id=REPO, folder_path=source).oid
    (source / "config.json").write_text('{"dim": 16}')
    hub.log.clear()
    second = api.upload_folder(repo_id=REPO, folder_path=source).oid
    assert hub.paths("PUT") == []
    assert first != second
    assert hub.files(REPO, first)["config.json"] == b'{"dim": 8}'
    assert hub.files(REPO, second)["config.json"] == b'{"dim": 16}'
    assert api.upload_folder(repo_id=REPO, folder_path=source).oid == second


def test_a_large_file_goes_up_in_parts(hub: HubDouble, pull: Puller, tmp_path: Path) -> None:
    weights = tensors(3_200_000)
    hub.part_size = 1_000_000
    hub.add_token("hf_lab", "lab")
    api = HfApi(endpoint=hub.url, token="hf_lab")
    api.create_repo(REPO)
    pin = api.upload_folder(repo_id=REPO, folder_path=folder(tmp_path / "new", weights)).oid
    assert len(hub.paths("PUT", "cdn")) == 4
    assert pull(pin).read_bytes() == weights


def test_damaged_lfs_bytes_are_refused_at_verify(hub: HubDouble, raw: Any) -> None:
    hub.add_token("hf_lab", "lab")
    hub.add_repo(REPO)
    digest = hashlib.sha256(b"right").hexdigest()
    reply = raw.put(f"{hub.cdn_url}/{digest}", content=b"wrong")
    assert reply.status_code == 200
    reply = raw.post(
        f"{hub.url}/{REPO}.git/info/lfs/objects/verify",
        json={"oid": digest, "size": 5},
        headers={"Authorization": "Bearer hf_lab"},
    )
    assert reply.status_code == 422
    assert digest not in hub.lfs


def test_a_stale_parent_commit_is_refused(hub: HubDouble) -> None:
    hub.add_token("hf_lab", "lab")
    api = HfApi(endpoint=hub.url, token="hf_lab")
    stale = hub.add_repo(REPO, {"config.json": b"{}"})
    head = hub.commit(REPO, {"config.json": b"[]"})
    change: dict[str, Any] = {
        "path_or_fileobj": b"0",
        "path_in_repo": "config.json",
        "repo_id": REPO,
    }
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(**change, parent_commit=stale)
    assert error.value.response.status_code == 412
    assert api.upload_file(**change, parent_commit=head).oid == api.model_info(REPO).sha


def test_only_owners_write(hub: HubDouble) -> None:
    hub.add_repo(REPO)
    hub.add_token("hf_other", "other")
    hub.add_token("hf_reader", "lab", role="read")
    change: dict[str, Any] = {
        "path_or_fileobj": b"0",
        "path_in_repo": "config.json",
        "repo_id": REPO,
    }
    for token, status in (("hf_other", 403), ("hf_reader", 403), (False, 401), ("hf_no", 401)):
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(endpoint=hub.url, token=token).upload_file(**change)
        assert error.value.response.status_code == status
    proposed = HfApi(endpoint=hub.url, token="hf_other").upload_file(**change, create_pr=True)
    assert proposed.pr_url == f"{hub.url}/{REPO}/discussions/1"
    assert "config.json" in hub.files(REPO, "refs/pr/1")
    assert "config.json" not in hub.files(REPO)


def test_files_folders_and_repositories_are_deleted(hub: HubDouble) -> None:
    hub.add_token("hf_lab", "lab")
    hub.add_repo(REPO, {"a": b"1", "old/b": b"2", "old/c": b"3", "older": b"4"})
    api = HfApi(endpoint=hub.url, token="hf_lab")
    api.delete_folder("old", REPO)
    api.delete_file("a", REPO)
    assert set(hub.files(REPO)) == {".gitattributes", "older"}
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    api.create_repo(REPO, exist_ok=True)
    api.delete_repo(REPO)
    assert api.repo_exists(REPO) is False


def test_tags_name_commits_and_do_not_move(hub: HubDouble, pull: Puller) -> None:
    hub.add_token("hf_lab", "lab")
    pin = hub.add_repo(REPO, {WEIGHTS: b"one"})
    api = HfApi(endpoint=hub.url, token="hf_lab")
    api.create_tag(REPO, tag="v1")
    hub.commit(REPO, {WEIGHTS: b"two"})
    assert pull("v1").parent.name == pin
    assert pull(pin[:8]).read_bytes() == b"one"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPO, tag="v1")


# Downloading


def test_a_pin_is_asked_for_once_and_a_branch_every_time(hub: HubDouble, pull: Puller) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: tensors(1000)})
    file = f"/{REPO}/resolve/{pin}/{WEIGHTS}"
    assert pull(pin) == pull(pin)
    assert sequence(hub) == [f"HEAD {file}", f"GET {file}"]
    pull("main")
    assert sequence(hub)[2:] == [f"HEAD /{REPO}/resolve/main/{WEIGHTS}"]


def test_names_are_unquoted_segment_by_segment(hub: HubDouble, pull: Puller) -> None:
    pin = hub.add_repo(REPO, {"a b/c+d.json": b"{}"})
    hub.commit(REPO, {"x": b"1"}, branch="refs/pr/7")
    assert pull(pin, file="a b/c+d.json").read_bytes() == b"{}"
    assert pull("refs/pr/7", file="x").read_bytes() == b"1"
    assert hub.paths("GET")[0].endswith("/a%20b/c%2Bd.json")


def test_a_cut_download_is_resumed(hub: HubDouble, pull: Puller, small_chunks: None) -> None:
    weights = tensors()
    pin = hub.add_repo(REPO, {WEIGHTS: weights})
    hub.fault("GET", WEIGHTS, cut_at=1_000_000)
    assert pull(pin).read_bytes() == weights
    first, second = (request for request in hub.log if request.method == "GET")
    assert "range" not in first.headers
    assert second.headers["range"] == "bytes=983040-"
    assert second.status == 206


def test_a_server_without_ranges_sends_everything_again(
    hub: HubDouble, pull: Puller, small_chunks: None
) -> None:
    weights = tensors()
    pin = hub.add_repo(REPO, {WEIGHTS: weights})
    hub.honour_ranges = False
    hub.fault("GET", WEIGHTS, cut_at=1_000_000)
    assert pull(pin).read_bytes() == weights
    assert [r.status for r in hub.log if r.method == "GET"] == [200, 200]


def test_a_download_cut_for_ever_leaves_no_temporary_file(
    hub: HubDouble, pull: Puller, tmp_path: Path
) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: tensors()})
    hub.fault("GET", WEIGHTS, times=None, cut_at=10_000)
    with pytest.raises(httpx.RemoteProtocolError):
        pull(pin)
    assert list(tmp_path.rglob("*.incomplete")) == []
    assert len(hub.paths("GET")) == 6


def test_a_short_body_is_refused_by_the_client(hub: HubDouble, pull: Puller) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: tensors(1000)})
    hub.fault("GET", WEIGHTS, short=-10)
    with pytest.raises(OSError, match="Consistency check failed"):
        pull(pin)


def test_a_flipped_byte_is_accepted_by_the_client(hub: HubDouble, pull: Puller) -> None:
    weights = tensors(1000)
    pin = hub.add_repo(REPO, {WEIGHTS: weights})
    hub.fault("GET", WEIGHTS, mutate=lambda body: body[:-1] + bytes([body[-1] ^ 1]))
    path = pull(pin)
    assert path.read_bytes() != weights
    assert path.stat().st_size == len(weights)
    assert pull(pin, force_download=True).read_bytes() == weights


def test_another_commit_than_the_pin_is_accepted_by_the_client(
    hub: HubDouble, pull: Puller
) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: b"asked for"})
    hub.fault("HEAD", WEIGHTS, headers={"X-Repo-Commit": "0" * 40})
    assert pull(pin).parent.name == "0" * 40


def test_a_missing_commit_header_is_refused_by_the_client(hub: HubDouble, pull: Puller) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: b"1"})
    hub.fault("HEAD", WEIGHTS, times=None, headers={"X-Repo-Commit": None})
    with pytest.raises(LocalEntryNotFoundError):
        pull(pin)


def test_the_token_never_reaches_the_cdn(hub: HubDouble, pull: Puller, tmp_path: Path) -> None:
    weights = tensors(50_000)
    hub.add_token("hf_lab", "lab")
    hub.use_cdn = True
    api = HfApi(endpoint=hub.url, token="hf_lab")
    api.create_repo(REPO, private=True)
    pin = api.upload_folder(repo_id=REPO, folder_path=folder(tmp_path / "new", weights)).oid
    assert pull(pin, token="hf_lab").read_bytes() == weights
    digest = hashlib.sha256(weights).hexdigest()
    assert [(r.method, r.path) for r in hub.log if r.server == "cdn"] == [
        ("PUT", f"/{digest}"),
        ("GET", f"/{digest}"),
    ]
    told = {(r.server, r.token) for r in hub.log}
    assert told == {("hub", "hf_lab"), ("cdn", None)}


def test_a_cut_on_the_cdn_is_resumed_there(
    hub: HubDouble, pull: Puller, small_chunks: None
) -> None:
    weights = tensors()
    hub.use_cdn = True
    pin = hub.add_repo(REPO, {WEIGHTS: weights})
    hub.fault("GET", ".", server="cdn", cut_at=1_000_000)
    assert pull(pin).read_bytes() == weights
    assert [r.status for r in hub.log if r.server == "cdn"] == [200, 206]


def test_an_offer_of_xet_is_declined(hub: HubDouble, pull: Puller) -> None:
    hub.use_cdn = True
    pin = hub.add_repo(REPO, {WEIGHTS: b"there"})
    offer = {
        "X-Xet-Hash": "a" * 64,
        "Link": f'<{hub.url}/api/models/{REPO}/xet-read-token/{pin}>; rel="xet-auth"',
    }
    hub.fault("HEAD", WEIGHTS, headers=offer)
    assert pull(pin).read_bytes() == b"there"
    assert [(request.method, request.server) for request in hub.log] == [
        ("HEAD", "hub"),
        ("GET", "hub"),
        ("GET", "cdn"),
    ]


def test_overload_is_retried_and_costs_no_time(hub: HubDouble, pull: Puller) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: b"there"})
    hub.fault("HEAD", WEIGHTS, times=2, status=503)
    hub.fault("GET", WEIGHTS, status=429, headers={"Retry-After": "30"})
    assert pull(pin).read_bytes() == b"there"
    statuses = [(request.method, request.status) for request in hub.log]
    heads, gets = [("HEAD", s) for s in (503, 503, 200)], [("GET", s) for s in (429, 200)]
    assert statuses == heads + gets


def test_a_late_answer_times_out(
    hub: HubDouble, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: b"there"})
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fault("GET", WEIGHTS, delay=30.0)
    assert pull(pin).read_bytes() == b"there"
    assert len(hub.paths("GET")) >= 2


def test_threads_share_one_download(hub: HubDouble, pull: Puller) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: tensors(100_000)})
    threads = [threading.Thread(target=pull, args=(pin,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.paths("GET")) == 1


# Access and absence


def test_a_gate_opens_to_the_granted_only(hub: HubDouble, pull: Puller) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: b"gated"}, gated="manual")
    hub.add_token("hf_guest", "guest")
    assert HfApi(endpoint=hub.url, token=False).model_info(REPO).gated == "manual"
    for token, status in ((False, 401), ("hf_guest", 403)):
        with pytest.raises(GatedRepoError) as error:
            pull(pin, token=token)
        assert error.value.response.status_code == status
    hub.grant(REPO, "guest")
    HfApi(endpoint=hub.url, token="hf_guest").auth_check(REPO)
    assert pull(pin, token="hf_guest").read_bytes() == b"gated"


def test_a_revoked_grant_leaves_the_cache(hub: HubDouble, pull: Puller, tmp_path: Path) -> None:
    hub.add_repo(REPO, {WEIGHTS: b"gated"}, gated="auto", granted=["guest"])
    hub.add_token("hf_guest", "guest")
    path = pull("main", token="hf_guest")
    hub.revoke(REPO, "guest")
    assert pull("main", token="hf_guest") == path
    assert hub.log[-1].status == 403
    with pytest.raises(GatedRepoError):
        pull("main", token="hf_guest", cache_dir=tmp_path / "other")


def test_what_is_missing_is_named_by_class(hub: HubDouble, pull: Puller) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: b"1"})
    hub.add_repo("lab/hidden", {WEIGHTS: b"1"}, private=True)
    hub.add_token("hf_guest", "guest")
    absent: dict[type[Exception], list[dict[str, Any]]] = {
        RepositoryNotFoundError: [
            {"revision": pin, "repo_id": "lab/none"},
            {"revision": pin, "repo_id": "lab/hidden"},
            {"revision": pin, "repo_id": "lab/hidden", "token": "hf_guest"},
        ],
        RevisionNotFoundError: [{"revision": "f" * 40}, {"revision": "nightly"}],
        RemoteEntryNotFoundError: [{"revision": pin, "file": "other.safetensors"}],
        HFValidationError: [{"revision": pin, "repo_id": "a/b/c"}],
        HfHubHTTPError: [{"revision": pin, "token": "hf_unknown"}],
    }
    for kind, calls in absent.items():
        for call in calls:
            with pytest.raises(kind) as error:
                pull(**call)
            assert type(error.value) is kind
    api = HfApi(endpoint=hub.url, token=False)
    assert [api.file_exists(REPO, f) for f in (WEIGHTS, "x")] == [True, False]
    assert [api.repo_exists(r) for r in (REPO, "lab/hidden", "lab/none")] == [True, False, False]
    assert [api.revision_exists(REPO, r) for r in (pin, "nightly")] == [True, False]


# Offline and snapshots


def test_offline_serves_the_cache_and_nothing_else(
    hub: HubDouble, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: b"1", "config.json": b"{}"})
    path = pull(pin)
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(pin) == path
    for revision, file in ((pin, "config.json"), ("main", WEIGHTS)):
        with pytest.raises(LocalEntryNotFoundError):
            pull(revision, file=file)
    with pytest.raises(OfflineModeIsEnabled):
        HfApi(endpoint=hub.url, token=False).model_info(REPO)
    assert hub.log == []


def test_a_subprocess_finds_the_double_and_stays_offline_when_told(
    hub: HubDouble, tmp_path: Path
) -> None:
    pin = hub.add_repo(REPO, {WEIGHTS: b"1"})
    code = (
        "import sys; from huggingface_hub import hf_hub_download as get\n"
        f"print(get({REPO!r}, sys.argv[1], revision={pin!r}))"
    )

    def run(file: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**hub.environment(tmp_path / "home"), **more}
        command = [sys.executable, "-c", code, file]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    online = run(WEIGHTS)
    assert online.returncode == 0, online.stderr
    assert len(hub.log) == 2
    offline = run(WEIGHTS, HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout
    assert Path(offline.stdout.strip()).read_bytes() == b"1"
    absent = run("config.json", HF_HUB_OFFLINE="1")
    assert absent.returncode == 1
    assert "LocalEntryNotFoundError" in absent.stderr
    assert len(hub.log) == 2


def test_a_snapshot_holds_the_patterns_and_is_asked_for_once(hub: HubDouble, pull: Puller) -> None:
    files = {WEIGHTS: b"1", "config.json": b"{}", "setup.py": b"raise SystemExit"}
    pin = hub.add_repo(REPO, files)
    path = pull.snapshot(pin, allow_patterns=["*.safetensors", "*.json"])
    assert {p.name for p in path.iterdir()} == {WEIGHTS, "config.json"}
    assert hub.paths()[0] == f"/api/models/{REPO}/tree/{pin}"
    assert not any("setup.py" in asked for asked in hub.paths())
    hub.log.clear()
    assert pull.snapshot(pin, allow_patterns=["*.safetensors", "*.json"]) == path
    assert hub.log == []
    with pytest.raises(IncompleteSnapshotError):
        pull.snapshot(pin, local_files_only=True)


def test_long_listings_come_in_pages(hub: HubDouble) -> None:
    names = [f"part-{n}.json" for n in range(7)]
    pin = hub.add_repo(REPO, dict.fromkeys(names, b"{}"))
    hub.tree_page = 3
    listed = HfApi(endpoint=hub.url, token=False).list_repo_files(REPO, revision=pin)
    assert sorted(listed) == sorted([".gitattributes", *names])
    assert len(hub.paths("GET")) == 3


def test_metadata_tells_lfs_from_git(hub: HubDouble) -> None:
    weights = tensors(1000)
    pin = hub.add_repo(REPO, {WEIGHTS: weights, "config.json": b"{}"})
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info(REPO, files_metadata=True)
    by_name = {item.rfilename: item for item in info.siblings or ()}
    digest = hashlib.sha256(weights).hexdigest()
    assert info.sha == pin
    shown = by_name[WEIGHTS].lfs
    assert shown is not None
    assert shown.sha256 == digest
    # `git hash-object` of a file that holds {}.
    assert by_name["config.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    assert by_name["config.json"].lfs is None
    item: Any
    (item,) = api.get_paths_info(REPO, [WEIGHTS, "none"], revision=pin)
    assert item.size == len(weights)
    assert item.lfs.sha256 == digest
    assert api.get_safetensors_metadata(REPO).files_metadata[WEIGHTS].metadata == {
        "made_by": "a test"
    }


# The double itself


def test_the_fixture_is_the_endpoint_of_calls_that_pass_none(
    hub: HubDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add_token("hf_lab", "lab")
    hub.use_cdn = True
    monkeypatch.setenv("HF_TOKEN", "hf_lab")
    api = HfApi()
    api.create_repo(REPO, private=True)
    source = folder(tmp_path / "new", b"weights")
    pin = api.upload_folder(repo_id=REPO, folder_path=source).oid
    path = Path(hf_hub_download(REPO, WEIGHTS, revision=pin))
    assert path.read_bytes() == b"weights"
    assert tmp_path in path.parents
    assert (Path(snapshot_download(REPO)) / "config.json").read_text() == '{"dim": 8}'
    assert {r.token for r in hub.log if r.server == "cdn"} == {None}


def test_an_unknown_request_is_news(raw: Any) -> None:
    with HubDouble() as double:
        reply = raw.get(f"{double.url}/api/spaces/lab/demo")
        assert reply.status_code == 404
        with pytest.raises(AssertionError, match=r"GET /api/spaces/lab/demo \(hub\)"):
            double.check()


def test_a_fault_can_speak_for_a_route(hub: HubDouble) -> None:
    hub.add_token("hf_lab", "lab")
    hub.add_repo(REPO)
    refusal = b'{"errors": [{"message": "licence is missing"}], "warnings": []}'
    hub.fault("POST", "validate-yaml", status=400, mutate=lambda _: refusal)
    with pytest.raises(ValueError, match="licence is missing"):
        HfApi(endpoint=hub.url, token="hf_lab").upload_file(
            path_or_fileobj=CARD, path_in_repo="README.md", repo_id=REPO
        )


def test_a_failure_of_the_double_is_not_taken_for_the_hubs(raw: Any) -> None:
    with HubDouble() as double:
        double.add_token("hf_lab", "lab")
        headers = {"Authorization": "Bearer hf_lab"}
        reply = raw.post(f"{double.url}/api/repos/create", content=b"{", headers=headers)
        assert reply.status_code == 500
        with pytest.raises(AssertionError, match="failed itself"):
            double.check()


def test_mistakes_in_setting_the_scene_are_named(hub: HubDouble) -> None:
    hub.add_repo(REPO)
    with pytest.raises(DataError, match="not of the form 'namespace/name'"):
        hub.add_repo("model")
    with pytest.raises(DataError, match="already has a repository 'lab/model'"):
        hub.add_repo(REPO)
    with pytest.raises(NotFoundError, match=r"no repository 'lab/none'\. There: lab/model"):
        hub.grant("lab/none", "guest")
    with pytest.raises(NotFoundError, match="has no 'v1'"):
        hub.tag(REPO, "v2", "v1")
    with pytest.raises(NotFoundError, match="'main' of 'lab/model' has no file 'x'"):
        hub.commit(REPO, {}, delete=["x"])
    with pytest.raises(DataError, match="changes nothing"):
        hub.fault("GET", ".")


def test_a_closed_double_frees_its_port_and_connections(raw: Any) -> None:
    with HubDouble() as double:
        assert raw.get(f"{double.url}/api/agent-harnesses").status_code == 200
    with pytest.raises(httpx.TransportError):
        raw.get(f"{double.url}/api/agent-harnesses")


def test_only_loopback_is_looked_up(loopback_only: list[str], raw: Any) -> None:
    with pytest.raises(httpx.ConnectError, match="loopback only"):
        raw.get("http://huggingface.co")
    assert loopback_only == ["huggingface.co"]
    loopback_only.clear()
