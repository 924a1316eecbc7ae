"""The Hugging Face Hub: files at a pinned commit, checked; folders published.

The only module that talks to the Hub. No code of a repository runs. The client checks neither
digests nor the commit that it is answered with; both are checked here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from wsizoo.errors import DigestError, GatedError, OfflineError, RepoNotFoundError, WeightsError
from wsizoo.files import sha256_of

log = logging.getLogger(__name__)
COMMIT = re.compile(r"[0-9a-f]{40}")
LIBRARY = "wsizoo"


def hub_file(repo: str, revision: str, file: str, sha256: str | None = None) -> Path:
    """Path of one file of a Hub repository at one commit, downloaded if it is not in the cache.

    Honours HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN as huggingface_hub does.

    Args:
        revision: commit, 40 hex digits. sha256: the digest that was recorded; None: the Hub's own
            checksum of the file is checked.

    Raises:
        RepoNotFoundError, GatedError, OfflineError: as named. DigestError: other bytes, or another
        commit, than asked for (after one forced second download).
    """
    if not COMMIT.fullmatch(revision):
        raise WeightsError(
            f"{repo}: revision '{revision}' is not a commit, expected 40 hex digits (branches "
            f"move). {_current(repo)}"
        )
    path = _download(repo, revision, file)
    if why := _why_wrong(path, repo, revision, file, sha256):
        path = _download_again(path, repo, revision, file, why)
        if why := _why_wrong(path, repo, revision, file, sha256):
            raise DigestError(
                f"{why} Nothing of it was used. A commit never changes, so either the file was "
                "altered on its way (try another network) or the record is wrong (ask who made it)"
            )
    return path


def hub_head(repo: str) -> str:
    """The commit that the repository's main branch is at now. Raises as `hub_file`."""
    with _hub_errors(repo, "main"):
        info = _api().model_info(repo)
    return str(info.sha)


def hub_files(repo: str, revision: str) -> list[str]:
    """Names of the files that a repository holds at one commit. Raises as `hub_file`."""
    with _hub_errors(repo, revision):
        return list(_api().list_repo_files(repo, revision=revision))


def hub_cached(repo: str, revision: str, file: str) -> Path | None:
    """Path of one file of a repository at one commit if it is in the cache; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def hub_access(repo: str) -> None:
    """Raise as `hub_file` unless this token may download the repository's files."""
    with _hub_errors(repo, "main"):
        _api().auth_check(repo)


def hub_upload(
    folder: Path, repo: str, private: bool, message: str, files: Sequence[str] | None = None
) -> str:
    """Publish a folder as a model repository, created if needed; returns the commit.

    Args:
        private: of a new repository; one that is there must not be more public than that.
        files: names to publish; None: everything in the folder.
    """
    with _hub_errors(repo, "main", doing="upload"):
        api = _api()
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise WeightsError(
                f"'{repo}' is there already and public, so nothing was published. If that is what "
                "you want: wsizoo.push(..., private=False), wsizoo push --public"
            )
        info = api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            commit_message=message,
            allow_patterns=None if files is None else list(files),
        )
    return str(info.oid)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name=LIBRARY)


def _current(repo: str) -> str:
    return f"To see the current commit: wsizoo.load('hf:{repo}')"


def _download(repo: str, revision: str, file: str, force: bool = False) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_errors(repo, revision, file):
        return Path(
            hf_hub_download(
                repo, file, revision=revision, force_download=force, library_name=LIBRARY
            )
        )


def _download_again(path: Path, repo: str, revision: str, file: str, why: str) -> Path:
    """A forced download in place of the wrong file at `path`. Raises DigestError with both whys."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return path
    log.info("%s Downloading it again", why)
    # Without symlinks the client would leave the file of this commit as it is.
    if not path.is_symlink() and _commit_of(path, file) == revision:
        path.unlink()
    try:
        return _download(repo, revision, file, force=True)
    except WeightsError as error:
        raise DigestError(
            f"{why} Nothing of it was used, and a second download failed: {error}"
        ) from error


def _why_wrong(path: Path, repo: str, revision: str, file: str, sha256: str | None) -> str | None:
    """What is wrong with a downloaded file, or None."""
    commit = _commit_of(path, file)
    if commit != revision:
        return f"{repo}: the Hub answered with commit {commit}, asked for {revision}."
    actual = sha256_of(path)
    if sha256 is not None:
        wrong = actual != sha256
        return f"{repo}/{file} has sha256 {actual}, expected {sha256}." if wrong else None
    recorded = _hub_record(path, repo, revision, file)
    if re.fullmatch(r"[0-9a-f]{64}", recorded) and recorded != actual:
        return f"{repo}/{file} has sha256 {actual}, the Hub's own record is {recorded}."
    if COMMIT.fullmatch(recorded):
        data = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        if git != recorded:
            return f"{repo}/{file} has git checksum {git}, the Hub's own record is {recorded}."
    return None


def _commit_of(path: Path, file: str) -> str:
    """The commit under which the cache holds a file: snapshots/COMMIT/FILE."""
    return path.parts[-1 - len(PurePosixPath(file).parts)]


def _hub_record(path: Path, repo: str, revision: str, file: str) -> str:
    """The Hub's checksum of a file: the name of its blob, else (no symlinks here) it is asked."""
    if path.is_symlink():
        return path.readlink().name  # one step: a blob may itself be a link into another store
    try:
        with _hub_errors(repo, revision):
            (info,) = _api().get_paths_info(repo, [file], revision=revision)
    except WeightsError as error:
        log.warning("%s/%s is used without a check of its digest: %s", repo, file, error)
        return ""
    return str(info.lfs.sha256 if info.lfs else info.blob_id)


@contextlib.contextmanager
def _hub_errors(
    repo: str, revision: str, file: str = "", doing: str = "download"
) -> Iterator[None]:
    """Turn the client's exceptions into one error a cause."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # of both majors

    where = f"{repo}/{file} at {revision[:12]}".replace("/ at", " at")
    try:
        yield
    except (httpx.TransportError, OSError, ValueError, RuntimeError) as error:
        # A forced download wraps what went wrong in a bare ValueError.
        cause = (error.__cause__ or error) if type(error) is ValueError else error
        known = _known(cause, repo, revision, file) or _unreached(where, file, cause)
        said = " ".join(str(error).split())
        raise known or WeightsError(f"{where}: the {doing} failed: {said}") from error


def _known(error: BaseException, repo: str, revision: str, file: str) -> WeightsError | None:
    """What the Hub, or the client, says of this repository, revision or file."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return _gated(repo, page, error)
    if isinstance(error, errors.RepositoryNotFoundError):
        return RepoNotFoundError(
            f"The Hub has no repository '{repo}' that this token can see. Check the name at "
            f"{page}; if it is private: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return RepoNotFoundError(f"'{repo}' has no commit {revision}. {_current(repo)}")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return RepoNotFoundError(
            f"'{repo}' has no file '{file}' at {revision[:12]}. See {page}/tree/{revision}"
        )
    if isinstance(error, errors.HFValidationError):
        return RepoNotFoundError(f"'{repo}' is not a repository name, expected owner/name")
    return None


def _gated(repo: str, page: str, error: Any) -> GatedError:
    if error.response.status_code == 401:
        return GatedError(
            f"'{repo}' is gated and you are not logged in. Accept its licence at {page}, then: "
            "hf auth login"
        )
    return GatedError(
        f"'{repo}' is gated and your account has not been granted access. Ask for it at {page} (it "
        "may take the authors a while), and check that your token may read gated repositories"
    )


def _unreached(where: str, file: str, error: BaseException) -> WeightsError | None:
    """Why there was no answer that could be used: offline, no connection, refused."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    what = f"is not in the cache ({constants.HF_HUB_CACHE})" if file else "must be asked of the Hub"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return OfflineError(
                f"{where} {what} and HF_HUB_OFFLINE is set. Unset it once, or copy the cache from "
                "a machine that has it"
            )
        how = _answer(error.__cause__ or error)
        return OfflineError(f"{where} {what} and the Hub at {constants.ENDPOINT} {how}")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(where, error)
    if isinstance(error, httpx.TransportError | ConnectionError):
        return OfflineError(f"{where}: the connection to the Hub failed: {error}. Try again")
    return None


def _answer(error: BaseException) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return f"answers {error.response.status_code}; try again later"
    if isinstance(error, errors.FileMetadataError):
        return "does not answer as a Hub does; check HF_ENDPOINT and your proxy"
    return f"cannot be reached ({error}); check your connection and proxy"


def _refused(where: str, error: Any) -> WeightsError:
    from huggingface_hub import get_token

    status, said = error.response.status_code, str(error.server_message or error).rstrip(".")
    hint = ". Your token is not valid" if get_token() else ". You are not logged in"
    return WeightsError(
        f"{where}: the Hub refused ({status}): {said}"
        + (f"{hint}: hf auth login" if status == 401 else "")
    )
