"""The Hugging Face Hub: files at a pinned commit, checked; folders published.

The only module that talks to the Hub. No code of a repository runs. The client checks neither
digests nor the commit that it is answered with; both are checked here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
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
        raise WeightsError(f"{repo}: revision '{revision}' is not a commit, expected 40 hex digits")
    path = _download(repo, revision, file, force=False)
    if why := _why_wrong(path, repo, revision, file, sha256):
        log.info("%s; downloading it again", why)
        with contextlib.suppress(OfflineError):
            path = _download(repo, revision, file, force=True)
        if why := _why_wrong(path, repo, revision, file, sha256):
            raise DigestError(
                f"{why} Nothing of it was used. If you expect a new version: wsizoo pin"
            )
    return path


def hub_head(repo: str) -> str:
    """The commit that the repository's main branch is at now. Raises as `hub_file`."""
    with _hub_errors(repo, "main"):
        info = _api().model_info(repo)
    return str(info.sha)


def hub_access(repo: str) -> None:
    """Raise as `hub_file` unless this token may download the repository's files."""
    with _hub_errors(repo, "main"):
        _api().auth_check(repo)


def hub_upload(folder: Path, repo: str, private: bool, message: str) -> str:
    """Publish a folder as a model repository, created if needed; returns the commit."""
    with _hub_errors(repo, "main"):
        api = _api()
        api.create_repo(repo, private=private, exist_ok=True)
        info = api.upload_folder(folder_path=folder, repo_id=repo, commit_message=message)
    return str(info.oid)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name=LIBRARY)


def _download(repo: str, revision: str, file: str, force: bool) -> Path:
    from huggingface_hub import constants, hf_hub_download

    with _hub_errors(repo, revision, file):
        return Path(
            hf_hub_download(
                repo,
                file,
                revision=revision,
                force_download=force and not constants.HF_HUB_OFFLINE,
                library_name=LIBRARY,
            )
        )


def _why_wrong(path: Path, repo: str, revision: str, file: str, sha256: str | None) -> str | None:
    """What is wrong with a downloaded file, or None."""
    if revision not in path.parts:
        answered = (
            path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else "?"
        )
        return f"{repo}: the Hub answered with commit {answered}, asked for {revision}."
    actual = sha256_of(path)
    if sha256 is not None:
        wrong = actual != sha256
        return f"{repo}/{file} has sha256 {actual}, expected {sha256}." if wrong else None
    recorded = path.resolve().name  # the cache names a blob by the Hub's own checksum
    if re.fullmatch(r"[0-9a-f]{64}", recorded) and recorded != actual:
        return f"{repo}/{file} has sha256 {actual}, the Hub's own record is {recorded}."
    if COMMIT.fullmatch(recorded):
        data = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        if git != recorded:
            return f"{repo}/{file} has git checksum {git}, the Hub's own record is {recorded}."
    return None


@contextlib.contextmanager
def _hub_errors(repo: str, revision: str, file: str = "") -> Iterator[None]:
    """Turn the client's exceptions into one error a cause."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # of both majors

    where = f"{repo}/{file} at {revision[:12]}".replace("/ at", " at")
    try:
        yield
    except errors.GatedRepoError as error:
        raise _gated(repo, error) from error
    except errors.RepositoryNotFoundError as error:
        raise RepoNotFoundError(
            f"The Hub has no repository '{repo}' that this token can see. Check the name at "
            f"https://huggingface.co/{repo}; if it is private: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RepoNotFoundError(
            f"'{repo}' has no commit {revision}. Its current one: hf:{repo}"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise RepoNotFoundError(f"'{repo}' has no file '{file}' at {revision[:12]}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(where, error) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        hint = " Your token is not valid: hf auth login" if status == 401 else ""
        raise WeightsError(
            f"{where}: the Hub refused ({status}): {error.server_message}.{hint}"
        ) from error
    except errors.HFValidationError as error:
        raise RepoNotFoundError(
            f"'{repo}' is not a repository name, expected owner/name"
        ) from error
    except (httpx.TransportError, ConnectionError) as error:
        raise OfflineError(
            f"{where}: the connection to the Hub failed: {error}. Try again"
        ) from error
    except OSError as error:
        raise WeightsError(f"{where}: the download failed: {error}") from error


def _gated(repo: str, error: Any) -> GatedError:
    page = f"https://huggingface.co/{repo}"
    if error.response is not None and error.response.status_code == 401:
        return GatedError(
            f"'{repo}' is gated and you are not logged in. Accept its licence at {page}, then: "
            "hf auth login"
        )
    return GatedError(
        f"'{repo}' is gated and your account has not been granted access. Ask for it at {page} (it "
        "may take the authors a while), and check that your token may read gated repositories"
    )


def _unreachable(where: str, error: Exception) -> OfflineError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return OfflineError(
            f"{where} is not in the cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set. "
            "Unset it once, or copy the cache from a machine that has it"
        )
    cause = error.__cause__ or error
    return OfflineError(
        f"{where} is not in the cache ({constants.HF_HUB_CACHE}) and the Hub at "
        f"{constants.ENDPOINT} cannot be reached: {cause}"
    )
