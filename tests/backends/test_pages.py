"""llama.cpp's own pages in a release, compiled on a machine that is no node of the cluster.

The pages are built by npm on the control node: it needs Node.js 20 and a registry that npm can reach.
"""

from __future__ import annotations

import gzip
import urllib.request
from collections.abc import Callable

import pytest
from parts import Part

pytestmark = [pytest.mark.lab, pytest.mark.slow_build]

BUILDER, NODE = "node1", "node3"


@pytest.fixture(scope="module")
def cluster(part: Callable[..., Part]) -> Part:
    found = part(NODE, builder=BUILDER, llamacpp_web_ui=True)
    # Whatever the tests before this one left on them: they are one machine without a cluster, and one bare node.
    found.run("reset", llamacpp_nodes_group="llamacpp_nodes").succeeded()
    return found


def test_the_endpoint_serves_the_pages(cluster: Part) -> None:
    cluster.site().succeeded()
    assert cluster.chat("demo")
    planned = cluster.planned("demo")
    address = f"http://{cluster.lab.address(planned['head'])}:{planned['port']}"
    # llama-server keeps its pages packed, and refuses whoever cannot unpack them.
    question = urllib.request.Request(f"{address}/", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(question, timeout=30) as answer:
        page = gzip.decompress(answer.read()).decode()
    assert answer.headers.get_content_type() == "text/html"
    assert "<script" in page, page[:500]


def test_the_builder_compiled_and_is_no_node(cluster: Part) -> None:
    (release,) = cluster.plan["releases"].values()
    assert (release["builder"], release["nodes"]) == (BUILDER, [NODE])
    assert list(cluster.plan["nodes"]) == [NODE]
    assert cluster.manifest(NODE)["builder"] == cluster.shell(BUILDER, "hostname").strip()
    assert not cluster.shell(BUILDER, "ls /opt/llamacpp/releases 2>/dev/null || true").strip()
    assert not cluster.shell(BUILDER, "systemctl list-units --all --plain --no-legend 'llamacpp-*'").strip()


def test_a_second_run_changes_nothing(cluster: Part) -> None:
    assert set(cluster.site().succeeded().changed.values()) == {0}
