"""What the Hub double remembers: repositories, their commits, LFS bytes, tokens and grants."""

import fnmatch
import hashlib
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from wsizoo.errors import DataError, NotFoundError

Gate = Literal[False, "auto", "manual"]
Tree = dict[str, "Entry"]

LFS_ABOVE = 10 * 1024 * 1024  # bytes; a larger file is LFS whatever its name
LFS_SUFFIXES = ("bin", "ckpt", "h5", "npy", "npz", "onnx", "pkl", "pt", "pth", "safetensors", "zip")
GITATTRIBUTES = "".join(f"*.{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES)


@dataclass(frozen=True)
class Entry:
    """One file of one commit; `lfs` decides which digest the Hub shows for it."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        """Digest of the content, 64 hex."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The text that git holds in place of an LFS file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
        return f"{text}size {len(self.data)}\n".encode()

    @cached_property
    def blob_id(self) -> str:
        """Git's digest of what git holds (for LFS: the pointer), 40 hex."""
        held = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(held) + held, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        """The clean digest that `/resolve` announces; the client names its blob after it."""
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and whether it may write."""

    user: str
    orgs: tuple[str, ...] = ()
    role: Literal["read", "write"] = "write"

    def owns(self, repo_id: str) -> bool:
        """Whether the namespace of `repo_id` is the user's own or one of their organisations."""
        return repo_id.partition("/")[0] in (self.user, *self.orgs)


@dataclass
class Repo:
    """One model repository: commits never change, branches and tags name them."""

    id: str
    private: bool = False
    gated: Gate = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: int = 0

    def admits(self, account: Account | None) -> bool:
        """Whether `account` owns the repository or was granted access."""
        return account is not None and (account.owns(self.id) or account.user in self.granted)

    def find(self, revision: str) -> str | None:
        """The commit that a branch, tag, commit or commit's first 7 or more digits names."""
        named = self.branches.get(revision) or self.tags.get(revision)
        if named or revision in self.commits:
            return named or revision
        if re.fullmatch(r"[0-9a-f]{7,39}", revision):
            return next((sha for sha in self.commits if sha.startswith(revision)), None)
        return None


def is_lfs(name: str, size: int, tree: Mapping[str, Entry]) -> bool:
    """Whether the Hub would store `name` (`size` bytes) as LFS, by the tree's .gitattributes."""
    if size == 0:
        return False
    text = tree[".gitattributes"].data.decode() if ".gitattributes" in tree else ""
    patterns = [line.split()[0] for line in text.splitlines() if "filter=lfs" in line]
    base = name.rsplit("/", 1)[-1]
    return size > LFS_ABOVE or any(
        fnmatch.fnmatchcase(name if "/" in pattern else base, pattern) for pattern in patterns
    )


class Store:
    """Everything behind the double's routes; `lock` guards all of it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.accounts: dict[str, Account] = {}
        self.lfs: dict[str, bytes] = {}
        self.received: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.lock = threading.RLock()
        self._commits_made = 0

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        private: bool = False,
        gated: Gate = False,
        granted: Iterable[str] = (),
    ) -> str:
        """Make a repository whose first commit is .gitattributes, as the Hub's, and add `files`.

        Args:
            repo_id: `namespace/name`.
            files: name (with `/`) -> content.
            private: hidden from everyone but owners and the granted.
            gated: metadata is public, `/resolve` asks for a grant.
            granted: users with access from the start.

        Returns: the commit to pin, 40 hex.
        Raises: DataError when the id is malformed or taken.
        """
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
            raise DataError(f"Repository id '{repo_id}' is not of the form 'namespace/name'.")
        with self.lock:
            if repo_id in self.repos:
                raise DataError(f"The double already has a repository '{repo_id}': use commit().")
            repo = Repo(repo_id, private, gated, set(granted))
            self.repos[repo_id] = repo
            sha = self.write(repo, {".gitattributes": Entry(GITATTRIBUTES.encode(), False)}, "main")
            return self.commit(repo_id, files) if files else sha

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        delete: Iterable[str] = (),
        branch: str = "main",
    ) -> str:
        """Commit `files` on top of `branch` (made from main when new), without `delete`.

        Returns: the new commit, 40 hex, different from every other even when nothing changed.
        Raises: NotFoundError when there is no such repository, or no such file to delete.
        """
        with self.lock:
            repo = self.repo(repo_id)
            base = repo.commits[repo.branches.get(branch) or repo.branches["main"]]
            tree = dict(base)
            for name in delete:
                if tree.pop(name, None) is None:
                    raise NotFoundError(f"'{branch}' of '{repo_id}' has no file '{name}'.")
            for name, data in files.items():
                tree[name] = self.entry(name, data, base)
            return self.write(repo, tree, branch)

    def tag(self, repo_id: str, name: str, revision: str = "main") -> None:
        """Let `name` mean the commit that `revision` names now; an existing tag moves.

        Raises: NotFoundError when there is no such repository or revision.
        """
        with self.lock:
            repo = self.repo(repo_id)
            sha = repo.find(revision)
            if sha is None:
                raise NotFoundError(f"Repository '{repo_id}' of the double has no '{revision}'.")
            repo.tags[name] = sha

    def delete_repo(self, repo_id: str) -> None:
        """Forget a repository. Raises: NotFoundError when there is none of this name."""
        with self.lock:
            del self.repos[self.repo(repo_id).id]

    def add_token(
        self,
        token: str,
        user: str,
        *,
        orgs: Iterable[str] = (),
        role: Literal["read", "write"] = "write",
    ) -> None:
        """Make `token` log in as `user`, who may write to their own and their orgs' namespaces."""
        with self.lock:
            self.accounts[token] = Account(user, tuple(orgs), role)

    def grant(self, repo_id: str, user: str) -> None:
        """Let `user` read a gated or private repository."""
        with self.lock:
            self.repo(repo_id).granted.add(user)

    def revoke(self, repo_id: str, user: str) -> None:
        """Take a grant back; without a grant nothing happens."""
        with self.lock:
            self.repo(repo_id).granted.discard(user)

    def repo(self, repo_id: str) -> Repo:
        """The repository of this name, as the double holds it.

        Raises: NotFoundError naming what there is.
        """
        if repo_id not in self.repos:
            there = ", ".join(sorted(self.repos)) or "none"
            raise NotFoundError(f"The double has no repository '{repo_id}'. There: {there}.")
        return self.repos[repo_id]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Name -> content at `revision`, to compare with what was pushed.

        Raises: NotFoundError when there is no such repository or revision.
        """
        with self.lock:
            repo = self.repo(repo_id)
            sha = repo.find(revision)
            if sha is None:
                raise NotFoundError(f"Repository '{repo_id}' of the double has no '{revision}'.")
            return {name: entry.data for name, entry in repo.commits[sha].items()}

    def entry(self, name: str, data: bytes, tree: Mapping[str, Entry]) -> Entry:
        """A file as the Hub would store it on top of `tree`; LFS bytes become downloadable."""
        entry = Entry(bytes(data), is_lfs(name, len(data), tree))
        if entry.lfs:
            self.lfs[entry.sha256] = entry.data
        return entry

    def write(self, repo: Repo, tree: Tree, branch: str) -> str:
        """Record a whole tree as the new head of `branch`."""
        self._commits_made += 1
        listing: Any = sorted((name, entry.blob_id) for name, entry in tree.items())
        text = f"{repo.id} {branch} {self._commits_made} {listing}"
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        repo.commits[sha] = dict(sorted(tree.items()))
        repo.branches[branch] = sha
        return sha
