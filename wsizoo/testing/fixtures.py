"""Pytest fixtures for tests that download or publish: a Hub double, and no network beyond loopback.

In a `conftest.py`: `from wsizoo.testing.fixtures import hub, loopback_only`.
"""

import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsizoo.testing.hub import HubDouble

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class _Hurried:
    """The module `time` to a client that retries, except that it never sleeps."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Return at once."""


def _isolate_client(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Keep the user's cache, token, proxies, telemetry, Xet and offline mode out of a test."""
    from huggingface_hub import constants

    for name in (*TOKENS, *PROXIES):
        monkeypatch.delenv(name, raising=False)
    settings: dict[str, object] = {
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    # The modules' own name, never `time.sleep` itself: the double's threads sleep for real.
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", _Hurried())


def _point_client(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Make the double the configured endpoint, for code that passes no `endpoint=`."""
    from huggingface_hub import constants
    from huggingface_hub.hf_api import api

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(api, "endpoint", url)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    """A running `HubDouble`; the test fails if it was asked something it has no route for.

    Inside the test the client's endpoint is the double, with or without `endpoint=`; it sees no
    user cache, token, proxy or Xet, and retries without waiting.
    """
    from huggingface_hub import close_session, get_session

    proxied = any(os.environ.get(name) for name in PROXIES)
    _isolate_client(monkeypatch, tmp_path / "hf_home")
    if proxied:  # The client reads proxies when it is built, and is then shared by all calls.
        close_session()
    get_session()  # Built here, because the threads of a snapshot would build one each in 1.31.
    with HubDouble() as double:
        _point_client(monkeypatch, double.url)
        yield double
    if proxied:
        close_session()
    double.check()


def _is_loopback(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name)).is_loopback
    except ValueError:
        return False


@pytest.fixture
def loopback_only(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Refuse to look up any host but loopback, and fail the test that tried.

    For a whole suite, in `conftest.py`:

        @pytest.fixture(autouse=True)
        def no_network(loopback_only): ...

    A test with the marker `network` is left alone. The fixture's value lists the refused hosts; a
    test that provokes a refusal on purpose clears it.
    """
    refused: list[str] = []
    look_up = socket.getaddrinfo

    def guarded(host: str | bytes | None, *args: Any, **kwargs: Any) -> Any:
        if _is_loopback(host):
            return look_up(host, *args, **kwargs)
        refused.append(str(host))
        raise socket.gaierror(socket.EAI_FAIL, f"Tests reach loopback only, not {host!r}.")

    if request.node.get_closest_marker("network") is None:
        monkeypatch.setattr(socket, "getaddrinfo", guarded)
    yield refused
    assert not refused, f"The test tried to reach {', '.join(sorted(set(refused)))}."
