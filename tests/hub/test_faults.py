"""What goes wrong while a model is fetched: nothing wrong ever has a name, and a second run finishes the work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_toys import COLLECTIONS, PROGRAM, REPO, Run, named, sha256
from simulated_hub import SimulatedHub

from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store

NAME = REPO + "/Q4_K_M"
FILE = "toy-Q4_K_M.gguf"
Start = Callable[..., "subprocess.Popen[str]"]


def part_of(toys: Path, store: Path) -> Path:
    return store / "incoming" / (sha256(toys / FILE) + ".part")


def bytes_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wait_until(said: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_whole(toys: Path, store: Path) -> bool:
    return named(store, NAME) == {FILE: sha256(toys / FILE)} and not list((store / "incoming").glob("*.part"))


# The connection


@pytest.mark.parametrize("at", [0, 1, 4096, 100_000, 260_000])
def test_cut_at_a_byte(fetch: Run, hub: SimulatedHub, toys: Path, store: Path, at: int) -> None:
    hub.fault("cut", at=at)
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert is_whole(toys, store)
    first, second = hub.gets()
    # Chunks of 4096 bytes are written whole; the one that had begun comes again.
    assert (first.first, second.first) == (None, at // 4096 * 4096 or None)


def test_cut_again_and_again(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    for at in range(20_000, 220_000, 20_000):
        hub.fault("cut", at=at)
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert is_whole(toys, store)
    assert len(hub.gets()) == 11


def test_cut_in_a_small_file(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    hub.fault("cut", path="resolve-cache/.*config.json", at=10)
    assert fetch(quant="Q4_K_M", beside=["config.json"])["changed"] is True
    hub.fault("gone", path="resolve-cache/.*config.json", at=10)
    first = fetch(quant="Q8_0", beside=["config.json"], store=str(store) + "2")
    assert first["failed"] and "config.json: " in first["msg"] and "run again to go on" in first["msg"]
    assert not Path(str(store) + "2", "names").exists()
    hub.heal()
    assert fetch(quant="Q8_0", beside=["config.json"], store=str(store) + "2")["changed"] is True
    for where, name in ((store, NAME), (Path(str(store) + "2"), REPO + "/Q8_0")):
        assert named(where, name)["config.json"] == sha256(toys / "config.json")


def test_an_address_of_the_storage_that_has_ended(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    hub.fault("status", path="/cdn/", status=403, times=0)
    refused = fetch(quant="Q4_K_M")
    assert refused["failed"] and f"127.0.0.1:{hub.cdn_port}, where the hub sends us, says 403" in refused["msg"]
    hub.heal()
    # The client asks the same address again, whose signature is too old by now; the hub gives another one.
    hub.fault("status", path="/cdn/", status=403, times=2)
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert is_whole(toys, store)


def test_a_hub_that_goes_away_half_way(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    hub.fault("gone", at=150_000)
    first = fetch(quant="Q4_K_M")
    assert first["failed"] and "are here and are kept: run again to go on" in first["msg"]
    assert not (store / "names").exists()
    have = bytes_of(part_of(toys, store))
    assert 140_000 < have <= 150_000
    hub.heal()
    assert fetch(quant="Q4_K_M")["fetched_bytes"] == (toys / FILE).stat().st_size - have
    assert [asked.first for asked in hub.gets()] == [have]
    assert is_whole(toys, store)


def test_a_server_that_forgot_what_ranges_are(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    hub.fault("cut", at=100_000)
    hub.fault("norange", times=0)
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert is_whole(toys, store)


@pytest.mark.parametrize("path", ["/api/models/.*/revision", "/tree/", "/resolve/", "/cdn/"])
@pytest.mark.parametrize("status", [429, 503])
def test_later_please(fetch: Run, hub: SimulatedHub, toys: Path, store: Path, path: str, status: int) -> None:
    hub.fault("status", path=path, status=status, method="", headers={"Retry-After": "0"}, times=2)
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert is_whole(toys, store)


@pytest.mark.parametrize("headers", [{"Retry-After": "2"}, {"RateLimit": '"api";r=0;t=2'}])
def test_the_wish_of_the_hub_is_heard(fetch: Run, hub: SimulatedHub, headers: dict[str, str]) -> None:
    hub.fault("status", path="/api/models/", status=429, headers=headers)
    assert fetch(quant="Q4_K_M")["seconds"] >= 2


def test_much_later_please(fetch: Run, hub: SimulatedHub) -> None:
    hub.fault("status", path="/tree/", status=429, headers={"Retry-After": "3600"}, times=0)
    assert "the hub says 429 and wants us to wait for 3600 s" in fetch(quant="Q4_K_M")["msg"]


def test_a_hub_that_cannot(fetch: Run, hub: SimulatedHub) -> None:
    hub.fault("status", path="/api/models/", status=500, times=0)
    assert "the hub says 500" in fetch(quant="Q4_K_M")["msg"]


def test_what_is_no_hub(fetch: Run, hub: SimulatedHub) -> None:
    assert fetch(quant="Q4_K_M", endpoint=hub.url + "/nothing")["failed"]


# The bytes


@pytest.mark.parametrize("at", [0, 130_000, 262_000])
def test_wrong_bytes(fetch: Run, hub: SimulatedHub, toys: Path, store: Path, at: int) -> None:
    hub.fault("flip", at=at)
    answer = fetch(quant="Q4_K_M")
    assert answer["failed"] and FILE in answer["msg"]
    assert not (store / "names").exists() and not list((store / "incoming").glob("*.part"))
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert is_whole(toys, store)


def test_wrong_bytes_again_and_again(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    hub.fault("flip", at=130_000, times=2)
    for _number in range(2):
        assert f"instead of {sha256(toys / FILE)}: run again" in fetch(quant="Q4_K_M")["msg"]
        assert not (store / "names").exists() and not list((store / "incoming").glob("*.part"))
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert is_whole(toys, store)


def test_wrong_bytes_in_a_small_file(fetch: Run, hub: SimulatedHub, store: Path) -> None:
    hub.fault("flip", path="config.json", at=3)
    answer = fetch(quant="Q4_K_M", beside=["config.json"])
    assert "config.json: its bytes have the checksum" in answer["msg"]
    assert not (store / "names").exists()
    assert fetch(quant="Q4_K_M", beside=["config.json"])["changed"] is True


def test_wrong_bytes_in_a_piece(fetch: Run, hub: SimulatedHub, store: Path) -> None:
    hub.fault("flip", path="part2of3", at=10)
    answer = fetch(quant="F16")
    assert "toy-F16.gguf.part2of3: its bytes have the checksum" in answer["msg"]
    hub.heal()
    assert fetch(quant="F16")["changed"] is True
    # The first piece was right, and stayed.
    assert [asked.path[-8:] for asked in hub.gets()] == ["part2of3", "part3of3"]


def test_a_file_that_is_no_model(fetch: Run, hub: SimulatedHub, store: Path) -> None:
    hub.add(REPO, {"bad-Q4_K_M.gguf": b"no GGUF at all" * 1000})
    answer = fetch(quant="Q4_K_M")
    assert "bad-Q4_K_M.gguf from hf://owner/toy-GGUF/bad-Q4_K_M.gguf is no usable model" in answer["msg"]
    assert not (store / "names").exists()


def test_a_name_that_no_file_can_have(fetch: Run, hub: SimulatedHub, store: Path) -> None:
    hub.add(REPO, {"bad(1)-Q4_K_M.gguf.part1of2": b"x" * 5000, "bad(1)-Q4_K_M.gguf.part2of2": b"y" * 5000})
    answer = fetch(quant="Q4_K_M")
    assert "file name 'bad(1)-Q4_K_M.gguf'" in answer["msg"] and "rename the file" in answer["msg"]
    assert not hub.gets() and not store.exists()


def test_a_part_of_something_longer(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    part = part_of(toys, store)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(300_000))
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert is_whole(toys, store)


def test_a_part_with_holes(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    """A swarm or a pull that was killed has left it; of what is there, the beginning is not known."""
    part = part_of(toys, store)
    part.parent.mkdir(parents=True)
    with part.open("wb") as stream:
        os.truncate(part, (toys / FILE).stat().st_size)
        stream.seek(131072)
        stream.write((toys / FILE).read_bytes()[131072:196608])
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert is_whole(toys, store)


def test_a_blob_that_is_missing_comes_again(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    fetch(quant="Q4_K_M", beside=["mmproj"])
    (store / "blobs" / sha256(toys / FILE)).unlink()
    shutil.rmtree(store / "names")
    hub.heal()
    assert fetch(quant="Q4_K_M", beside=["mmproj"])["changed"] is True
    assert [asked.path.rpartition("/")[2] for asked in hub.gets()] == [FILE]
    assert named(store, NAME)[FILE] == sha256(toys / FILE)


# The process


@pytest.mark.parametrize("at", [4096, 50_000, 250_000])
def test_killed(start: Start, fetch: Run, hub: SimulatedHub, toys: Path, store: Path, at: int) -> None:
    part, have = part_of(toys, store), at // 4096 * 4096
    hub.fault("stall", at=at)
    process = start(quant="Q4_K_M")
    wait_until(lambda: bytes_of(part) == have)
    process.kill()
    process.wait()
    assert not (store / "names").exists() and not Store(str(store)).names()
    hub.heal()
    assert fetch(quant="Q4_K_M")["changed"] is True
    assert [asked.first for asked in hub.gets()] == [have]
    assert is_whole(toys, store)


def test_killed_between_pieces(start: Start, fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    size = (toys / "toy-F16.gguf.part1of3").stat().st_size
    hub.fault("stall", path="part2of3", at=10_000)
    process = start(quant="F16")
    incoming = store / "incoming"
    wait_until(lambda: [path.stat().st_size for path in incoming.glob("*.part")] == [size + 8192])
    process.kill()
    process.wait()
    hub.heal()
    assert fetch(quant="F16")["changed"] is True
    assert [asked.path[-8:] for asked in hub.gets()] == ["part2of3", "part3of3"]
    assert hub.gets()[0].first == 8192


def test_two_runs_at_once(start: Start, hub: SimulatedHub, toys: Path, store: Path, tmp_path: Path) -> None:
    stall = hub.fault("stall", at=100_000)
    first = start(quant="Q4_K_M")
    wait_until(lambda: bytes_of(part_of(toys, store)) > 0)
    progress = tmp_path / "progress"
    second = start(quant="Q4_K_M", progress_file=str(progress))
    wait_until(lambda: progress.exists() and "waiting for a run that fetches" in progress.read_text())
    assert NAME in progress.read_text() and f"(pid {first.pid})" in progress.read_text()
    stall.rate = 1
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in (first, second)]
    assert [answer["fetched_bytes"] for answer in answers] == [(toys / FILE).stat().st_size, 0]
    assert [answer["manifest"]["files"] for answer in answers] == [answers[0]["manifest"]["files"]] * 2
    assert len(hub.gets()) == 1
    assert is_whole(toys, store)


def test_waiting_has_an_end(start: Start, fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    hub.fault("stall", at=100_000)
    start(quant="Q4_K_M")
    wait_until(lambda: bytes_of(part_of(toys, store)) > 0)
    answer = fetch(quant="Q4_K_M", lock_wait=0)
    assert answer["failed"] and "a run that fetches owner/toy-GGUF/Q4_K_M" in answer["msg"]


def test_nobody_reads_the_token_or_misses_the_progress(
    start: Start, hub: SimulatedHub, toys: Path, store: Path, tmp_path: Path
) -> None:
    secret = "hf_a_rather_secret_token"
    hub.repos[REPO].gated = secret
    slow = hub.fault("slow", rate=50_000)
    (tmp_path / "token").write_text(secret)
    progress = tmp_path / "progress"
    process = start(quant="Q4_K_M", token_file=str(tmp_path / "token"), progress_file=str(progress))
    wait_until(lambda: progress.exists() and "fetching " + FILE in progress.read_text())
    place = Path("/proc") / str(process.pid)
    assert secret.encode() not in (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
    wait_until(lambda: "MiB/s, " in progress.read_text() and " s left" in progress.read_text())
    assert secret not in progress.read_text()
    slow.rate = 10**9
    out, err = process.communicate(timeout=60)
    assert json.loads(out)["changed"] is True
    assert secret not in out + err
    assert not progress.exists()


# The disk


def test_a_quota_that_is_too_small(fetch: Run, hub: SimulatedHub, store: Path) -> None:
    answer = fetch(quant="Q4_K_M", quota=100_000)
    assert answer["failed"] and "the quota is smaller than the model, raise llamacpp_models_quota" in answer["msg"]
    assert not hub.gets()


def test_a_quota_lets_the_least_recently_used_go(fetch: Run, hub: SimulatedHub, store: Path) -> None:
    fetch(quant="Q8_0")
    quota = 450_000  # two of the three fit
    hub.add("owner/other", {"other-Q4_K_M.gguf": make(store.parent, 1, kib=100)})
    fetch(repo="owner/other", quant="Q4_K_M", quota=quota)
    os.utime(store / "manifests/owner/other/Q4_K_M.json", (1, 1))
    answer = fetch(quant="Q4_K_M", quota=quota, keep=[REPO + "/Q8_0"])
    assert answer["evicted"] == ["owner/other/Q4_K_M"]
    assert sorted(Store(str(store)).names()) == [NAME, REPO + "/Q8_0"]
    refused = fetch(repo="owner/other", quant="Q4_K_M", quota=quota, keep=[NAME, REPO + "/Q8_0"])
    assert refused["failed"] and "llamacpp_models_quota" in refused["msg"]
    assert sorted(Store(str(store)).names()) == [NAME, REPO + "/Q8_0"]


def test_what_both_have_stays_when_one_goes_for_the_other(
    fetch: Run, hub: SimulatedHub, toys: Path, store: Path
) -> None:
    fetch(quant="Q4_K_M", beside=["mmproj"])
    sizes = [(toys / name).stat().st_size for name in ("toy-Q8_0.gguf", "mmproj-toy-f16.gguf")]
    given = {"quant": "Q8_0", "beside": ["mmproj"], "quota": sum(sizes)}
    assert fetch(check=True, **given)["evicted"] == [NAME]
    answer = fetch(**given)
    assert (answer["changed"], answer["evicted"]) == (True, [NAME])
    assert named(store, answer["name"])["mmproj-toy-f16.gguf"] == sha256(toys / "mmproj-toy-f16.gguf")
    assert len([asked for asked in hub.gets() if "mmproj" in asked.path]) == 1


def make(where: Path, seed: int, kib: int) -> Path:
    import gguf_repos

    return gguf_repos.write_model(where / f"made-{seed}.gguf", kib=kib, seed=seed)[0]


@pytest.fixture
def small_disk(hub: SimulatedHub, tmp_path: Path) -> Callable[[str, str], dict[str, object]]:
    """Run the module with the store on a disk of 4 MiB of its own, after ``before`` and while ``meanwhile``."""
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]
    probe = subprocess.run([*unshare, f"mount -t tmpfs none {tmp_path}"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("mounts are not permitted here")

    def run(before: str, meanwhile: str) -> dict[str, object]:
        disk = tmp_path / "disk"
        disk.mkdir(exist_ok=True)
        (tmp_path / "program.py").write_text(PROGRAM)
        given = {"store": str(disk), "endpoint": hub.url, "repo": REPO, "quant": "Q4_K_M"}
        (tmp_path / "given.json").write_text(json.dumps(given))
        module = f"{sys.executable} {tmp_path}/program.py {COLLECTIONS} < {tmp_path}/given.json"
        script = f"mount -t tmpfs -o size=4m none {disk}; cd {disk}; {before}; ({meanwhile}) & {module} || true; wait"
        done = subprocess.run([*unshare, script], capture_output=True, text=True, check=False, timeout=60)
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    return run


def test_a_disk_that_is_too_full_to_begin(
    small_disk: Callable[[str, str], dict[str, object]], hub: SimulatedHub
) -> None:
    answer = small_disk("head -c 3900000 /dev/zero > other", "true")
    assert answer["failed"] and "are free on its disk" in str(answer["msg"])
    assert not hub.gets()


def test_a_disk_that_others_fill_meanwhile(
    small_disk: Callable[[str, str], dict[str, object]], hub: SimulatedHub
) -> None:
    hub.fault("slow", rate=100_000)
    answer = small_disk(
        "true", "until ls incoming/*.part >/dev/null 2>&1; do sleep 0.05; done; cat /dev/zero > other 2>/dev/null"
    )
    assert answer["failed"] and "is full: free some space and run again, what has come is kept" in str(answer["msg"])
