# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installing, trying, switching and removing releases. Their binaries are stand-ins; real ones run in the lab."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import llama_release
from ansible_collections.llamacpp.cluster.tests.unit import release_builder
from ansible_collections.llamacpp.cluster.tests.unit.release_builder import FOREIGN, server


@pytest.fixture
def pack(tmp_path):
    """A function that packs a release and returns the arguments to install it."""
    return functools.partial(release_builder.pack, tmp_path)


@pytest.fixture
def releases(tmp_path):
    """A function that lists what lies in releases/, hidden or not."""
    return lambda: sorted(os.listdir(tmp_path / "opt" / "releases"))


@pytest.fixture
def peer(tmp_path):
    """The address of a server of the files in ``tmp_path``."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            """Stay silent."""

    handler = functools.partial(Quiet, directory=str(tmp_path))
    serving = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield "http://127.0.0.1:%d" % serving.server_port
    serving.shutdown()
    serving.server_close()


def link(tmp_path, name):
    """Where ``current`` or ``previous`` leads."""
    return os.readlink(tmp_path / "opt" / name)


def test_install_then_nothing_to_do(run_module, pack, releases, tmp_path):
    arguments = pack("b7-cpu-1")
    result = run_module(llama_release, **arguments, state="current")
    assert (result["changed"], result["tried"], result["version"]) == (True, True, "version: 1 (build 7)")
    assert (result["current"], result["previous"]) == ("b7-cpu-1", "")
    assert link(tmp_path, "current") == "releases/b7-cpu-1"
    assert releases() == ["b7-cpu-1"]
    again = run_module(llama_release, **arguments, state="current")
    assert (again["changed"], again["tried"], again["version"]) == (False, False, "version: 1 (build 7)")


def test_present_does_not_make_current(run_module, pack, releases, tmp_path):
    result = run_module(llama_release, **pack("b7-cpu-1"))
    assert (result["changed"], result["tried"], result["current"]) == (True, True, "")
    assert releases() == ["b7-cpu-1"]
    assert not os.path.lexists(tmp_path / "opt" / "current")


def test_check_mode_installs_nothing(run_module, pack, tmp_path):
    result = run_module(llama_release, check=True, **pack("b7-cpu-1"), state="current")
    assert (result["changed"], result["pending"]) == (True, True)
    assert not (tmp_path / "opt").exists()


def test_forth_and_back(run_module, pack, releases, tmp_path):
    run_module(llama_release, **pack("b7-cpu-1"), state="current")
    result = run_module(llama_release, **pack("b8-cpu-1"), state="current")
    assert (result["current"], result["previous"]) == ("b8-cpu-1", "b7-cpu-1")
    back = run_module(llama_release, id="b7-cpu-1", prefix=str(tmp_path / "opt"), state="current")
    assert (back["changed"], back["tried"]) == (True, False)
    assert (link(tmp_path, "current"), link(tmp_path, "previous")) == ("releases/b7-cpu-1", "releases/b8-cpu-1")
    assert releases() == ["b7-cpu-1", "b8-cpu-1"]


def test_probe_flips_and_leaves_what_takes_time(run_module, pack, tmp_path):
    waiting = run_module(llama_release, **pack("b7-cpu-1"), state="current", probe=True)
    assert (waiting["pending"], os.path.exists(tmp_path / "opt")) == (True, False)
    run_module(llama_release, **dict(pack("b8-cpu-1")))
    flipped = run_module(llama_release, id="b8-cpu-1", prefix=str(tmp_path / "opt"), state="current", probe=True)
    assert (flipped["pending"], flipped["changed"], flipped["current"]) == (False, True, "b8-cpu-1")


def test_archive_in_incoming_is_used_up_and_one_elsewhere_is_not(run_module, pack, tmp_path):
    arguments = pack("b7-cpu-1")
    run_module(llama_release, **arguments)
    assert os.path.exists(arguments["archive"])
    incoming = tmp_path / "opt" / "incoming" / "b8-cpu-1.tar.gz"
    shutil.copy(pack("b8-cpu-1")["archive"], incoming)
    run_module(llama_release, id="b8-cpu-1", archive=str(incoming), prefix=str(tmp_path / "opt"))
    assert os.listdir(incoming.parent) == []


def test_second_release_costs_what_differs(run_module, pack, tmp_path):
    library = {"lib/libggml.so": "x" * 500_000}
    first = run_module(llama_release, **pack("b7-cpu-1", files=library))
    assert first["own_bytes"] == first["bytes"] > 500_000
    second = run_module(llama_release, **pack("b8-cpu-1", files={**library, "lib/libnew.so": "y" * 1000}))
    assert second["bytes"] > 501_000
    assert 1000 <= second["own_bytes"] < 5000
    assert (tmp_path / "opt/releases/b7-cpu-1/lib/libggml.so").samefile(
        tmp_path / "opt/releases/b8-cpu-1/lib/libggml.so"
    )
    # The first one is not harmed when the second goes.
    run_module(llama_release, id="b8-cpu-1", prefix=str(tmp_path / "opt"), state="absent")
    assert run_module(llama_release, **pack("b9-cpu-1", files=library))["own_bytes"] < 5000


def test_file_that_rotted_does_not_spread(run_module, pack, tmp_path):
    library = {"lib/libggml.so": "x" * 1000}
    run_module(llama_release, **pack("b7-cpu-1", files=library))
    (tmp_path / "opt/releases/b7-cpu-1/lib/libggml.so").write_text("z" * 1000)
    run_module(llama_release, **pack("b8-cpu-1", files=library))
    assert (tmp_path / "opt/releases/b8-cpu-1/lib/libggml.so").read_text() == "x" * 1000


def test_same_bytes_that_are_executable_in_one_release_alone_are_not_shared(run_module, pack, tmp_path):
    run_module(llama_release, **pack("b7-cpu-1", files={"bin/tool": "same"}))
    run_module(llama_release, **pack("b8-cpu-1", files={"lib/tool": "same"}))
    assert os.access(tmp_path / "opt/releases/b7-cpu-1/bin/tool", os.X_OK)
    assert not os.stat(tmp_path / "opt/releases/b8-cpu-1/lib/tool").st_mode & 0o111


def forge(root):
    """Change a binary after the manifest was written."""
    (root / "bin" / "rpc-server").write_text("#!/bin/sh\necho forged\n")


def add(root):
    """Add a file that the manifest does not know."""
    (root / "bin" / "stranger").write_text("")


def forget(root):
    """Leave out the manifest."""
    (root / "manifest.json").unlink()


def rename(root):
    """Say that it is another release."""
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(dict(manifest, id="b9-cpu-2")))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (forge, "bin/rpc-server differs"),
        (add, "bin/stranger does not belong"),
        (forget, "no usable manifest.json"),
        (rename, "holds the release b9-cpu-2"),
    ],
)
def test_release_that_differs_from_its_manifest_is_refused(run_module, pack, releases, tmp_path, spoil, words):
    result = run_module(llama_release, **pack("b7-cpu-1", spoil=spoil), state="current")
    assert result["failed"]
    assert words in result["msg"]
    assert releases() == []
    assert not (tmp_path / "opt" / "current").exists()


def test_archive_with_a_wrong_checksum_is_refused(run_module, pack, releases):
    result = run_module(llama_release, **dict(pack("b7-cpu-1"), sha256="0" * 64))
    assert result["failed"]
    assert "instead of" in result["msg"]
    assert releases() == []


@pytest.mark.parametrize("length", [0, 5, 100, -300])
def test_truncated_archive_is_refused(run_module, pack, releases, length):
    arguments = pack("b7-cpu-1")
    with open(arguments["archive"], "r+b") as stream:
        stream.truncate(length if length >= 0 else os.stat(arguments["archive"]).st_size + length)
    result = run_module(llama_release, **dict(arguments, sha256=None))
    assert result["failed"]
    assert "not a whole archive" in result["msg"]
    assert releases() == []


def test_archive_that_reaches_out_of_its_directory_is_refused(run_module, pack, tmp_path):
    arguments = pack("b7-cpu-1")
    with tarfile.open(arguments["archive"], "w:gz") as tar:
        tar.add(__file__, arcname="../../outside")
    result = run_module(llama_release, **dict(arguments, sha256=None))
    assert result["failed"]
    assert "leaves the directory" in result["msg"]
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", ""])
def test_id_that_leads_elsewhere_is_refused(run_module, tmp_path, name):
    for state in ("present", "absent"):
        result = run_module(llama_release, id=name, prefix=str(tmp_path / "opt"), state=state)
        assert result["failed"]
        assert "write letters" in result["msg"]
    assert tmp_path.is_dir()


BROKEN = [
    # words of the refusal, stand-in, planned devices, manifest
    ("GLIBC_2.99", FOREIGN, [], {}),
    ("debian-99", FOREIGN, [], {}),
    ("llamacpp_builders", FOREIGN, [], {}),
    ("it needs glibc 99.1 or newer", None, [], {"libc": "99.1"}),
    ("it uses no_such_flag, which the CPU", None, [], {"cpu_flags": ["no_such_flag"]}),
    ("llamacpp_cpu_variants: true", None, [], {"cpu_flags": ["no_such_flag"]}),
    ("does not show CUDA1, only CUDA0", server(devices=("CUDA0",)), ["CUDA0", "CUDA1"], {}),
    ("does not show CUDA0, only none", server(), ["CUDA0"], {}),
    ("put nothing of a model on CUDA0", server(devices=("CUDA0",), silent=("CUDA0",)), ["CUDA0"], {}),
    ("wrong numbers on CUDA0", server(devices=("CUDA0",), shift=1), ["CUDA0"], {}),
    ("wrong numbers on the CPU", server(shift=-1), [], {}),
    ("no kernel image", server(devices=("CUDA0",), crash="no kernel image is available"), ["CUDA0"], {}),
    ("cannot be run", "#!/nowhere/sh\n", [], {}),
    ("signal 4: it uses an instruction that the CPU", "#!/bin/sh\nkill -ILL $$\n", [], {}),
]


@pytest.mark.parametrize(("words", "binary", "devices", "manifest"), BROKEN)
def test_broken_release_never_becomes_current(run_module, pack, releases, tmp_path, words, binary, devices, manifest):
    run_module(llama_release, **pack("b7-cpu-1"), state="current")
    arguments = pack("b8-cpu-1", binary, **manifest)
    result = run_module(llama_release, **arguments, state="current", devices=devices)
    assert result["failed"]
    assert words in result["msg"]
    assert link(tmp_path, "current") == "releases/b7-cpu-1"
    assert releases() == ["b7-cpu-1"]
    assert os.listdir(tmp_path / "opt" / "validated") == ["b7-cpu-1.json"]


def test_host_memory_is_no_device_to_look_for(run_module, pack):
    assert run_module(llama_release, **pack("b7-cpu-1"), devices=["CPU"])["tried"] is True


def test_devices_that_are_full_do_not_hold_up_an_upgrade(run_module, pack, monkeypatch):
    said = []
    monkeypatch.setattr(llama_release.AnsibleModule, "warn", lambda _module, text: said.append(text))
    binary = server(devices=("CUDA0",), crash="cudaMalloc failed: out of memory")
    result = run_module(llama_release, **pack("b7-cpu-1", binary), devices=["CUDA0"], state="current")
    assert result["changed"] is True
    assert "CUDA0: no memory left to try them" in str(said)


def test_other_devices_are_tried_and_may_be_missing(run_module, pack, tmp_path):
    binary = server(devices=("CUDA0", "CUDA1"))
    run_module(llama_release, **pack("b7-cpu-1", binary), devices=["CUDA0"])
    installed = {"id": "b7-cpu-1", "prefix": str(tmp_path / "opt")}
    assert run_module(llama_release, **installed, devices=["CPU"])["tried"] is False
    grown = run_module(llama_release, **installed, devices=["CUDA0", "CUDA1"])
    assert (grown["changed"], grown["tried"]) == (False, True)
    assert run_module(llama_release, **installed, devices=["CUDA1"])["tried"] is False
    result = run_module(llama_release, **installed, devices=["CUDA2"], state="current")
    assert result["failed"]
    assert not os.path.lexists(tmp_path / "opt" / "current")
    assert os.path.isdir(result["path"])


def test_release_that_lost_a_file_is_installed_and_tried_again(run_module, pack, tmp_path):
    arguments = pack("b7-cpu-1")
    run_module(llama_release, **arguments)
    lost = tmp_path / "opt" / "releases" / "b7-cpu-1" / "bin" / "rpc-server"
    lost.unlink()
    result = run_module(llama_release, **arguments)
    assert (result["changed"], result["tried"]) == (True, True)
    assert lost.exists()


def test_environment_reaches_the_trial_and_that_of_the_run_does_not(run_module, pack, monkeypatch):
    monkeypatch.setenv("NOISE", "1")
    binary = server().replace("import json, sys", 'import json, os, sys\nassert "NOISE" not in os.environ, "noise"')
    binary = binary.replace("devices, silent", 'assert os.environ["WANTED"] == "2"\ndevices, silent', 1)
    assert run_module(llama_release, **pack("b7-cpu-1", binary), environment={"WANTED": 2})["changed"] is True


def test_fetch_from_the_first_peer_that_answers(run_module, pack, peer, tmp_path):
    arguments = pack("b7-cpu-1")
    size = os.stat(arguments.pop("archive")).st_size
    urls = ["http://127.0.0.1:1/secret/x", peer + "/nothing-here", peer + "/b7-cpu-1.tar.gz"]
    result = run_module(llama_release, **arguments, urls=urls)
    assert (result["changed"], result["fetched_bytes"]) == (True, size)
    assert os.listdir(tmp_path / "opt" / "incoming") == []


def test_peers_are_not_asked_through_a_proxy(run_module, pack, peer, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    arguments = pack("b7-cpu-1")
    del arguments["archive"]
    assert run_module(llama_release, **arguments, urls=[peer + "/b7-cpu-1.tar.gz"])["changed"] is True


def test_a_strict_umask_does_not_lock_the_services_out(run_module, pack, tmp_path):
    before = os.umask(0o077)
    try:
        run_module(llama_release, **pack("b7-cpu-1"))
    finally:
        os.umask(before)
    release = tmp_path / "opt" / "releases" / "b7-cpu-1"
    for path in (release, release / "bin", release / "bin" / "llama-server"):
        assert path.stat().st_mode & 0o555 == 0o555, path


def test_nobody_answers_and_the_caller_may_bring_it_another_way(run_module, pack, peer, releases):
    arguments = pack("b7-cpu-1")
    archive = arguments.pop("archive")
    result = run_module(llama_release, **arguments, urls=["http://127.0.0.1:1/secret/x", peer + "/nothing-here"])
    assert (result["failed"], result["unreachable_urls"]) == (True, True)
    assert "http://127.0.0.1:1: " in result["msg"]
    assert "404" in result["msg"]
    assert "secret" not in result["msg"]
    assert releases() == []
    assert run_module(llama_release, **arguments, archive=archive)["changed"] is True


def test_peer_that_gives_wrong_bytes(run_module, pack, peer, tmp_path):
    arguments = pack("b7-cpu-1")
    (tmp_path / "wrong").write_text("wrong")
    del arguments["archive"]
    result = run_module(llama_release, **arguments, urls=[peer + "/wrong"])
    assert (result["failed"], result["unreachable_urls"]) == (True, False)
    assert "instead of %s" % arguments["sha256"] in result["msg"]
    assert os.listdir(tmp_path / "opt" / "incoming") == []


def test_urls_want_a_checksum(run_module, tmp_path):
    result = run_module(llama_release, id="b7-cpu-1", prefix=str(tmp_path / "opt"), urls=["http://127.0.0.1:1/x"])
    assert "urls need the sha256" in result["msg"]


def test_nothing_to_install_from(run_module, tmp_path):
    result = run_module(llama_release, id="b7-cpu-1", prefix=str(tmp_path / "opt"))
    assert "its archive is not there" in result["msg"]


HOLDER = """
import sys, time
from ansible_collections.llamacpp.cluster.plugins.module_utils._installed import Releases
with Releases(sys.argv[1]).lock("the installation of b9-cpu-9", 1, print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the releases."""
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "opt")],
        env=dict(os.environ, PYTHONPATH=path),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_two_runs_at_once(run_module, pack, holder):
    arguments = pack("b7-cpu-1")
    result = run_module(llama_release, **arguments, lock_wait=1)
    assert result["failed"]
    assert "the installation of b9-cpu-9 (pid %d) since " % holder.pid in result["msg"]


def test_killed_run_leaves_nothing_in_the_way(run_module, pack, holder, releases, tmp_path):
    (tmp_path / "opt" / "releases" / ".b7-cpu-1.abc").mkdir()
    (tmp_path / "opt" / "incoming").mkdir()
    (tmp_path / "opt" / "incoming" / "b7-cpu-1.tar.gz.part").write_text("half")
    holder.kill()
    assert run_module(llama_release, **pack("b7-cpu-1"), lock_wait=5)["changed"] is True
    assert releases() == ["b7-cpu-1"]
    assert os.listdir(tmp_path / "opt" / "incoming") == []


def test_who_waits_sees_what_the_other_did(run_module, pack, tmp_path):
    arguments = pack("b7-cpu-1")
    run_module(llama_release, **arguments)
    with open(tmp_path / "opt" / ".lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Timer(1.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        other.start()
        started = time.monotonic()
        assert run_module(llama_release, **arguments, state="current", lock_wait=30)["current"] == "b7-cpu-1"
        assert time.monotonic() - started >= 0.5
        other.join()


def test_absent(run_module, pack, releases, tmp_path):
    run_module(llama_release, **pack("b7-cpu-1"), state="current")
    run_module(llama_release, **pack("b8-cpu-1"), state="current")
    arguments = {"prefix": str(tmp_path / "opt"), "state": "absent"}
    assert "make another current first" in run_module(llama_release, id="b8-cpu-1", **arguments)["msg"]
    assert run_module(llama_release, check=True, id="b7-cpu-1", **arguments)["changed"] is True
    assert releases() == ["b7-cpu-1", "b8-cpu-1"]
    assert run_module(llama_release, id="b7-cpu-1", **arguments)["changed"] is True
    assert run_module(llama_release, id="b7-cpu-1", **arguments)["changed"] is False
    assert releases() == ["b8-cpu-1"]
    assert not os.path.lexists(tmp_path / "opt" / "previous")
    assert os.listdir(tmp_path / "opt" / "validated") == ["b8-cpu-1.json"]


def test_absent_refuses_what_a_process_runs(run_module, pack, releases, tmp_path):
    run_module(llama_release, **pack("b7-cpu-1"))
    binary = tmp_path / "opt" / "releases" / "b7-cpu-1" / "bin" / "llama-server"
    shutil.copy("/bin/sleep", binary)
    with subprocess.Popen([binary, "60"]) as process:
        result = run_module(llama_release, id="b7-cpu-1", prefix=str(tmp_path / "opt"), state="absent")
        process.kill()
    assert "it is used by llama-server (process %d)" % process.pid in result["msg"]
    assert releases() == ["b7-cpu-1"]


# Runs the module on a disk of its own that is too small; a real one, in a mount namespace.
SMALL_DISK = """
import os, subprocess, sys
prefix, size, module, arguments = sys.argv[1:]
os.makedirs(prefix)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%s" % size, "tmpfs", prefix], check=True)
done = subprocess.run([sys.executable, module], input=arguments, text=True)
print(os.listdir(prefix + "/releases"), os.listdir(prefix + "/incoming"))
"""


@pytest.mark.parametrize(("size", "count", "length"), [("400k", 1, 600_000), ("400k", 200, 100)])
def test_disk_full(pack, tmp_path, size, count, length):
    # One large file is refused before it is written. Of many small ones only the disk knows how much they take.
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    arguments = pack("b7-cpu-1", files={"lib/%d" % number: str(number) * length for number in range(count)})
    script = tmp_path / "small_disk.py"
    script.write_text(SMALL_DISK)
    given = json.dumps({"ANSIBLE_MODULE_ARGS": arguments})
    done = subprocess.run(
        [*namespace, sys.executable, script, arguments["prefix"], size, llama_release.__file__, given],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        check=False,
    )
    said, left = done.stdout.strip().splitlines()
    assert "bytes are missing" in json.loads(said)["msg"], done
    assert left == "[] []"
