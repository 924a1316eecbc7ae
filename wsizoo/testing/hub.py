"""A double of the Hugging Face Hub on loopback, for tests with the real `huggingface_hub` client.

    with HubDouble() as hub:
        pin = hub.add_repo("org/model", {"model.safetensors": data})
        hf_hub_download("org/model", "model.safetensors", revision=pin,
                        endpoint=hub.url, cache_dir=tmp_path, token=False)
        assert hub.paths("GET") == [f"/org/model/resolve/{pin}/model.safetensors"]

In pytest take the fixture `wsizoo.testing.fixtures.hub`, which also keeps the user's token, cache,
proxies and Xet out of the test and makes the double the client's endpoint. Without the fixture
pass `endpoint=hub.url`, `cache_dir=` and `token=` to every call.

The double answers what the client asks in downloads, listings, metadata and uploads (LFS basic and
multipart), with the Hub's own headers and error codes. It offers models only, and no Xet. A request
without a route gets 404 and is kept in `unknown`: it is news, so let the test fail (`check`).

Source: requests and answers of huggingface_hub 1.31.0 and 2.4.0, recorded.
"""

import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from wsizoo.testing._hub_http import Fault, LoopbackServer, Reply, Request, ServerName
from wsizoo.testing._hub_routes import CDN_READ_ROUTES, READ_ROUTES, dispatch
from wsizoo.testing._hub_store import Store
from wsizoo.testing._hub_upload import CDN_WRITE_ROUTES, WRITE_ROUTES

ROUTES = {"hub": READ_ROUTES + WRITE_ROUTES, "cdn": CDN_READ_ROUTES + CDN_WRITE_ROUTES}


class HubDouble(Store):
    """The Hub and its CDN, served while the context is open; state comes from `Store`.

    `add_repo`, `commit`, `tag`, `delete_repo`, `add_token`, `grant`, `revoke` set the scene, before
    or while serving; `files(repo_id, revision)` shows what a push left behind.

    Attributes:
        url: address of the Hub, http://127.0.0.1:PORT.
        cdn_url: address of the CDN, http://localhost:PORT2. Another host name, so that every
            version of the client takes it for foreign and sends no token.
        use_cdn: redirect LFS downloads to the CDN; otherwise the Hub serves them itself.
        part_size: bytes; larger LFS uploads are asked for in parts of this size (None: never).
        tree_page: files per page of a listing.
        honour_ranges: answer `Range` with 206; otherwise with the whole file and 200.
        log: every request, in order of arrival.
        unknown: requests without a route.
        crashes: exceptions inside the double, answered with 500.
    """

    def __init__(self, *, use_cdn: bool = False, part_size: int | None = None) -> None:
        super().__init__()
        self.url = ""
        self.cdn_url = ""
        self.use_cdn = use_cdn
        self.part_size = part_size
        self.tree_page = 1000
        self.honour_ranges = True
        self.log: list[Request] = []
        self.unknown: list[Request] = []
        self.crashes: list[Exception] = []
        self._faults: list[Fault] = []
        self._servers: list[LoopbackServer] = []
        self._stopping = threading.Event()

    def __enter__(self) -> "HubDouble":
        hub, cdn = LoopbackServer("hub", self._answer), LoopbackServer("cdn", self._answer)
        self._servers = [hub, cdn]
        self._stopping.clear()
        self.url = f"http://127.0.0.1:{hub.start()}"
        self.cdn_url = f"http://localhost:{cdn.start()}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        for server in self._servers:
            server.stop()

    def fault(
        self,
        method: str | None,
        regex: str,
        *,
        times: int | None = 1,
        server: ServerName | None = None,
        status: int | None = None,
        cut_at: int | None = None,
        short: int | None = None,
        mutate: Callable[[bytes], bytes] | None = None,
        delay: float = 0.0,
        headers: Mapping[str, str | None] | None = None,
    ) -> None:
        """Plan a misbehaviour for the next `times` requests that match; planned first, used first.

        Args:
            method: `GET`, `HEAD`, ..., or None for any.
            regex: searched in the raw (quoted) path with its query.
            times: how many requests; None for all from now on.
            server: only the Hub or only the CDN; None for both.
            status: answer this, with an empty body, without asking the route. The client reads its
                error class from a header: `headers={"X-Error-Code": "GatedRepo"}`.
            cut_at: announce the whole body, send this many bytes of it, drop the connection.
            short: send `body[:short]`, and announce that length.
            mutate: body -> body; with `status` it starts from an empty one.
            delay: seconds before the answer; ends early when the double closes.
            headers: set, or with None left out; the last word over what a route said.

        Raises: DataError when nothing is planned.
        """
        how = (status, cut_at, short, mutate, delay, headers or {})
        with self.lock:
            self._faults.append(Fault(method, re.compile(regex), times, server, *how))

    def paths(self, method: str | None = None, server: ServerName | None = None) -> list[str]:
        """Raw paths of the requests so far, without query, of one method or server or of all."""
        return [
            request.path
            for request in list(self.log)
            if method in (None, request.method) and server in (None, request.server)
        ]

    def check(self) -> None:
        """Refuse what nobody planned for: unknown requests, and failures of the double itself.

        Raises: AssertionError naming them.
        """
        strangers = [f"{r.method} {r.target} ({r.server})" for r in self.unknown]
        if strangers or self.crashes:
            raise AssertionError(
                f"The Hub double has no route for: {', '.join(strangers) or 'nothing'}; "
                f"it failed itself with: {self.crashes or 'nothing'}"
            )

    def environment(self, home: Path) -> dict[str, str]:
        """This process's environment for a subprocess whose client should talk to the double.

        Args:
            home: an empty folder in place of the user's cache and token.
        """
        dropped = re.compile(r"HF_|HUGGING_?FACE|(HTTPS?|ALL)_PROXY$|TRANSFORMERS_OFFLINE$", re.I)
        kept = {key: value for key, value in os.environ.items() if not dropped.match(key)}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def _answer(self, request: Request) -> Reply:
        """Log, spoil or route one request; runs in the connection's own thread."""
        with self.lock:
            self.log.append(request)
            fault = next((fault for fault in self._faults if fault.meets(request)), None)
            if fault and fault.left is not None:
                fault.left -= 1
        if fault and fault.delay:
            self._stopping.wait(fault.delay)
        reply = Reply(fault.status) if fault and fault.status is not None else self._route(request)
        reply = fault.spoil(reply) if fault else reply
        request.status = reply.status
        return reply

    def _route(self, request: Request) -> Reply:
        with self.lock:
            try:
                reply = dispatch(self, ROUTES[request.server], request)
            except Exception as error:
                self.crashes.append(error)
                return Reply.json({"error": f"The Hub double failed: {error!r}"}, 500)
            if reply is None:
                self.unknown.append(request)
                return Reply.json({"error": "The Hub double has no such route"}, 404)
            return reply
