# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The manifest of a bundle: what it says, and what is refused."""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle import (
    BundleError,
    Manifest,
    Member,
    damage,
    member_path,
    parse_manifest,
    same_content,
    shortage,
)

SHA = "ab" * 32
MODEL = Member("models/0123/small.gguf", "model", "small.gguf", 7, SHA, {"needed_by": ["demo"]})
WHEEL = Member("wheels/one-1-py3-none-any.whl", "wheel", "one-1-py3-none-any.whl", 3, SHA)
MANIFEST = Manifest("2026-11-21T16:00:00Z", {"for": "b11434 on node1"}, (MODEL, WHEEL))


def test_a_manifest_reads_as_it_was_written():
    assert parse_manifest(MANIFEST.text()) == MANIFEST


def test_its_id_follows_from_the_members_alone():
    later = Manifest("2027-01-01T00:00:00Z", {"for": "somebody else"}, MANIFEST.members)
    assert later.id == MANIFEST.id
    assert Manifest(MANIFEST.created_at, MANIFEST.about, (MODEL,)).id != MANIFEST.id


def test_content_is_members_and_purpose():
    assert same_content(MANIFEST, [MODEL, WHEEL], {"for": "b11434 on node1"})
    assert not same_content(MANIFEST, [MODEL], {"for": "b11434 on node1"})
    assert not same_content(MANIFEST, [MODEL, WHEEL], {"for": "b11401 on node1"})


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../models/small.gguf",
        "models/../../small.gguf",
        "models//small.gguf",
        "models",
        "wheels/small.gguf",
        "models/a\nb",
        7,
    ],
)
def test_a_member_lies_below_the_directory_of_its_kind(path):
    data = MANIFEST.as_dict()
    data["members"][0]["path"] = path
    with pytest.raises(BundleError, match="no bundle has"):
        parse_manifest(json.dumps(data))


def test_a_path_twice_is_refused():
    data = MANIFEST.as_dict()
    data["members"].append(data["members"][0])
    with pytest.raises(BundleError, match="one path twice"):
        parse_manifest(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "created_at": "", "about": {}}'])
def test_what_is_no_manifest_says_what_to_do(text):
    with pytest.raises(BundleError, match=r"cannot be read .*run playbooks/bundle.yml"):
        parse_manifest(text)


def test_another_schema_is_named():
    with pytest.raises(BundleError, match="schema 2, this version of the collection reads 1"):
        parse_manifest(json.dumps(dict(MANIFEST.as_dict(), schema=2)))


def test_members_have_folders_of_their_own():
    assert member_path("model", "small.gguf", "0123") == "models/0123/small.gguf"
    assert member_path("source", "llama.cpp-pypi-b11434.tar.gz") == "sources/llama.cpp-pypi-b11434.tar.gz"


@pytest.mark.parametrize(("kind", "name"), [("weights", "a"), ("model", "../a"), ("model", "")])
def test_a_member_that_could_lie_nowhere_is_refused(kind, name):
    with pytest.raises(BundleError):
        member_path(kind, name)


def test_damage_names_every_member_with_who_needs_it():
    text = damage([MODEL], [WHEEL], 9)
    assert text.startswith("2 of its 9 members cannot be used: model small.gguf (for demo) is not in it; wheel one-1-")
    assert "has other bytes than its manifest says" in text
    assert "copy it again" in text
    assert damage([], [], 9) == ""


def test_a_full_disk_is_said_in_mib():
    assert shortage("/srv", 3 << 20, 1 << 20) == (
        "/srv: 4 MiB are needed and 1 MiB are free: make room, or write to another disk"
    )
    assert shortage("/srv", 1 << 20, 1 << 20) == ""
