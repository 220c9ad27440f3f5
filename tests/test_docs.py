"""The documentation speaks of what is there: variables and keys by their names, links to files that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _parse, _parse_instance, _parse_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._flags import FLAGS

ROOT = Path(__file__).resolve().parent.parent
VARIABLES = (ROOT / "docs" / "variables.md").read_text("utf-8")
# What roles and playbooks understand; tests and the demo have names of their own.
SOURCES = ("collections/ansible_collections/llamacpp/cluster/roles", "playbooks", "group_vars", "inventories")
# Groups of the inventory, and the name of the project's tables and units.
NO_VARIABLES = {"llamacpp_nodes", "llamacpp_builders"}
MINIMAL = {"name": "demo", "model": {"path": "/srv/demo.gguf"}, "nodes": ["node1", "node2"]}


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows, so that what a build or a test leaves behind is not looked at."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


PAGES = tracked("*.md")


def rows(section: str) -> dict[str, list[str]]:
    """The first table below a heading of docs/variables.md: the key in the first column -> the other cells."""
    body = VARIABLES.partition(f"\n## {section}\n")[2]
    lines = re.search(r"^\|.*\n\|[ \-|]+\n((?:\|.*\n)+)", body, re.MULTILINE)
    assert lines, f"no table below {section}"
    found = {}
    for line in lines.group(1).splitlines():
        key, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        found[key.strip("`")] = cells
    return found


def parsed(**keys: Any) -> tuple[Any, list[Any]]:
    """An instance with these keys beside the required ones, and the problems with it."""
    instance = {**MINIMAL, **keys}
    declared, problems = _parse.parse("b1", [instance], {}, ["node1", "node2"], {}, ["node1"], False)
    return (declared.instances[0] if declared.instances else None), problems


def test_every_key_of_an_instance_has_its_row() -> None:
    assert list(rows("An instance")) == list(_parse_instance.INSTANCE_KEYS)


def test_every_key_of_a_model_has_its_row() -> None:
    assert list(rows("Its model")) == list(_parse_model.MODEL_KEYS)


def test_every_variable_of_a_node_has_its_row() -> None:
    assert list(rows("A node")) == [f"llamacpp_{name}" for name in _parse.NODE_KEYS]
    assert set(rows("The release of a node")) == {f"llamacpp_{name}" for name in _parse.BUILD_KEYS}


def test_every_key_of_a_device_has_its_row() -> None:
    body = VARIABLES.partition("\nA device:\n")[2]
    assert set(_parse.DEVICE_KEYS) == set(re.findall(r"^\| `(\w+)` \|", body.partition("\n## ")[0], re.MULTILINE))


def test_defaults_of_an_instance_are_those_of_the_code() -> None:
    instance, problems = parsed()
    assert problems == []
    literal = {key: cells[2].strip("`") for key, cells in rows("An instance").items() if re.match(r"`.*`$", cells[2])}
    assert {"context", "host", "cpu_moe", "environment"} <= set(literal), "the table was not understood"
    found = {key: getattr(instance, key) for key in literal}
    written = {(): "[]", False: "false"}
    assert literal == {key: written.get(value, str(value)) if value != {} else "{}" for key, value in found.items()}


@pytest.mark.parametrize("key", ["split_mode", "cache_type_k", "flash_attention"])
def test_allowed_words_of_an_instance_are_those_of_the_code(key: str) -> None:
    words = re.findall(r"`(\w+)`", rows("An instance")[key][3])
    assert [word for word in words if parsed(nodes=["node1"], **{key: word})[1]] == []
    message = str(parsed(**{key: "nonsense"})[1][0])
    assert message.removesuffix(", or auto").endswith(f"must be one of {', '.join(words)}")


@pytest.mark.parametrize(("key", "bounds"), [("context", (1, 1 << 27)), ("parallel", (1, 256)), ("port", (1, 65535))])
def test_bounds_of_an_instance_are_those_of_the_code(key: str, bounds: tuple[int, int]) -> None:
    low, high = (int(number) for number in rows("An instance")[key][3].split(" to "))
    assert (low, high) == bounds
    assert [bool(parsed(**{key: number})[1]) for number in (low - 1, low, high, high + 1)] == [True, False, False, True]


def test_flags_in_the_table_are_flags_of_the_plan() -> None:
    flags = set(re.findall(r"`(--[a-z-]+)`", str(list(rows("An instance").values()))))
    assert flags
    assert flags <= {flag.name for flag in FLAGS}


def test_every_shared_variable_is_documented_and_every_documented_one_is_used() -> None:
    used = {
        name
        for path in tracked(*(f"{source}/*.{ending}" for source in SOURCES for ending in ("yml", "j2")))
        for name in re.findall(r"\bllamacpp_[a-z_]*[a-z]\b", path.read_text("utf-8"))
    }
    used |= {f"llamacpp_{name}" for name in _parse.HOST_KEYS}
    used = {name for name in used if not name.startswith("vault_")} - NO_VARIABLES
    documented = set(re.findall(r"`(llamacpp_[a-z_]+)`", VARIABLES)) - NO_VARIABLES
    assert used - documented == set(), "not in docs/variables.md"
    assert documented - used == set(), "in docs/variables.md, but nothing reads it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text)
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
    assert named - targets == set()


def messages(page: str) -> list[str]:
    """What docs/troubleshooting.md quotes in the first column of its tables of messages, cut at each …"""
    cells = re.findall(r"^\| (`[^|]*`) ?(?:\([^|]*\) )?\|", page, re.MULTILINE)
    parts = [part.strip(" :`") for cell in cells for part in cell.split("…")]
    return [part for part in parts if len(part) > 3]


def test_messages_in_troubleshooting_are_still_said() -> None:
    said = "\n".join(
        path.read_text("utf-8")
        for path in tracked("collections/ansible_collections/llamacpp/cluster/**")
        if path.suffix in (".py", ".yml") and "tests" not in path.parts
    )
    # Text that goes on in the next line of the source.
    said = re.sub(r'"\n\s+"', "", said)
    quoted = messages((ROOT / "docs" / "troubleshooting.md").read_text("utf-8"))
    others = {"Validation of arguments failed", "401"}  # Ansible and llama-server say these
    assert len(quoted) > 20, "the page was not understood"
    assert [part for part in quoted if part not in said and part not in others] == []
