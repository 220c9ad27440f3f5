#!/usr/bin/env python3
"""Write the tables of variables in the roles' README.md and in docs/variables.md.

They come from each role's meta/argument_specs.yml (types and words) and defaults/main.yml (values), so that nothing
is written twice. Only the text between the two markers of a file is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
ROLES = ROOT / "collections" / "ansible_collections" / "llamacpp" / "cluster" / "roles"
VARIABLES = ROOT / "docs" / "variables.md"
BEGIN = "<!-- scripts/role_docs.py writes from here -->"
END = "<!-- scripts/role_docs.py writes to here -->"

# "{{ llamacpp_prefix | default('/opt/llamacpp') }}/more"
_SHARED = re.compile(r"^\{\{ (llamacpp_\w+)(?: \| default\((.*)\))? \}\}(.*)$")
_HOME = re.compile(r"lookup\('ansible\.builtin\.env', 'HOME'\) ~ '([^']*)'")
# Markup of Ansible's documentation: V(value), O(option), RV(module#module:value) and so on.
_MARKUP = re.compile(r"\b(?:RV|C|M|O|P|V)\(((?:[^()]|\([^()]*\))*)\)")
UNSET = "none; it has to be set"
# The playbooks set it from what preflight leaves behind; nobody writes it.
INTERNAL = frozenset(["llamacpp_plan"])


@dataclass(frozen=True)
class Variable:
    """One default of a role.

    ``default`` as people read it. ``shared``: the variable that sets it for all roles, empty when there is none;
    ``shared_default`` is that variable's own, which a role may append to.
    """

    role: str
    name: str
    kind: str
    default: str
    shared: str
    shared_default: str
    description: str


def plain(text: str) -> str:
    """Turn the markup of Ansible's documentation into Markdown."""

    def name(match: re.Match[str]) -> str:
        owner, separator, value = match.group(1).partition("#")
        if not separator:
            return f"`{owner}`"
        value = value.partition(":")[2]
        return f"`{value}` of `{owner}`" if value else f"`{owner}`"

    return _MARKUP.sub(name, text)


def description_of(spec: dict[str, Any]) -> str:
    """The description of an option, one paragraph. A nested option becomes a sentence of its own."""
    paragraphs = spec["description"]
    text = " ".join([paragraphs] if isinstance(paragraphs, str) else paragraphs)
    for name, option in spec.get("options", {}).items():
        text += f" C({name}): {description_of(option)}"
    return plain(text)


def kind_of(spec: dict[str, Any]) -> str:
    """The type of an option with its choices."""
    kind = f"{spec['type']} of {spec['elements']}" if "elements" in spec else str(spec["type"])
    return f"{kind}: {', '.join(f'`{choice}`' for choice in spec['choices'])}" if "choices" in spec else kind


def default_of(value: object) -> tuple[str, str, str]:
    """A default as Markdown, the shared variable that it follows, and that one's default (empty: follows none)."""
    if not isinstance(value, str) or "{{" not in value:
        return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`", "", ""
    match = _SHARED.match(value)
    if match is None:
        return f"`{value.strip('{} ')}`", "", ""
    shared, fallback, rest = match.groups()
    if fallback is None:
        return UNSET, shared, UNSET
    text = _HOME.sub(r"~\1", fallback)
    text = text[1:-1] if re.fullmatch(r"'[^']*'", text) else text
    return f"`{text}{rest}`" if text + rest else "empty", shared, f"`{text}`" if text else "empty"


def variables(role: Path) -> list[Variable]:
    """The defaults of a role, in the order of defaults/main.yml."""
    options = entry_points(role)["main"]["options"]
    found = []
    for name, value in yaml.safe_load((role / "defaults" / "main.yml").read_text("utf-8")).items():
        if name not in options:
            raise ValueError(f"{role / 'meta' / 'argument_specs.yml'}: say what {name} is, under main")
        spec = options[name]
        found.append(Variable(role.name, name, kind_of(spec), *default_of(value), description_of(spec)))
    return found


def entry_points(role: Path) -> dict[str, Any]:
    """The argument specs of a role by entry point, which is the name of a file in tasks/."""
    specs: dict[str, Any] = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text("utf-8"))["argument_specs"]
    return specs


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    for row in rows:
        cells = " | ".join(cell.replace("|", "\\|") for cell in row)
        lines.append(f"| {cells} |")
    return lines


def role_section(role: Path) -> str:
    """Entry points and variables of one role."""
    lines = ["## Entry points", ""]
    for name, spec in entry_points(role).items():
        lines.append(f"- `{name}`: {spec['short_description']}. {plain(' '.join(spec['description']))}")
    lines += ["", "## Variables", ""]
    rows = [
        (f"`{item.name}`", item.kind, item.default, f"`{item.shared}`" if item.shared else "", item.description)
        for item in variables(role)
    ]
    return "\n".join([*lines, *table(("Variable", "Type", "Default", "Set for all roles by", "Meaning"), rows)])


def shared_section() -> str:
    """The variables that several roles follow, and whatever follows them."""
    followers: dict[str, list[Variable]] = {}
    for role in sorted(ROLES.iterdir()):
        for item in variables(role):
            if item.shared and item.shared not in INTERNAL:
                followers.setdefault(item.shared, []).append(item)
    rows = []
    for shared, items in sorted(followers.items()):
        # The preflight role explains the variables that all roles share best: there they are checked.
        first = min(items, key=lambda item: item.role != "preflight")
        defaults = {item.shared_default for item in items}
        if len(defaults) != 1:
            raise ValueError(f"the roles do not agree on the default of {shared}: {', '.join(sorted(defaults))}")
        names = ", ".join(f"`{item.name}`" for item in items)
        rows.append((f"`{shared}`", first.kind, first.shared_default, first.description, names))
    return "\n".join(table(("Variable", "Type", "Default", "Meaning", "Roles' variables that follow it"), rows))


def replaced(text: str, section: str) -> str:
    """``text`` with ``section`` between its markers. Raises ValueError when it lacks them."""
    before, begin, rest = text.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"put the lines {BEGIN!r} and {END!r} where the tables belong")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def pages() -> dict[Path, str]:
    """Every file that holds tables, with the text that it should have."""
    wanted = {}
    for path, section in [
        *((role / "README.md", role_section(role)) for role in sorted(ROLES.iterdir())),
        (VARIABLES, shared_section()),
    ]:
        try:
            wanted[path] = replaced(path.read_text("utf-8"), section)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(ROOT)}: {error}") from error
    return wanted


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a table is out of date")
    arguments = parser.parse_args(argv)
    try:
        stale = {path: text for path, text in pages().items() if path.read_text("utf-8") != text}
    except (OSError, ValueError) as error:
        print(f"role_docs: {error}", file=sys.stderr)
        return 1
    for path, text in stale.items():
        if arguments.check:
            print(
                f"{path.relative_to(ROOT)} is out of date: run .venv/bin/python scripts/role_docs.py", file=sys.stderr
            )
        else:
            path.write_text(text, "utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
