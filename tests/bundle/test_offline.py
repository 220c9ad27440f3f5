"""A bundle made with a network brings up a cluster where there is none.

The tests of this file are one story: each stands on the state that the one before it left.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from bootstrap import requirements
from driver import ROOT
from nonetwork import Site, make_venv, online_playbook

tomllib = pytest.importorskip("tomllib")

pytestmark = [pytest.mark.lab]


def rewritten(bundle: Path, target: Path, keep: Callable[[str], bool]) -> None:
    """Copy a bundle without the members that ``keep`` refuses; its manifest stays as it is."""
    with tarfile.open(bundle) as source, tarfile.open(target, "w") as copy:
        for info in source:
            if keep(info.name):
                stream = source.extractfile(info)
                copy.addfile(info, stream or io.BytesIO())


def test_everything_that_site_yml_would_fetch_is_in_the_bundle(site: Site) -> None:
    online_playbook(site.lab, "bundle", site.variables("online")).succeeded()
    with tarfile.open(site.bundle) as tar:
        stream = tar.extractfile("manifest.json")
        assert stream
        members = json.load(stream)["members"]
        assert tar.getnames() == ["manifest.json", *(member["path"] for member in members)]
    kinds = {kind: [member for member in members if member["kind"] == kind] for kind in ("source", "model", "packages")}
    assert [member["name"] for member in kinds["source"]] == ["llama.cpp-pypi-b11434.tar.gz"]
    assert [member["details"]["needed_by"] for member in kinds["model"]] == [["demo"]]
    (packages,) = kinds["packages"]
    assert packages["name"] == "debian-12-x86_64"
    # What was asked for, and what the node had already: a fresh one of another day may lack it.
    assert {"cmake", "g++", "libgomp1", "nftables", "libc6-dev", "libc6"} <= set(packages["details"]["versions"])
    assert [member for member in members if member["name"].startswith("ansible_core-")]


def test_made_again_it_stays_as_it_is(site: Site) -> None:
    before = site.bundle.stat().st_mtime_ns
    run = online_playbook(site.lab, "bundle", site.variables("online")).succeeded()
    assert set(run.changed.values()) == {0}, run.output[-4000:]
    assert site.bundle.stat().st_mtime_ns == before


def test_neither_side_has_a_way_out(cut_off: Site) -> None:
    routes = cut_off.control.run(["ip", "route"]).stdout.splitlines()
    assert [line.split()[0] for line in routes] == ["10.220.0.0/24"]
    assert cut_off.lab.root("node1", ["apt-get", "install", "--yes", "nftables"], check=False).returncode != 0
    assert "10.212" not in cut_off.lab.root("node1", ["ip", "route"]).stdout


def test_control_node_gets_its_python_from_the_bundle(cut_off: Site) -> None:
    """With tar and pip alone, because nothing of the collection runs yet."""
    into = cut_off.work / "by-hand"
    with tarfile.open(cut_off.bundle) as tar:
        tar.extractall(into, [info for info in tar if info.name.startswith("wheels/")])
    wanted = requirements(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8")), "control")
    done = make_venv(cut_off.control, into / "wheels", wanted)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_that_is_missing_is_said_at_once(cut_off: Site) -> None:
    instances = [
        {"name": "other", "model": {"path": "/srv/models/other.gguf"}, "nodes": ["node1"]},
        {"name": "hub", "model": {"repo": "owner/name", "quant": "Q4_K_M"}, "nodes": ["node1"]},
    ]
    run = cut_off.offline(llamacpp_instances=instances, llamacpp_release="b11401", bundle_packages=["htop"]).failed()
    assert "lacks 4 things that this run needs" in run.output
    assert "- model /srv/models/other.gguf for instance other" in run.output
    assert "- model owner/name for instance hub" in run.output
    assert "- source of llama.cpp b11401 for node1" in run.output
    assert "- packages of debian-12-x86_64 (htop) for node1" in run.output
    assert "run playbooks/bundle.yml" in run.output
    assert cut_off.lab.root("node1", ["ls", "-A", "/opt"]).stdout == ""


def test_bundle_that_lost_members_names_them_all(cut_off: Site) -> None:
    broken = cut_off.work / "broken.tar"
    rewritten(cut_off.bundle, broken, lambda name: not name.startswith(("models/", "sources/")))
    run = cut_off.offline(llamacpp_bundle=str(broken), llamacpp_cache=str(cut_off.work / "broken")).failed()
    broken.unlink()
    assert "model small.gguf (for demo) is not in it" in run.output
    assert "source llama.cpp-pypi-b11434.tar.gz is not in it" in run.output


def test_fresh_node_serves_without_any_network(cut_off: Site) -> None:
    cut_off.offline().succeeded()
    plan = json.loads((cut_off.work / "plan.json").read_text("utf-8"))
    (instance,) = plan["instances"]
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}).encode()
    url = f"http://{cut_off.lab.address('node1')}:{instance['port']}/v1/chat/completions"
    question = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(question, timeout=60) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"]


def test_the_nodes_own_package_sources_are_as_they_were(cut_off: Site) -> None:
    assert cut_off.lab.root("node1", ["ls", "-A", "/etc/apt/sources.list.d", "/var/lib/apt/lists"]).stdout.split() == [
        "/etc/apt/sources.list.d:",
        "/var/lib/apt/lists:",
        *re.findall(r"lock|partial|auxfiles", cut_off.lab.root("node1", ["ls", "/var/lib/apt/lists"]).stdout),
    ]


def test_second_run_changes_nothing(cut_off: Site) -> None:
    run = cut_off.offline().succeeded()
    assert set(run.changed.values()) == {0}, run.output[-4000:]


def test_reset_takes_the_packages_of_the_bundle_along(cut_off: Site) -> None:
    cut_off.offline("reset").succeeded()
    assert cut_off.lab.root("node1", ["ls", "/var/cache/llamacpp/bundle"], check=False).returncode != 0
