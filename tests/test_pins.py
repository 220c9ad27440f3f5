"""Packages that roles bring to nodes have the versions of pyproject.toml, where all pins stand."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
ROLE = ROOT / "collections" / "ansible_collections" / "llamacpp" / "cluster" / "roles" / "models"


def groups() -> dict[str, list[str]]:
    """The dependency groups of pyproject.toml, without those that they include."""
    with open(ROOT / "pyproject.toml", "rb") as stream:
        found: dict[str, list[Any]] = tomllib.load(stream)["dependency-groups"]
    return {name: [pin for pin in pins if isinstance(pin, str)] for name, pins in found.items()}


def role_variables() -> dict[str, Any]:
    """The variables of role models."""
    loaded: dict[str, Any] = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
    return loaded


def test_the_converter_gets_what_is_pinned() -> None:
    assert role_variables()["__models_pins"]["convert"] == groups()["convert"]


def test_the_swarm_gets_what_is_tested() -> None:
    assert set(role_variables()["__models_pins"]["swarm"]) <= set(groups()["test"])


def test_the_hub_is_asked_by_the_same_client_as_on_the_control_node() -> None:
    (wanted,) = (item for item in groups()["control"] if item.startswith("huggingface_hub=="))
    pins = role_variables()["__models_hub_pins"]
    assert pins["newer"] == [wanted]
    # For Python 3.9 there is no newer one.
    assert {name for name, found in pins.items() if wanted not in found} == {"3.9"}


def test_what_nodes_alone_get_is_pinned_with_the_rest() -> None:
    variables = role_variables()
    hub = {pin for pins in variables["__models_hub_pins"].values() for pin in pins}
    assert (hub | {variables["__models_pip"]}) - set(groups()["control"]) == set(groups()["nodes"])
