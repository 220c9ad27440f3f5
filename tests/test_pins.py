"""Packages that roles bring to nodes have the versions of pyproject.toml, where all pins stand."""

from __future__ import annotations

import re
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


def role_pins() -> dict[str, list[str]]:
    """The pins of role models, by environment."""
    loaded = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = loaded["__models_pins"]
    return found


def test_the_converter_gets_what_is_pinned() -> None:
    assert role_pins()["convert"] == groups()["convert"]


def test_the_swarm_gets_what_is_tested() -> None:
    assert set(role_pins()["swarm"]) <= set(groups()["test"])


def test_the_hub_is_asked_by_the_same_client_as_on_the_control_node() -> None:
    (pin,) = role_pins()["hub"]
    (wanted,) = (item for item in groups()["control"] if item.startswith("huggingface_hub=="))
    # The other version is for Python 3.9, for which there is no newer one.
    versions = re.findall(r"'([0-9.]+)'", pin.partition("ternary")[2])
    assert wanted.partition("==")[2] in versions
    assert pin.startswith("huggingface_hub==")
