"""Roles say of every variable what it is: argument specs, defaults, comments and READMEs agree."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import role_docs
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

ROOT = Path(__file__).resolve().parent.parent
ROLES = {path.name: path for path in sorted(role_docs.ROLES.iterdir())}
PLAYBOOKS = [*sorted((ROOT / "playbooks").glob("*.yml")), *sorted((ROOT / "molecule").rglob("*.yml"))]
ENTRIES = [(role, entry) for role, path in ROLES.items() for entry in role_docs.entry_points(path)]
ALL_ROLES = pytest.mark.parametrize("role", ROLES)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def defaults(role: str) -> dict[str, Any]:
    values: dict[str, Any] = load(ROLES[role] / "defaults" / "main.yml")
    return values


def spec(role: str, entry: str = "main") -> dict[str, Any]:
    options: dict[str, Any] = role_docs.entry_points(ROLES[role])[entry]["options"]
    return options


def is_literal(value: object) -> bool:
    return "{{" not in str(value)


def described(options: dict[str, Any]) -> list[str]:
    """Names of options, nested ones too, that have no description."""
    missing = [name for name, option in options.items() if not option.get("description")]
    for option in options.values():
        missing += described(option.get("options", {}))
    return missing


def imported_entries(node: Any) -> set[tuple[str, str]]:
    """Role and entry point of every role that a playbook, read as YAML, runs."""
    if isinstance(node, list):
        return {entry for item in node for entry in imported_entries(item)}
    if not isinstance(node, dict):
        return set()
    found = set()
    for key, value in node.items():
        if key == "roles":
            found |= {(item if isinstance(item, str) else item["role"], "main") for item in value}
        elif key.split(".")[-1] in ("import_role", "include_role"):
            entry = value.get("tasks_from", "main").removesuffix(".yml")
            found |= {(value["name"].replace("{{ item }}", str(item)), entry) for item in node.get("loop", [None])}
        else:
            found |= imported_entries(value)
    return {(name.removeprefix("llamacpp.cluster."), entry) for name, entry in found}


def names_made(tasks: Any) -> set[str]:
    """Variables that tasks register, set or loop over."""
    found = set()
    for task in tasks or []:
        found |= {task["register"]} if "register" in task else set()
        found |= set(task.get("ansible.builtin.set_fact", {})) - {"cacheable"}
        found |= {task["loop_control"]["loop_var"]} if "loop_var" in task.get("loop_control", {}) else set()
        for block in ("block", "rescue", "always"):
            found |= names_made(task.get(block))
    return found


@ALL_ROLES
def test_main_takes_exactly_the_defaults(role: str) -> None:
    assert set(spec(role)) == set(defaults(role))


@pytest.mark.parametrize(("role", "entry"), ENTRIES)
def test_entry_points_are_files_and_mean_the_same_by_a_variable(role: str, entry: str) -> None:
    assert (ROLES[role] / "tasks" / f"{entry}.yml").is_file()
    main = spec(role)
    assert {name: option for name, option in spec(role, entry).items() if main.get(name) != option} == {}


@pytest.mark.parametrize(("role", "entry"), ENTRIES)
def test_everything_is_described(role: str, entry: str) -> None:
    described_entry = role_docs.entry_points(ROLES[role])[entry]
    assert described_entry["short_description"]
    assert described_entry["description"]
    assert described(spec(role, entry)) == []


@ALL_ROLES
def test_a_spec_repeats_a_default_only_where_it_is_a_literal(role: str) -> None:
    literals = {name: value for name, value in defaults(role).items() if is_literal(value)}
    assert {name: option["default"] for name, option in spec(role).items() if "default" in option} == literals


@ALL_ROLES
def test_ansible_takes_the_defaults(role: str) -> None:
    literals = {name: value for name, value in defaults(role).items() if is_literal(value)}
    checked = ArgumentSpecValidator(spec(role)).validate(literals, validate_role_argument_spec=True)
    assert checked.error_messages == []


@ALL_ROLES
def test_every_default_has_a_comment_of_its_own(role: str) -> None:
    lines = (ROLES[role] / "defaults" / "main.yml").read_text("utf-8").splitlines()
    bare = [name for before, name in pairwise(lines) if re.match(r"\w+:", name) and not re.match(r"# \S", before)]
    assert bare == []


@ALL_ROLES
def test_every_name_begins_with_the_role(role: str) -> None:
    internal = set(load(ROLES[role] / "vars" / "main.yml")) if (ROLES[role] / "vars").exists() else set()
    made = {name for path in (ROLES[role] / "tasks").glob("*.yml") for name in names_made(load(path))}
    foreign = [name for name in defaults(role) if not name.startswith(f"{role}_")]
    foreign += [name for name in internal if not name.startswith(f"__{role}_")]
    foreign += [name for name in made if not name.startswith((f"{role}_", f"__{role}_"))]
    assert foreign == []


def test_every_entry_point_that_a_playbook_uses_has_its_arguments_checked() -> None:
    used = {entry for path in PLAYBOOKS for entry in imported_entries(load(path))}
    assert {"main", "retire", "render", "reset"} <= {entry for _role, entry in used}, "playbooks not understood"
    assert used - set(ENTRIES) == set()


def test_tables_in_the_documentation_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert role_docs.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, ("`7`", "", "")),
        ("/usr/local/cuda", ("`/usr/local/cuda`", "", "")),
        ("{{ llamacpp_plan }}", (role_docs.UNSET, "llamacpp_plan", role_docs.UNSET)),
        ("{{ llamacpp_user | default('llamacpp') }}", ("`llamacpp`", "llamacpp_user", "`llamacpp`")),
        ("{{ llamacpp_plan_path | default('') }}", ("empty", "llamacpp_plan_path", "empty")),
        (
            "{{ llamacpp_cache | default(lookup('ansible.builtin.env', 'HOME') ~ '/.cache/x') }}/models",
            ("`~/.cache/x/models`", "llamacpp_cache", "`~/.cache/x`"),
        ),
        ("{{ groups['all'] | first }}", ("`groups['all'] | first`", "", "")),
    ],
)
def test_defaults_read_as_people_would_write_them(value: object, expected: tuple[str, str, str]) -> None:
    assert role_docs.default_of(value) == expected


def test_markup_becomes_markdown() -> None:
    text = 'V(["70"]) for O(a_b), RV(x.y.cluster_plan#module:plan), M(x.y.z), C(f(x))'
    assert role_docs.plain(text) == '`["70"]` for `a_b`, `plan` of `x.y.cluster_plan`, `x.y.z`, `f(x)`'


def test_a_page_without_markers_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="put the lines"):
        role_docs.replaced("# A page\n", "section")
