# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What stands in unit files and beside them."""

from __future__ import annotations

import hashlib

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _units


def test_an_option_a_line():
    assert _units.unit_arguments(["--rpc", "10.0.1.12:50052,10.0.1.13:50052", "--metrics", "--port", 8080]) == (
        " \\\n  --rpc 10.0.1.12:50052,10.0.1.13:50052 \\\n  --metrics \\\n  --port 8080"
    )


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("plain-1.0_x@y=z", "plain-1.0_x@y=z"),
        ("two words", '"two words"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("a;b", '"a;b"'),
        ("", '""'),
    ],
)
def test_quoting(word, quoted):
    assert _units.quote(word) == quoted


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [("0.0.0.0", "http://127.0.0.1:8080"), ("10.0.0.1", "http://10.0.0.1:8080"), ("fd00::1", "http://[fd00::1]:8080")],
)
def test_local_endpoint(host, endpoint):
    assert _units.local_endpoint({"host": host, "port": 8080}) == endpoint


def test_retired_units_are_those_of_the_role_that_the_plan_does_not_name():
    plan = {"nodes": {"node1": {"units": ["llamacpp-new.service"]}}}
    found = {
        "llamacpp-old.service": {"role": "head"},
        "llamacpp-new.service": {"role": "head"},
        "llamacpp-rpc-old.service": {"role": "worker"},
    }
    assert _units.retired_units(plan, "node1", found, "head") == ["llamacpp-old.service"]
    assert _units.retired_units(plan, "node1", found, "worker") == ["llamacpp-rpc-old.service"]
    assert _units.retired_units(plan, "gone", found, "head") == ["llamacpp-new.service", "llamacpp-old.service"]


def test_api_keys_are_a_line_each():
    instances = [{"name": "a"}, {"name": "b", "api_keys": ["one", "two"]}]
    assert _units.api_keys(instances, "b") == "one\ntwo\n"
    assert _units.api_keys(instances, "a") == ""


def test_digest_changes_with_the_value():
    assert _units.digest({"a": 1}) == _units.digest({"a": 1}) != _units.digest({"a": 2})


@pytest.mark.parametrize(
    ("key_file", "watched"),
    [(None, ["/m/manifests/a.json"]), ("/etc/llamacpp/keys/a", ["/etc/llamacpp/keys/a", "/m/manifests/a.json"])],
)
def test_watched_files(key_file, watched):
    assert _units.watched_files({"api_key_file": key_file, "model": {"manifest": "/m/manifests/a.json"}}) == watched


@pytest.mark.parametrize(
    ("change", "missing"),
    [({}, False), ({"mode": "0644"}, True), ({"owner": "root"}, True), ({"sha256": "0" * 64}, True), (None, True)],
)
def test_heads_to_key(change, missing):
    heads = [{"name": "a", "api_key_file": "/k/a"}]
    right = {"sha256": hashlib.sha256(b"one\n").hexdigest(), "mode": "0600", "owner": "llamacpp"}
    managed = {"/k/a": None if change is None else dict(right, **change)}
    chosen = _units.heads_to_key(heads, [{"name": "a", "api_keys": ["one"]}], managed, "llamacpp")
    assert bool(chosen) is missing


def test_replicas_have_the_keys_of_their_declaration():
    instances = [{"name": "a", "api_keys": ["k1"]}, {"name": "b", "replicas": 2, "api_keys": ["k2"]}]
    assert _units.api_keys(instances, "b-2") == "k2\n"
    assert _units.api_keys(instances, "a-1") == ""
