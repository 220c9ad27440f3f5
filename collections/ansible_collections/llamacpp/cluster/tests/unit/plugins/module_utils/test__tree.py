# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files of the kernel."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree


def test_what_is_there(tmp_path):
    (tmp_path / "sys").mkdir()
    (tmp_path / "sys/text").write_text("  word \n")
    (tmp_path / "sys/hex").write_text("0x10de\n")
    (tmp_path / "sys/unknown").write_text("-1\n")
    (tmp_path / "sys/link").symlink_to("/somewhere/0000:3b:00.0")
    (tmp_path / "sys/virtual").symlink_to("/somewhere/virtio2")
    tree = Tree(str(tmp_path))
    assert tree.read("/sys/text") == "word"
    assert tree.number("/sys/hex") == 0x10DE
    assert tree.number("/sys/unknown") == -1
    assert tree.positive("/sys/unknown") is None
    assert tree.names("/sys") == ["hex", "link", "text", "unknown", "virtual"]
    assert tree.target("/sys/link") == "0000:3b:00.0"
    assert tree.pci_id("/sys/link") == "0000:3b:00.0"
    assert tree.pci_id("/sys/virtual") is None
    assert tree.exists("/sys/text")


def test_what_is_not_there_is_nothing(tmp_path):
    tree = Tree(str(tmp_path))
    assert tree.read("/sys/none") == ""
    assert tree.number("/sys/none") is None
    assert tree.names("/sys/none") == []
    assert tree.target("/sys/none") is None
    assert tree.pci_id("/sys/none") is None
    assert tree.numa_node("/sys/none") is None
    assert not tree.exists("/sys/none")


def test_numa_node(tmp_path):
    for text, expected in (("0\n", 0), ("1\n", 1), ("-1\n", None)):
        (tmp_path / "numa_node").write_text(text)
        assert Tree(str(tmp_path)).numa_node("/") == expected


def test_files_that_may_not_be_read_are_nothing(tmp_path):
    (tmp_path / "directory").mkdir()
    assert Tree(str(tmp_path)).read("/directory") == ""
