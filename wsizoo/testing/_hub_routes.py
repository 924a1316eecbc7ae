"""The Hub double's reading routes: resolve, metadata, listings, identity, access."""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, unquote

from wsizoo.testing._hub_http import RefusedError, Reply, Request, ranged
from wsizoo.testing._hub_store import Account, Entry, Repo, Tree

if TYPE_CHECKING:
    from wsizoo.testing.hub import HubDouble

Action = Callable[["HubDouble", Request, Account | None, dict[str, str]], Reply]
Route = tuple[str, re.Pattern[str], Action]

REPO = r"/(?P<repo>[^/]+/[^/]+)"
API = rf"/api/models{REPO}"
REVISION = r"/(?P<revision>[^/]+)"
SHA256 = r"/(?P<oid>[0-9a-f]{64})"


def route(method: str, path: str, action: Action) -> Route:
    """One row of a routing table; both are matched in full, the path still quoted."""
    return method, re.compile(path), action


def account(hub: "HubDouble", request: Request) -> Account | None:
    """Who is asking; a token that nobody registered is refused."""
    if "authorization" not in request.headers:
        return None
    known = hub.accounts.get(request.token or "")
    if known is None:
        raise RefusedError(401, None, "Invalid credentials in Authorization header")
    return known


def visible(hub: "HubDouble", repo_id: str, who: Account | None) -> Repo:
    """The repository, unless it is missing or hidden: the Hub does not tell which."""
    repo = hub.repos.get(repo_id)
    if repo is None or (repo.private and not repo.admits(who)):
        raise RefusedError(404 if who else 401, "RepoNotFound", "Repository not found")
    return repo


def check_gate(hub: "HubDouble", repo: Repo, who: Account | None) -> None:
    """Refuse the bytes of a gated repository to whoever was not granted access."""
    if not repo.gated or repo.admits(who):
        return
    start = f"Access to model {repo.id} is restricted"
    if who is None:
        message = (
            f"{start}. You must have access to it and be authenticated to access it. Please log in."
        )
        raise RefusedError(401, "GatedRepo", message)
    where = f"{hub.url}/{repo.id}"
    message = f"{start} and you are not in the authorized list. Visit {where} to ask for access."
    raise RefusedError(403, "GatedRepo", message)


def find(repo: Repo, revision: str) -> str:
    """The commit that `revision` names, or the Hub's 404."""
    sha = repo.find(revision)
    if sha is None:
        raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return sha


def resolve(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """HEAD and GET of a file: these headers decide everything the client does."""
    repo = visible(hub, at["repo"], who)
    check_gate(hub, repo, who)
    sha = find(repo, at["revision"])
    entry = repo.commits[sha].get(at["file"])
    if entry is None:
        raise RefusedError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
    headers = {
        "X-Repo-Commit": sha,
        "X-Linked-Size": str(len(entry.data)),
        "ETag": f'"{entry.etag}"',
    }
    if entry.lfs and hub.use_cdn:
        location = f"{hub.cdn_url}/{entry.sha256}"
        return Reply(302, {**headers, "X-Linked-Etag": headers["ETag"], "Location": location})
    return ranged(request, entry.data, headers, hub.honour_ranges)


def stored(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """The CDN's GET: bytes by digest, no account needed, as with a signed link."""
    data = hub.lfs.get(at["oid"])
    if data is None:
        raise RefusedError(404, None, "No such object")
    return ranged(request, data, {"ETag": f'"{at["oid"]}"'}, hub.honour_ranges)


def lfs_fields(entry: Entry, digest: Literal["oid", "sha256"]) -> dict[str, Any]:
    """The part of a listing that only LFS files have; the two listings name the digest apart."""
    size = len(entry.data)
    return {digest: entry.sha256, "size": size, "pointerSize": len(entry.pointer)}


def sibling(name: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    """A file as repository metadata shows it."""
    item: dict[str, Any] = {"rfilename": name}
    if blobs:
        item |= {"size": len(entry.data), "blobId": entry.blob_id}
    if blobs and entry.lfs:
        item["lfs"] = lfs_fields(entry, "sha256")
    return item


def info(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """Repository metadata at a revision; open to all even when gated."""
    repo = visible(hub, at["repo"], who)
    sha = find(repo, at.get("revision", "main"))
    blobs = request.query.get("blobs", [""])[0].lower() == "true"
    siblings = [sibling(name, entry, blobs) for name, entry in repo.commits[sha].items()]
    answer: dict[str, Any] = {"id": repo.id, "modelId": repo.id, "sha": sha, "tags": []}
    answer |= {"private": repo.private, "gated": repo.gated, "siblings": siblings}
    return Reply.json(answer, headers={"X-Repo-Commit": sha})


def listed(tree: Tree, names: list[str]) -> list[dict[str, Any]]:
    """Files as `tree` and `paths-info` show them."""
    items = []
    for name in names:
        entry = tree[name]
        item = {"type": "file", "path": name, "size": len(entry.data), "oid": entry.blob_id}
        items.append({**item, "lfs": lfs_fields(entry, "oid")} if entry.lfs else item)
    return items


def tree(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """All files of a revision, `hub.tree_page` at a time."""
    files = visible(hub, at["repo"], who)
    sha = find(files, at["revision"])
    names, start = list(files.commits[sha]), int(request.query.get("cursor", ["0"])[0])
    stop = start + hub.tree_page
    headers = {"X-Repo-Commit": sha}
    if stop < len(names):
        rest = f"{hub.url}{request.path}?recursive=true&expand=false&cursor={stop}"
        headers["Link"] = f'<{rest}>; rel="next"'
    return Reply.json(listed(files.commits[sha], names[start:stop]), headers=headers)


def paths_info(
    hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]
) -> Reply:
    """Some files of a revision; unknown ones are left out."""
    repo = visible(hub, at["repo"], who)
    files = repo.commits[find(repo, at["revision"])]
    wanted = parse_qs(request.body.decode()).get("paths", [])
    return Reply.json(listed(files, [name for name in wanted if name in files]))


def auth_check(
    hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]
) -> Reply:
    """Whether the asker could download."""
    check_gate(hub, visible(hub, at["repo"], who), who)
    return Reply.json({})


def whoami(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """The account behind a token."""
    if who is None:
        raise RefusedError(401, None, "Invalid username or password.")
    access = {"type": "access_token", "accessToken": {"displayName": "test", "role": who.role}}
    orgs = [{"name": name} for name in who.orgs]
    return Reply.json({"type": "user", "name": who.user, "orgs": orgs, "auth": access})


def harnesses(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """What a client asks once a day unless telemetry is off."""
    return Reply.json({"standardEnvVars": [], "harnesses": {}})


def nothing(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """Telemetry: taken and dropped."""
    return Reply()


def dispatch(hub: "HubDouble", routes: tuple[Route, ...], request: Request) -> Reply | None:
    """The answer of the first route that takes the request, None when there is none."""
    for method, path, action in routes:
        match = path.fullmatch(request.path)
        if match and re.fullmatch(method, request.method):
            at: Mapping[str, str | None] = match.groupdict()
            quoted = {key: unquote(value) for key, value in at.items() if value is not None}
            try:
                who = account(hub, request) if request.server == "hub" else None
                return action(hub, request, who, quoted)
            except RefusedError as refused:
                return refused.reply
    return None


READ_ROUTES: tuple[Route, ...] = (
    route("HEAD|GET", rf"{REPO}/resolve{REVISION}/(?P<file>.+)", resolve),
    route("GET", API, info),
    route("GET", rf"{API}/revision{REVISION}", info),
    route("GET", rf"{API}/tree{REVISION}", tree),
    route("POST", rf"{API}/paths-info{REVISION}", paths_info),
    route("GET", rf"{API}/auth-check", auth_check),
    route("GET", r"/api/whoami-v2", whoami),
    route("GET", r"/api/agent-harnesses", harnesses),
    route("HEAD", r"/api/telemetry/.+", nothing),
)
CDN_READ_ROUTES: tuple[Route, ...] = (route("HEAD|GET", SHA256, stored),)
