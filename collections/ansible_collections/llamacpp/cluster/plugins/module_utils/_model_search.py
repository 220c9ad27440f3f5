# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Search a hub for models, and ask the planner which of their quantisations fit a cluster.

The hub is asked by huggingface_hub's own client (2.4.0: ``HfApi.list_models`` and ``list_repo_tree``).
Whether something fits is not estimated here: each quantisation whose header is read gets a plan of its own,
as if it were the only instance of the cluster.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable
from urllib.parse import quote

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import RemoteError
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import DEFAULT_REVISION, HubFile, quantisations
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse import parse
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import Pool
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError, Problem
from ansible_collections.llamacpp.cluster.plugins.module_utils._read_model import read_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import Found
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import HubFile as SourceFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Repositories with GGUF files carry this tag; the hub sets it.
TAG = "gguf"
# What is asked of each repository; the hub leaves the rest out of its answer.
EXPAND = ("downloads", "gated", "lastModified", "likes", "sha")
SORTS = ("downloads", "likes", "last_modified", "trending_score", "created_at")
INSTANCE = "search"
# How the planner begins; the name is nobody's.
_UNFIT = "%s does not fit: " % INSTANCE
NOT_LOOKED_AT = "not looked at; raise headers, or search for less"


class SearchError(Exception):
    """The hub does not answer the question. The text says why and what to do."""


@dataclass(frozen=True)
class Verdict:
    """Whether a quantisation fits, in the planner's words. ``fits`` None: nobody can tell, ``why`` says why not.

    ``strategy``, ``devices`` ("CUDA0 of node1") and ``context`` (tokens a slot) are those of the plan.
    """

    fits: bool | None = None
    why: str = ""
    strategy: str | None = None
    devices: tuple[str, ...] = ()
    context: int | None = None
    n_ctx_train: int | None = None


@dataclass(frozen=True)
class Quantisation:
    """A complete model of a repository. ``urls``, ``sizes`` (bytes), ``sha256`` (None where the hub keeps none): of
    each of ``files``; ``bytes``: of all of them.
    """

    name: str
    files: tuple[str, ...]
    urls: tuple[str, ...]
    sizes: tuple[int, ...]
    sha256: tuple[str | None, ...]
    bytes: int
    verdict: Verdict = field(default_factory=Verdict)


@dataclass(frozen=True)
class Repository:
    """What a hub says of a repository. ``error``: why there are no quantisations; None where the hub says nothing."""

    repo: str
    commit: str | None
    downloads: int | None
    likes: int | None
    updated: str | None
    gated: bool
    quantisations: tuple[Quantisation, ...] = ()
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Cluster:
    """What a plan needs to know of a cluster, as module cluster_plan takes it."""

    release: object
    settings: Mapping[str, Any]
    inventory: tuple[str, ...]
    declared_nodes: Mapping[str, Any]
    nodes: Mapping[str, NodeFacts]
    builders: tuple[str, ...]
    builder_nodes: Mapping[str, NodeFacts]
    static: bool

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cluster:
        """Read cluster_plan's arguments; those that speak of instances and models are not looked at."""
        return cls(
            release=data.get("release"),
            settings=data.get("settings") or {},
            inventory=tuple(data.get("inventory_nodes") or ()),
            declared_nodes=data.get("declared_nodes") or {},
            nodes={name: NodeFacts.from_dict(facts) for name, facts in (data.get("nodes") or {}).items()},
            builders=tuple(data.get("builders") or ()),
            builder_nodes={
                name: NodeFacts.from_dict(facts) for name, facts in (data.get("builder_nodes") or {}).items()
            },
            static=bool(data.get("static")),
        )

    def problems(self) -> list[Problem]:
        """Return what stands against any plan, whatever the model."""
        declared, problems = self._declared([])
        if problems:
            return problems
        try:
            make_plan(declared, self.nodes, {}, self.builder_nodes)
        except PlanError as error:
            return error.problems
        return []

    def memory(self) -> int:
        """Return the bytes of all that computes: of GPUs, and of the hosts that have none."""
        declared, _problems = self._declared([])
        pool = Pool.of(declared, self.nodes)
        return sum(device.memory_bytes for node in pool.nodes.values() for device in node.devices)

    def verdict(self, repo: Repository, quantisation: Quantisation, facts: ModelFacts) -> Verdict:
        """Plan a cluster that has this model alone."""
        instance = {
            "name": INSTANCE,
            "model": {"repo": repo.repo, "quant": quantisation.name},
            "nodes": "auto",
            "context": "auto",
        }
        declared, problems = self._declared([instance])
        files = tuple(map(SourceFile, quantisation.files, quantisation.sizes, quantisation.sha256))
        looked = {INSTANCE: {quantisation.name: Found(facts, files=files, commit=repo.commit)}}
        try:
            if problems:
                raise PlanError(problems)
            plan = make_plan(declared, self.nodes, looked, self.builder_nodes)
        except PlanError as error:
            why = "; ".join(problem.fix.replace(_UNFIT, "", 1) for problem in error.problems)
            return Verdict(False, why, n_ctx_train=facts.n_ctx_train)
        (planned,) = plan["instances"]
        return Verdict(
            fits=True,
            why=planned["why"],
            strategy=planned["strategy"],
            devices=tuple("%s of %s" % (item["local_device"], item["node"]) for item in planned["devices"]),
            context=planned["context"],
            n_ctx_train=facts.n_ctx_train,
        )

    def _declared(self, instances: list[dict[str, Any]]) -> tuple[Declared, list[Problem]]:
        return parse(
            self.release,
            instances,
            self.settings,
            self.inventory,
            self.declared_nodes,
            self.builders,
            self.static,
        )


def hub(endpoint: str, token: str | None) -> HfApi:
    """Return the hub's own client. Raises :class:`ImportError` without huggingface_hub."""
    # Read when it is imported: nobody is told who searches here, and what fails is said once, by us.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token or False, library_name="llamacpp.cluster")


def find(
    api: HfApi,
    query: str | None,
    author: str | None,
    limit: int,
    sort: str,
    say: Callable[[str], None],
) -> list[Repository]:
    """Return the repositories that a hub finds, in its order, each with its quantisations, largest first.

    ``query``: what their names contain. ``sort``: one of :data:`SORTS`. Raises :class:`SearchError`.
    """
    from huggingface_hub.errors import HTTPError

    try:
        found = list(
            api.list_models(
                search=query,
                author=author,
                filter=TAG,
                sort=sort,  # type: ignore[arg-type]  # a Literal of SORTS
                limit=limit,
                expand=list(EXPAND),  # type: ignore[arg-type]  # a Literal of EXPAND
            )
        )
    except (HTTPError, OSError) as error:
        raise SearchError("%s does not answer: %s" % (api.endpoint, _words(error))) from error
    repositories = []
    for number, info in enumerate(found, 1):
        say("files of repository %d of %d, %s" % (number, len(found), info.id))
        repository = Repository(
            repo=info.id,
            commit=info.sha,
            downloads=info.downloads,
            likes=info.likes,
            updated=info.last_modified.strftime("%Y-%m-%d") if info.last_modified else None,
            gated=bool(info.gated),
        )
        try:
            listed = _quantisations(api, info.id, info.sha or DEFAULT_REVISION)
        except (HTTPError, OSError) as error:
            repositories.append(dataclasses.replace(repository, error=_words(error)))
            continue
        lack = "" if listed else "it has no complete GGUF model"
        repositories.append(dataclasses.replace(repository, quantisations=listed, error=lack))
    return repositories


def judge(
    repositories: Sequence[Repository],
    cluster: Cluster,
    headers: int,
    read: Callable[[str], ModelFacts],
    say: Callable[[str], None],
) -> list[Repository]:
    """Return the repositories with a verdict on ``headers`` of their quantisations, one of each repository in turn.

    ``read``: reads the header at an address; may raise what :func:`read_model` raises. The rest has a verdict
    that says that nobody looked.
    """
    verdicts: dict[tuple[str, str], Verdict] = {}
    turns = list(in_turn(repositories, cluster.memory()))
    for number, (repository, quantisation) in enumerate(turns[:headers], 1):
        say("header %d of %d, %s %s" % (number, min(headers, len(turns)), repository.repo, quantisation.name))
        try:
            verdict = cluster.verdict(repository, quantisation, read(quantisation.urls[0]))
        except (GgufError, OSError) as error:
            verdict = Verdict(None, error.message if isinstance(error, RemoteError) else str(error))
        verdicts[repository.repo, quantisation.name] = verdict
    nobody = Verdict(None, NOT_LOOKED_AT)
    return [
        dataclasses.replace(
            item,
            quantisations=tuple(
                dataclasses.replace(each, verdict=verdicts.get((item.repo, each.name), nobody))
                for each in item.quantisations
            ),
        )
        for item in repositories
    ]


def in_turn(repositories: Sequence[Repository], memory: int) -> Iterator[tuple[Repository, Quantisation]]:
    """Return what is looked at first: one of each repository at a time, the most promising before others.

    That is the largest whose files are no larger than ``memory`` (bytes), as people want the best that fits; what
    is larger comes last, smallest first. The order alone depends on it, no verdict.
    """

    def key(item: Quantisation) -> tuple[bool, int]:
        return item.bytes > memory, item.bytes if item.bytes > memory else -item.bytes

    queues = [(item, sorted(item.quantisations, key=key)) for item in repositories]
    for place in range(max((len(queue) for _item, queue in queues), default=0)):
        for repository, queue in queues:
            if place < len(queue):
                yield repository, queue[place]


def reader(token: str | None, timeout: float) -> Callable[[str], ModelFacts]:
    """Return what reads the header at an address, by ranges."""
    return lambda url: read_model(url, token=token, timeout=timeout)


def _quantisations(api: HfApi, repo: str, revision: str) -> tuple[Quantisation, ...]:
    """Return the quantisations of a repository, largest first."""
    from huggingface_hub.hf_api import RepoFile

    files = [
        HubFile(item.path, item.size, item.lfs.sha256 if item.lfs else None)
        for item in api.list_repo_tree(repo, recursive=True, revision=revision)
        if isinstance(item, RepoFile)
    ]
    sizes = {item.name: item.size for item in files}
    found = [
        Quantisation(
            name=name,
            files=tuple(item["files"]),
            urls=tuple(_url(api.endpoint, repo, revision, file) for file in item["files"]),
            sizes=tuple(sizes[file] for file in item["files"]),
            sha256=tuple(item["sha256"]),
            bytes=item["bytes"],
        )
        for name, item in quantisations(sorted(files)).items()
    ]
    return tuple(sorted(found, key=lambda item: (-item.bytes, item.name)))


def _url(endpoint: str, repo: str, revision: str, file: str) -> str:
    return "%s/%s/resolve/%s/%s" % (endpoint, repo, quote(revision, safe=""), quote(file))


def _words(error: Exception) -> str:
    """Return the first line of what the client says, which goes on with addresses and advice of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
