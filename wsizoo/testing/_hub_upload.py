"""The Hub double's writing routes: repositories, preupload, LFS (basic and multipart), commits."""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wsizoo.testing._hub_http import RefusedError, Reply, Request
from wsizoo.testing._hub_routes import (
    API,
    REPO,
    REVISION,
    SHA256,
    Route,
    check_gate,
    find,
    route,
    visible,
)
from wsizoo.testing._hub_store import Account, Entry, Repo, Tree, is_lfs

if TYPE_CHECKING:
    from wsizoo.testing.hub import HubDouble

LFS = r"\.git/info/lfs/objects"


def logged_in(who: Account | None) -> Account:
    """The account, with a token that may write."""
    if who is None:
        raise RefusedError(401, None, "Invalid username or password.")
    if who.role != "write":
        raise RefusedError(403, None, "This token has read access only; a write token is needed.")
    return who


def owned(who: Account | None, repo_id: str) -> Account:
    """The account, with the right to write to the namespace of `repo_id`."""
    writer = logged_in(who)
    if not writer.owns(repo_id):
        raise RefusedError(403, None, f"'{writer.user}' has no right to write to '{repo_id}'.")
    return writer


def writable(
    hub: "HubDouble", request: Request, who: Account | None, at: Mapping[str, str]
) -> Repo:
    """The repository, if the asker may commit; a pull request needs read access only."""
    repo = visible(hub, at["repo"], who)
    if "create_pr" in request.query:
        logged_in(who)
        check_gate(hub, repo, who)
    else:
        owned(who, repo.id)
    return repo


def body_repo(request: Request, who: Account | None) -> str:
    """The repository id that a create or delete request names, `namespace/name`."""
    asked = request.json()
    if asked.get("type") not in (None, "model"):
        raise RefusedError(400, None, f"The double holds models only, not '{asked['type']}'.")
    repo_id = f"{asked.get('organization') or logged_in(who).user}/{asked['name']}"
    owned(who, repo_id)
    return repo_id


def create(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """A new repository, or 409 with its address."""
    repo_id = body_repo(request, who)
    answer = {"url": f"{hub.url}/{repo_id}"}
    if repo_id in hub.repos:
        return Reply.json({"error": "You already created this model repo", **answer}, 409)
    hub.add_repo(repo_id, private=request.json().get("visibility") == "private")
    return Reply.json(answer)


def delete(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """Forget a repository of one's own."""
    hub.delete_repo(visible(hub, body_repo(request, who), who).id)
    return Reply.json({})


def validate(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """Every model card is well; plan a fault to refuse one."""
    return Reply.json({"errors": [], "warnings": []})


def preupload(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """Say of each file whether it goes through LFS, and what is there now."""
    repo = writable(hub, request, who, at)
    head = repo.commits[find(repo, at["revision"])]
    files = []
    for asked in request.json()["files"]:
        path, size = asked["path"], asked["size"]
        mode = "lfs" if is_lfs(path, size, head) else "regular"
        there = {"oid": head[path].etag} if path in head else {}
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **there})
    return Reply.json({"files": files})


def upload_action(hub: "HubDouble", oid: str, size: int, multipart: bool) -> dict[str, Any]:
    """Where one object's bytes go: one address, or one per part."""
    if not multipart:
        return {"href": f"{hub.cdn_url}/{oid}"}
    count = -(-size // hub.part_size) if hub.part_size else 0
    urls = {str(n): f"{hub.cdn_url}/{oid}?part={n}" for n in range(1, count + 1)}
    header = {"chunk_size": str(hub.part_size), **urls}
    return {"href": f"{hub.url}/_lfs/complete/{oid}", "header": header}


def batch(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """Instructions per LFS object; none for what is stored already."""
    logged_in(who)
    repo = visible(hub, at["repo"], who)
    asked = request.json()
    able = hub.part_size is not None and "multipart" in asked["transfers"]
    objects, parted = [], False
    for wanted in asked["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        item: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.lfs:
            multipart = able and size > (hub.part_size or 0)
            verify = {"href": f"{hub.url}/{repo.id}.git/info/lfs/objects/verify"}
            upload = upload_action(hub, oid, size, multipart)
            item["actions"] = {"upload": upload, "verify": verify}
            parted = parted or multipart
        objects.append(item)
    return Reply.json({"transfer": "multipart" if parted else "basic", "objects": objects})


def part_tag(data: bytes) -> str:
    """The `ETag` of what was PUT."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def put(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """Take an object, or one part of it; checked later, as storage behind a signed link is."""
    if "part" in request.query:
        parts = hub.parts.setdefault(at["oid"], {})
        parts[int(request.query["part"][0])] = request.body
    else:
        hub.received[at["oid"]] = request.body
    return Reply(200, {"ETag": part_tag(request.body)})


def complete(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """Join the parts, in order, if they are the ones that came."""
    parts = hub.parts.get(at["oid"], {})
    tags = {n: part_tag(data) for n, data in parts.items()}
    named = {int(part["partNumber"]): part["etag"] for part in request.json()["parts"]}
    if not parts or named != tags or sorted(parts) != list(range(1, len(parts) + 1)):
        raise RefusedError(400, None, f"The parts of {at['oid']} are not those that were uploaded.")
    hub.received[at["oid"]] = b"".join(parts[n] for n in sorted(parts))
    del hub.parts[at["oid"]]
    return Reply.json({"success": True})


def verify(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """Store what was received, if digest and size are as announced."""
    logged_in(who)
    asked = request.json()
    data = hub.received.pop(asked["oid"], b"")
    if len(data) != asked["size"] or hashlib.sha256(data).hexdigest() != asked["oid"]:
        raise RefusedError(422, None, f"The bytes received for {asked['oid']} have another digest.")
    hub.lfs[asked["oid"]] = data
    return Reply.json({})


def lfs_entry(hub: "HubDouble", value: Mapping[str, Any]) -> Entry:
    """The stored object that a commit points at."""
    data = hub.lfs.get(value["oid"])
    if data is None or len(data) != value.get("size", len(data)):
        raise RefusedError(
            400, None, f"LFS object {value['oid']} of '{value['path']}' is not stored."
        )
    return Entry(data, lfs=True)


def apply(hub: "HubDouble", lines: list[dict[str, Any]], tree: Tree) -> Tree:
    """`tree` after the operations of one commit."""
    changed = dict(tree)
    for line in lines:
        key, value = line["key"], line["value"]
        path = value["path"]
        if key == "file":
            changed[path] = Entry(base64.b64decode(value["content"], validate=True), lfs=False)
        elif key == "lfsFile":
            changed[path] = lfs_entry(hub, value)
        elif key == "deletedFile" and path in changed:
            del changed[path]
        elif key == "deletedFolder":
            folder = path.rstrip("/") + "/"
            changed = {k: v for k, v in changed.items() if not k.startswith(folder)}
        else:
            raise RefusedError(400, None, f"The double cannot apply '{key}' to '{path}'.")
    return changed


def commit(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """One commit on a branch, or on a new pull request."""
    repo, branch = writable(hub, request, who, at), at["revision"]
    if branch not in repo.branches:
        raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
    head = repo.branches[branch]
    try:
        header, *operations = [json.loads(line) for line in request.body.splitlines() if line]
        if header["value"].get("parentCommit", head) != head:
            raise RefusedError(
                412, None, "A commit has happened since. Please refresh and try again."
            )
        tree = apply(hub, operations, repo.commits[head])
    except (ValueError, KeyError, binascii.Error) as error:
        raise RefusedError(400, None, f"This commit cannot be read: {error!r}") from error
    answer = {}
    if "create_pr" in request.query:
        repo.pull_requests += 1
        branch = f"refs/pr/{repo.pull_requests}"
        answer["pullRequestUrl"] = f"{hub.url}/{repo.id}/discussions/{repo.pull_requests}"
    sha = hub.write(repo, tree, branch)
    return Reply.json(
        {"commitOid": sha, "commitUrl": f"{hub.url}/{repo.id}/commit/{sha}", **answer}
    )


def add_tag(hub: "HubDouble", request: Request, who: Account | None, at: dict[str, str]) -> Reply:
    """A new tag, or 409."""
    repo = writable(hub, request, who, at)
    sha, name = find(repo, at["revision"]), request.json()["tag"]
    if name in repo.tags:
        raise RefusedError(409, None, f"Tag '{name}' exists already.")
    repo.tags[name] = sha
    return Reply.json({})


WRITE_ROUTES: tuple[Route, ...] = (
    route("POST", r"/api/repos/create", create),
    route("DELETE", r"/api/repos/delete", delete),
    route("POST", r"/api/validate-yaml", validate),
    route("POST", rf"{API}/preupload{REVISION}", preupload),
    route("POST", rf"{REPO}{LFS}/batch", batch),
    route("POST", rf"{REPO}{LFS}/verify", verify),
    route("POST", rf"/_lfs/complete{SHA256}", complete),
    route("POST", rf"{API}/commit{REVISION}", commit),
    route("POST", rf"{API}/tag{REVISION}", add_tag),
)
CDN_WRITE_ROUTES: tuple[Route, ...] = (route("PUT", SHA256, put),)
