# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show to a person what a search found, what is in the stores of a cluster, and what a scrub found; plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import size_text

WIDTH = 110
# Characters of a reason. The planner names every device and what would fit instead; the result of the module has all.
REASON = 160
STORES = ("node", "model", "size", "own", "state", "here since", "last wanted", "running since", "used by")
_FITS = {True: "yes", False: "no", None: "?"}
_INDENT = "  "


def search_table(found: Mapping[str, Any]) -> str:
    """Return what module model_search found: a block a repository, a line a quantisation, and what to write.

    Whether a quantisation fits stands there where a cluster was given.
    """
    repositories = found["repositories"]
    if not repositories:
        return "%s has no repository with GGUF files of that name; search for less." % found["endpoint"]
    asked = any(item["verdict"]["fits"] is not None or item["verdict"]["why"] for item in _all(repositories))
    name = max([len(item["name"]) for item in _all(repositories)], default=0)
    size = max([len(size_text(item["bytes"])) for item in _all(repositories)], default=0)
    lines: list[str] = []
    for repository in repositories:
        lines += ["", *_wrapped("%s  (%s)" % (repository["repo"], _known(repository)), "", _INDENT)]
        if repository["error"]:
            lines += _wrapped(repository["error"], _INDENT, _INDENT)
        for item in repository["quantisations"]:
            start = "%s%s  %s" % (_INDENT, item["name"].ljust(name), size_text(item["bytes"]).rjust(size))
            if asked:
                start += "  %s  " % _FITS[item["verdict"]["fits"]].ljust(3)
            lines += _wrapped(_how(item["verdict"]), start, " " * len(start)) if asked else [start]
    lines += _advice(repositories, asked)
    for problem in found["problems"]:
        lines += _wrapped("no model was tried: %s" % problem, "", _INDENT)
    return "\n".join(lines[1:])


def stores_table(nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what is in the stores, a line a model, and what each store takes and has left.

    ``nodes``: node -> result of module model_info. Times in UTC.
    """
    rows = [list(STORES)]
    for node, found in nodes.items():
        shown = node
        for model in found["models"]:
            rows.append([shown, *_cells(model)])
            shown = ""
        for name in found["missing"]:
            rows.append([shown, name, "", "", "missing", *[""] * (len(STORES) - 5)])
            shown = ""
        if shown:
            rows.append([shown, "none", *[""] * (len(STORES) - 2)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(STORES))]
    lines = [_INDENT.join(_cell(*part) for part in zip(row, widths, STORES)).rstrip() for row in rows]
    lines.insert(1, _INDENT.join("-" * width for width in widths))
    lines.append("")
    for node, found in nodes.items():
        lines.append(
            "%s: %s in its store, %s free" % (node, size_text(found["store_bytes"]), size_text(found["free_bytes"]))
        )
    return "\n".join(lines)


def scrub_report(nodes: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Return what was found wrong, and what to do.

    ``nodes``: node -> results of modules model_store and rpc_cache with the state scrubbed, also when they failed;
    empty for what nobody looked at.
    """
    lines: list[str] = []
    models = False
    for node, (store, cache) in nodes.items():
        stored = store.get("findings", ())
        found = [("%s %s" % (", ".join(item["names"]), item["file"]), item) for item in stored]
        models = models or bool(found)
        found += [
            ("cached tensor %s" % item["name"], {"problem": item["why"], "moved_to": item["path"]})
            for item in cache.get("findings", ())
        ]
        for what, item in found:
            lines += _wrapped("%s: %s: %s" % (node, what.strip(), item["problem"]), "", _INDENT)
            lines += [_INDENT + "now in %s" % item["moved_to"]] if item["moved_to"] else []
        for result in (store, cache):
            lines += _wrapped("%s: %s" % (node, result["msg"]), "", _INDENT) if result.get("failed") else []
    lines = lines or ["Every file is what its name says."]
    lines.append("")
    for node, (_store, cache) in nodes.items():
        if "entries" in cache:
            gone = ", %d removed for the quota" % len(cache["evicted"]) if cache["evicted"] else ""
            lines.append("%s: %d cached tensors, %s%s" % (node, cache["entries"], size_text(cache["bytes"]), gone))
    if models:
        lines.append("What was found broken is missing now: run playbooks/site.yml, which brings it again.")
    return "\n".join(lines).rstrip()


def _all(repositories: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [item for repository in repositories for item in repository["quantisations"]]


def _known(repository: Mapping[str, Any]) -> str:
    """Return what the hub says of a repository."""
    words = ["%s %s" % (_count(repository[key]), key) for key in ("downloads", "likes") if repository[key] is not None]
    if repository["updated"]:
        words.append("changed on %s" % repository["updated"])
    if repository["gated"]:
        words.append("gated: accept its licence on its page")
    return ", ".join(words) or "the hub says nothing of it"


def _count(number: int) -> str:
    for unit, letter in ((1000000, "M"), (1000, "k")):
        if number >= unit:
            return "%.1f%s" % (number / unit, letter)
    return str(number)


def _how(verdict: Mapping[str, Any]) -> str:
    """Return how a quantisation would be served, or why not."""
    if not verdict["fits"]:
        return textwrap.shorten(str(verdict["why"]), REASON, placeholder=" ...")
    text = "%s on %s, context %d" % (verdict["strategy"], ", ".join(verdict["devices"]), verdict["context"])
    trained = verdict["n_ctx_train"]
    return "%s of %d" % (text, trained) if trained else text


def _advice(repositories: Sequence[Mapping[str, Any]], asked: bool) -> list[str]:
    """Return what an operator writes to get the best that fits of the first repository that has one."""
    for repository in repositories:
        for item in repository["quantisations"]:
            if not asked or item["verdict"]["fits"]:
                model = "model: {repo: %s, revision: %s, quant: %s}" % (
                    repository["repo"],
                    repository["commit"] or "main",
                    item["name"],
                )
                return ["", "To have one, write in its instance, such as:", _INDENT + model]
    return []


def _wrapped(text: str, first: str, other: str) -> list[str]:
    wrapper = textwrap.TextWrapper(
        max(WIDTH, len(first) + 40),
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text) or [first.rstrip()]


def _cells(model: Mapping[str, Any]) -> list[str]:
    return [
        str(model["name"]),
        size_text(model["bytes"]),
        size_text(model["own_bytes"]),
        "complete" if model["complete"] else "incomplete",
        str(model["created"] or "")[:10],
        str(model["last_used"] or "")[:10],
        str(model["used_since"] or "")[:16].replace("T", " "),
        ", ".join(model["used_by"]),
    ]


def _cell(text: str, width: int, heading: str) -> str:
    return text.rjust(width) if heading in ("size", "own") else text.ljust(width)
