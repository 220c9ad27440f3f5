# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who uses which model: unit files as the roles write them, and a /proc of our own with real ones beside it."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_users import find_uses, unit_words
from ansible_collections.llamacpp.cluster.plugins.module_utils._units import unit_arguments
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import add


@pytest.fixture
def store(tmp_path):
    """A store with two models, no units, and a machine on which nothing runs."""
    for name in ("units", "proc"):
        (tmp_path / name).mkdir()
    (tmp_path / "proc" / "stat").write_text("cpu 1 2 3\nbtime 1700000000\n")
    store = Store(str(tmp_path / "models"), str(tmp_path / "units"), str(tmp_path / "proc"))
    add(store, "owner/repo/Q4_K_M", model=b"1", mmproj=b"2")
    add(store, "small", model=b"3")
    return store


def unit(store, name, *arguments, start="ExecStart=/opt/llamacpp/releases/b1/bin/llama-server"):
    """Write a unit as the role llama_server does."""
    with open(os.path.join(store.units, name), "w") as stream:
        stream.write("[Unit]\nDescription=x\n[Service]\n%s%s\n" % (start, unit_arguments(arguments)))


def process(store, number, words, unit_name="", maps="", started=100):
    """Put a process into the machine; ``started``: ticks after its start."""
    directory = os.path.join(store.proc, str(number))
    os.makedirs(directory)
    fields = ["S", *["0"] * 18, str(started), "0"]
    texts = {"cmdline": "\0".join(words) + "\0", "stat": "%d (a) b) %s\n" % (number, " ".join(fields)), "maps": maps}
    texts["cgroup"] = "0::/system.slice/%s\n" % (unit_name or "ssh.service")
    for name, text in texts.items():
        with open(os.path.join(directory, name), "w") as stream:
            stream.write(text)


def test_units_that_name_a_model(store):
    model = store.path_of("owner/repo/Q4_K_M", "model.bin")
    unit(store, "llamacpp-a.service", "--model", model, "--port", 1)
    unit(
        store,
        "llamacpp-b.service",
        "--model",
        "/srv/x.gguf",
        "--mmproj",
        store.path_of("owner/repo/Q4_K_M", "mmproj.bin"),
    )
    unit(store, "llamacpp-c.service", "--model=" + store.path_of("small", "model.bin"))
    unit(store, "other.service", "--model", store.path_of("small", "model.bin"))
    assert store.users() == {
        "owner/repo/Q4_K_M": ["llamacpp-a.service", "llamacpp-b.service"],
        "small": ["llamacpp-c.service"],
    }


def test_a_name_that_begins_like_another_is_not_used(store):
    add(store, "owner/repo", model=b"4")
    unit(store, "llamacpp-a.service", "--model", store.path_of("owner/repo/Q4_K_M", "model.bin"))
    assert list(store.users()) == ["owner/repo/Q4_K_M"]


def test_a_path_that_needs_quotes(tmp_path):
    store = Store(str(tmp_path / "my 100% $models"), str(tmp_path / "units"), str(tmp_path / "proc"))
    os.makedirs(store.units)
    os.makedirs(store.proc)
    add(store, "small", model=b"3")
    unit(store, "llamacpp-a.service", "--model", store.path_of("small", "model.bin"))
    assert store.users() == {"small": ["llamacpp-a.service"]}


def test_words_of_a_unit():
    text = '[Service]\nExecStart=/bin/a --x "b c" \\\n  --y %%1 $$2\nExecStartPre=/bin/p\nUser=exec\n# ExecStart=/no\n'
    assert unit_words(text) == ["/bin/a", "--x", "b c", "--y", "%1", "$2", "/bin/p"]
    assert unit_words("ExecStart=/bin/a it's\n") == ["/bin/a", "it's"]


def test_a_store_behind_a_link(store, tmp_path):
    (tmp_path / "link").symlink_to(store.root)
    unit(store, "llamacpp-a.service", "--model", store.path_of("small", "model.bin"))
    behind = Store(str(tmp_path / "link"), store.units, store.proc)
    unit(store, "llamacpp-b.service", "--model", behind.path_of("small", "model.bin"))
    assert behind.users() == {"small": ["llamacpp-a.service", "llamacpp-b.service"]}


def test_a_process_of_a_unit_is_the_unit(store):
    model = store.path_of("small", "model.bin")
    unit(store, "llamacpp-a.service", "--model", model)
    process(store, 12, ["/opt/bin/llama-server", "--model", model], "llamacpp-a.service", started=4200)
    (use,) = store.uses()["small"]
    assert (use.who, use.since) == ("llamacpp-a.service", 1700000000 + 4200 / os.sysconf("SC_CLK_TCK"))


def test_a_process_of_no_unit(store):
    process(store, 12, ["python3", "serve.py", store.path_of("small", "model.bin")])
    process(store, 13, ["cat", "/etc/hostname"])
    assert store.users() == {"small": ["python3 (process 12)"]}


def test_a_program_that_maps_a_model_under_another_name(store):
    blob = store.blob(store.manifest("owner/repo/Q4_K_M").files[0].sha256)
    maps = "7f00-7f01 r--s 00000000 08:01 12   %s\n7f01-7f02 rw-p 00000000 00:00 0\n" % blob
    process(store, 12, ["/opt/bin/llama-server", "--model", "model.gguf"], maps=maps)
    process(store, 13, ["bash"], maps=maps)
    assert store.users() == {"owner/repo/Q4_K_M": ["llama-server (process 12)"]}


def test_a_unit_whose_process_still_has_the_model_of_before(store):
    before, after = store.path_of("small", "model.bin"), store.path_of("owner/repo/Q4_K_M", "model.bin")
    unit(store, "llamacpp-a.service", "--model", after)
    process(store, 12, ["/opt/bin/llama-server", "--model", before], "llamacpp-a.service")
    assert store.users() == {"small": ["llamacpp-a.service"], "owner/repo/Q4_K_M": ["llamacpp-a.service"]}


def test_a_unit_that_is_removed_while_it_is_looked_at(store):
    os.symlink(os.path.join(store.units, "gone"), os.path.join(store.units, "llamacpp-a.service"))
    unit(store, "llamacpp-b.service", "--model", store.path_of("small", "model.bin"))
    assert store.users() == {"small": ["llamacpp-b.service"]}


def test_a_process_that_ends_while_it_is_looked_at(store):
    os.makedirs(os.path.join(store.proc, "14"))
    process(store, 15, ["x", store.path_of("small", "model.bin")])
    os.unlink(os.path.join(store.proc, "15", "stat"))
    assert [use.since for use in store.uses()["small"]] == [None]


def test_a_real_process(tmp_path):
    model = tmp_path / "models" / "names" / "m" / "model.bin"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"0" * mmap.PAGESIZE)
    program = tmp_path / "llama-server"
    shutil.copy(os.path.realpath(sys.executable), program)
    script = "import mmap, sys, time; f = open('model.bin', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)"
    script += "; print('ready', flush=True); time.sleep(60)"
    home = {"PYTHONHOME": sys.base_prefix}
    command = [str(program), "-c", script]
    with subprocess.Popen(command, cwd=model.parent, stdout=subprocess.PIPE, env=home) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            (use,) = find_uses([str(tmp_path / "models")], str(tmp_path))
        finally:
            process.kill()
    assert (use.path, use.who) == ("names/m/model.bin", "llama-server (process %d)" % process.pid)
    assert abs(use.since - time.time()) < 60
