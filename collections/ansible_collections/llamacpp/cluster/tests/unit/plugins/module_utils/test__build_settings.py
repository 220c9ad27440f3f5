# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an operator may say of builds, and what is said about what they may not."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._build_settings import BuildSettings, parse_build


def problems_with(**data):
    """Return the problems of one node's variables, as text."""
    problems = []
    parse_build(problems, "node1", data)
    return [str(problem) for problem in problems]


def test_nothing_declared_gives_the_defaults():
    problems = []
    assert parse_build(problems, "node1", {}) == BuildSettings()
    assert not problems


def test_everything_declared_is_kept():
    problems = []
    found = parse_build(
        problems,
        "node1",
        {
            "backend": "cuda",
            "cuda_architectures": ["90", "70"],
            "cmake_args": ["-DGGML_LTO=ON"],
            "cflags": "-O3",
            "patches": [{"path": "/srv/fix.patch"}, {"url": "https://example.org/1.patch", "sha256": "A" * 64}],
            "build_type": "RelWithDebInfo",
            "rdma": "auto",
            "fa_all_quants": True,
            "source": {"kind": "archive", "url": "https://example.org/x.tar.gz", "sha256": "b" * 64},
            "build_platform": {"os": "rocky-8", "machine": "x86_64"},
            "cuda_version": "12.2",
            "gcc_version": 12,
        },
    )
    assert not problems
    assert found.cuda_architectures == ("70", "90")
    assert [patch.name for patch in found.patches] == ["fix.patch", "1.patch"]
    assert found.patches[1].sha256 == "a" * 64
    assert found.rdma is None and found.fa_all_quants is True
    assert found.platform == ("rocky-8", "x86_64")
    assert found.source == {"kind": "archive", "url": "https://example.org/x.tar.gz", "sha256": "b" * 64}
    assert found.compiled


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"backend": "metal"}, "llamacpp_backend of node1 = metal: must be one of auto, cpu, cuda, hip, vulkan, blas"),
        ({"cuda_architectures": "70"}, 'must be a list of texts, e.g. ["70"]'),
        ({"cuda_architectures": [70]}, "70 is no architecture"),
        ({"cuda_architectures": ["7.0"]}, "7.0 is no architecture"),
        ({"cuda_architectures": ["native"]}, "native does not survive a copy"),
        ({"hip_architectures": ["90a"]}, '["gfx90a"]'),
        ({"cmake_args": "-DX=1"}, "must be a list of words"),
        ({"cmake_args": ["GGML_CUDA=ON"]}, "GGML_CUDA=ON is no argument of CMake"),
        ({"cmake_args": ["-DLLAMA_CUBLAS=ON"]}, "write llamacpp_backend: cuda"),
        ({"cmake_args": ["-DGGML_NATIVE=on"]}, "write llamacpp_cpu_variants: true"),
        ({"cxxflags": "-O3 -march=native"}, "-march=x86-64-v4"),
        ({"build_type": "Fast"}, "must be one of Release"),
        ({"patches": "fix.patch"}, "must be a list"),
        ({"patches": ["fix.patch"]}, "must be a mapping with path, or url and sha256"),
        ({"patches": [{"path": "fix.patch"}]}, "must be an absolute path"),
        ({"patches": [{"path": "/a.patch", "url": "https://example.org/a.patch"}]}, "either path"),
        ({"patches": [{"url": "https://example.org/a.patch"}]}, "llamacpp_patches[0].sha256 of node1"),
        ({"source": {"kind": "ftp"}}, "llamacpp_source.kind of node1 = ftp: must be one of git, archive, pypi"),
        ({"source": {"url": "https://example.org"}}, "llamacpp_source.kind of node1"),
        ({"source": {"kind": "archive", "path": "/x.tar.gz"}}, "needs the sha256"),
        ({"source": {"kind": "release_archive", "sha256": "0" * 64}}, "needs either path"),
        ({"build_platform": {"os": "rocky"}}, "{os: rocky-8, machine: x86_64}"),
        ({"cuda_provider": "snap"}, "must be one of auto, package, distro, pip, existing"),
        ({"cuda_version": 12.2}, 'must be a version in quotes, e.g. "12.2"'),
        ({"cuda_home": "cuda"}, "must be an absolute path"),
        ({"gcc_version": 8}, "must be at least 9"),
        ({"web_ui": "yes"}, "write true or false"),
        ({"rdma": "maybe"}, "write true or false"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_write(data, words):
    found = problems_with(**data)
    assert len(found) == 1
    assert words in found[0]


def test_percent_in_the_name_of_a_node_is_harmless():
    problems = []
    parse_build(problems, "a%sb", {"backend": "metal"})
    assert "of a%sb" in str(problems[0])
