# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hashing ranges and naming entries: the compiled program and Python have to say the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _rpc_program
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import (
    Checked,
    NoProgramError,
    Program,
    Python,
    Range,
    RpcCacheError,
    hasher,
)
from ansible_collections.llamacpp.cluster.tests.unit.rpc_cache_program import COMPILER, compiled, name_of

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
# BLOCK of rpc_cache.c.
BLOCK = 256 * 1024
DATA = random.Random(5).randbytes(3 * BLOCK)


@pytest.fixture(params=[pytest.param("program", marks=needs_compiler), "python"])
def each(request):
    """Both of those that hash."""
    if request.param == "python":
        return Python("there is no program")
    return Program(compiled(), Progress(None), threads=2)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(DATA)
    return str(path)


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "rpc"
    path.mkdir()
    return path


def left(cache):
    return sorted(os.listdir(cache))


@pytest.mark.parametrize(
    ("text", "digits"),
    # From the authors' own list of test vectors (draft-eastlake-fnv, appendix C).
    [(b"", "cbf29ce484222325"), (b"a", "af63dc4c8601ec8c"), (b"foobar", "85944171f73967e8")],
)
def test_hashes_are_those_of_fnv_1a(each, tmp_path, text, digits):
    path = tmp_path / "text"
    path.write_bytes(text)
    assert each.hash(str(path), [Range(0, len(text))]) == [digits]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3, 0])
def test_many_ranges_of_all_lengths_come_back_in_order(file, threads):
    lengths = [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK, 0, 100, 5000, BLOCK + 17, 3, 31, 2, 999, 4096]
    ranges = [Range(min(index * 11, len(DATA) - length), length) for index, length in enumerate(lengths)]
    expected = [name_of(DATA[item.offset : item.offset + item.bytes]) for item in ranges]
    assert Program(compiled(), Progress(None), threads).hash(file, ranges) == expected


def test_entries_have_the_bytes_that_their_names_say(each, file, cache):
    ranges = [Range(0, 1000), Range(5, BLOCK + 1), Range(0, 1000)]
    names = each.seed(file, ranges, str(cache))
    assert names[0] == names[2]
    assert left(cache) == sorted(set(names))
    for name, item in zip(names, ranges):
        assert (cache / name).read_bytes() == DATA[item.offset : item.offset + item.bytes]
        assert (cache / name).stat().st_mode & 0o777 == 0o644


def test_an_entry_that_is_there_is_not_written_again_and_a_short_one_is(each, file, cache):
    (name,) = each.seed(file, [Range(0, 1000)], str(cache))
    before = (cache / name).stat()
    each.seed(file, [Range(0, 1000)], str(cache))
    assert (cache / name).stat().st_ino == before.st_ino
    os.truncate(cache / name, 10)
    each.seed(file, [Range(0, 1000)], str(cache))
    assert (cache / name).read_bytes() == DATA[:1000]


def test_a_file_that_is_too_short_is_named_and_makes_no_entry(each, file, cache):
    with pytest.raises(RpcCacheError, match=r"model\.gguf: the file ends at byte %d, 5 bytes were to come" % len(DATA)):
        each.seed(file, [Range(len(DATA) - 10, 15)], str(cache))
    assert left(cache) == []


def test_entries_are_checked_and_what_is_none_is_not_read(each, file, cache):
    good, cut = each.seed(file, [Range(0, 1000), Range(1000, 1000)], str(cache))
    os.truncate(cache / cut, 500)
    (cache / ("1" * 16)).symlink_to(file)
    os.mkfifo(cache / ("2" * 16))
    (cache / ("3" * 16)).mkdir()
    names = [good, cut, "1" * 16, "2" * 16, "3" * 16, "4" * 16]
    found = each.check(str(cache), names)
    assert found[good] == Checked("ok", 1000)
    assert found[cut] == Checked("bad", 500)
    assert [found[name].state for name in names[2:]] == ["bad", "bad", "bad", "gone"]


def test_an_entry_that_is_written_again_while_python_reads_it_is_bad(cache, monkeypatch):
    (cache / ("0" * 16)).write_bytes(b"1" * 1000)
    monkeypatch.setattr(os, "pread", lambda *_place: b"")
    assert Python("").check(str(cache), ["0" * 16]) == {"0" * 16: Checked("bad", 1000)}


@needs_compiler
def test_an_entry_that_is_written_again_while_the_program_reads_it_is_bad(cache):
    name, size = "0" * 16, 1 << 36
    (cache / name).touch()
    os.truncate(cache / name, size)
    words = [compiled(), "--threads", "1", "check", cache]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(name + "\n")
        process.stdin.close()
        assert process.stdout.readline() == "= %d\n" % (64 << 20)
        os.truncate(cache / name, 0)
        assert [line for line in process.stdout if not line.startswith("= ")] == ["%s bad %d\n" % (name, size)]
    assert process.returncode == 0


def test_nothing_to_do(each, file, cache):
    assert (each.hash(file, []), each.seed(file, [], str(cache)), each.check(str(cache), [])) == ([], [], {})


@needs_compiler
def test_a_disk_that_fills_up_leaves_nothing_half(file, cache, tmp_path):
    """A limit on the size of files stands for the disk: write() fails in the middle just so."""
    limited = tmp_path / "limited"
    limited.write_text("#!/bin/sh\ntrap '' XFSZ\nulimit -f 100\nexec %s \"$@\"\n" % compiled())
    limited.chmod(0o755)
    with pytest.raises(RpcCacheError, match=r"rpc: File too large"):
        Program(str(limited), Progress(None)).seed(file, [Range(0, 1000), Range(0, len(DATA))], str(cache))
    assert all((cache / name).read_bytes() == DATA[:1000] for name in left(cache))


@needs_compiler
def test_killed_at_any_moment_no_name_has_other_bytes(tmp_path, cache):
    path = tmp_path / "model.gguf"
    path.write_bytes(DATA * 64)
    ranges = [Range(index * 1000, 1_000_000 + index) for index in range(40)]
    lines = "".join("%d %d\n" % item for item in ranges)
    expected = dict(zip(Program(compiled(), Progress(None)).hash(str(path), ranges), ranges))
    for enough in (1, 8, 20, 35):
        process = subprocess.Popen(
            [compiled(), "--threads", "2", "seed", path, cache],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        process.stdin.write(lines)
        process.stdin.close()
        while process.poll() is None and len(left(cache)) < enough:
            pass
        process.kill()
        process.wait()
        process.stdout.close()
        for name in left(cache):
            if not name.startswith(".seed-"):
                item = expected[name]
                with open(path, "rb") as stream:
                    stream.seek(item.offset)
                    assert (cache / name).read_bytes() == stream.read(item.bytes)
    Program(compiled(), Progress(None)).seed(str(path), ranges, str(cache))
    assert {name for name in left(cache) if not name.startswith(".seed-")} == set(expected)


@needs_compiler
def test_the_program_ends_with_whoever_asked(tmp_path):
    """Without its lock, an entry that comes later would be in the way of the next run."""
    path, size = tmp_path / "endless", 1 << 36
    path.touch()
    os.truncate(path, size)
    code = "import subprocess, sys; subprocess.run(sys.argv[1:], input='0 %d\\n', text=True)" % size
    asker = subprocess.Popen(
        [sys.executable, "-c", code, compiled(), "--threads", "1", "hash", path], stdout=subprocess.PIPE, text=True
    )
    with asker:
        # It says how far it is; so it runs.
        assert asker.stdout.readline() == "= %d\n" % (64 << 20)
        asker.kill()
        # The pipe is closed when the last of them is gone; the hash would be its last line.
        assert [line for line in asker.stdout if not line.startswith("= ")] == []


@needs_compiler
@pytest.mark.parametrize(
    ("words", "line", "said"),
    [
        (["hash", "{file}"], "1", "no offset and number of bytes: 1"),
        (["hash", "{file}"], "-1 5", "no offset and number of bytes"),
        (["hash", "{file}"], "1 99999999999999999999", "no offset and number of bytes"),
        (["hash", "{file}"], "1 2 3", "no offset and number of bytes"),
        (["check", "{file}"], "../../etc/passwd", "no name of an entry"),
        (["check"], "", "usage:"),
        (["--threads", "0", "check", "{file}"], "", "usage:"),
    ],
)
def test_nonsense_is_refused(file, words, line, said):
    done = subprocess.run(
        [compiled(), *(word.format(file=file) for word in words)],
        input=line + "\n" if line else "",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr


@needs_compiler
def test_whoever_asked_hears_how_far_it_is(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(b"")
    os.truncate(path, 200 << 20)
    said = []
    progress = Progress(None)
    monkeypatch.setattr(progress, "say", said.append)
    Program(compiled(), progress).hash(str(path), [Range(0, 100 << 20), Range(100 << 20, 100 << 20)])
    assert [line.partition(" MiB")[0] for line in said] == [
        "hashing tensors: %d of 200" % done for done in (64, 128, 192)
    ]


@needs_compiler
def test_the_program_is_taken_when_it_understands_us(tmp_path, monkeypatch):
    assert isinstance(hasher(compiled(), Progress(None)), Program)
    assert isinstance(hasher("/nowhere/llamacpp-rpc-cache", Progress(None)), Python)
    assert isinstance(hasher("/bin/false", Progress(None)), Python)
    monkeypatch.setattr(_rpc_program, "PROGRAM_VERSION", "2")
    assert isinstance(hasher(compiled(), Progress(None)), Python)


def test_python_does_not_hash_for_minutes(tmp_path, cache):
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, _rpc_program.PYTHON_BYTES + 1)
    python = hasher("/nowhere/llamacpp-rpc-cache", Progress(None))
    for work in (
        lambda: python.hash(str(large), [Range(0, _rpc_program.PYTHON_BYTES + 1)]),
        lambda: python.check(str(tmp_path), ["large"]),
    ):
        with pytest.raises(NoProgramError, match=r"/nowhere/llamacpp-rpc-cache does not run here .* 64 MiB"):
            work()
