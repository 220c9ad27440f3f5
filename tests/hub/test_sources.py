"""Models from plain addresses and from files of the machine, through the module `model`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hub_toys import REPO, Run, named, sha256
from simulated_hub import SimulatedHub

FILE = "toy-Q4_K_M.gguf"


def address(hub: SimulatedHub, name: str) -> str:
    return f"{hub.url}/{REPO}/resolve/main/{name}"


def whole_of(toys: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(toys.glob("toy-F16.gguf.part*")))


# Addresses


def test_an_address_comes_once(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    first = fetch(urls=[address(hub, FILE)], sha256=sha256(toys / FILE))
    assert (first["changed"], first["name"]) == (True, "toy-Q4_K_M")
    assert named(store, "toy-Q4_K_M") == {FILE: sha256(toys / FILE)}
    hub.stop()
    assert fetch(urls=[address(hub, FILE)], sha256=sha256(toys / FILE).upper())["changed"] is False
    hub.start()


def test_an_address_without_a_checksum_is_told(fetch: Run, hub: SimulatedHub, toys: Path) -> None:
    answer = fetch(urls=[address(hub, FILE)], name="mine")
    assert answer["changed"] is True
    assert f"{FILE}: nobody said which sha256 it must have; it has {sha256(toys / FILE)}" in str(answer["warnings"])
    assert fetch(urls=[address(hub, FILE)], name="mine")["changed"] is False
    declared = fetch(urls=[address(hub, FILE)], name="mine", sha256="0" * 64)
    assert declared["failed"] and "instead of " + "0" * 64 in declared["msg"]


def test_signatures_of_addresses_are_not_kept(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    url = address(hub, FILE) + "?X-Signature=secret"
    answer = fetch(urls=[url], sha256=sha256(toys / FILE))
    assert answer["manifest"]["source"]["urls"] == [address(hub, FILE)]
    assert "secret" not in answer["said"].replace(url, "")
    assert not [path for path in store.rglob("*.json") if "secret" in path.read_text()]


def test_a_query_may_say_which_file_is_meant(fetch: Run, hub: SimulatedHub, toys: Path) -> None:
    first = fetch(urls=[address(hub, FILE) + "?version=1"])
    assert fetch(urls=[address(hub, FILE) + "?version=1"])["changed"] is False
    other = (toys / FILE).read_bytes()[:-1] + b"!"
    hub.add(REPO, {FILE: other})
    second = fetch(urls=[address(hub, FILE) + "?version=2"])
    assert (first["name"], second["changed"]) == (second["name"], True)
    assert second["manifest"]["files"][0]["sha256"] == hashlib.sha256(other).hexdigest()
    hub.stop()
    kept = fetch(urls=[address(hub, FILE) + "?version=2"])
    assert kept["changed"] is False and "the model that is here is kept" in str(kept["warnings"])
    hub.start()


def test_files_that_are_no_model(fetch: Run, hub: SimulatedHub, toys: Path) -> None:
    urls = [address(hub, name) for name in ("config.json", "mmproj-toy-f16.gguf")]
    assert "none of these files is a model" in fetch(urls=urls, sha256="0" * 64)["msg"]
    paths = [str(toys / name) for name in ("config.json", "mmproj-toy-f16.gguf")]
    assert "none of these files is a model" in fetch(paths=paths)["msg"]


def test_shards_and_pieces_at_addresses(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    shards = sorted(path.name for path in (toys / "UD-Q2_K_XL").iterdir())
    answer = fetch(urls=[address(hub, "UD-Q2_K_XL/" + name) for name in reversed(shards)])
    assert answer["name"] == "toy-UD-Q2_K_XL"
    assert [item["name"] for item in answer["manifest"]["files"]] == shards
    pieces = [address(hub, f"toy-F16.gguf.part{number}of3") for number in (2, 3, 1)]
    digest = hashlib.sha256(whole_of(toys)).hexdigest()
    fetch(urls=pieces, sha256=digest)
    assert named(store, "toy-F16") == {"toy-F16.gguf": digest}


def test_a_set_with_a_file_missing(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    shards = sorted(path.name for path in (toys / "UD-Q2_K_XL").iterdir())
    answer = fetch(urls=[address(hub, "UD-Q2_K_XL/" + name) for name in shards[:2]])
    assert "these files are no whole model" in answer["msg"] and "3 files, 2 were found" in answer["msg"]
    pieces = [address(hub, f"toy-F16.gguf.part{number}of3") for number in (1, 3)]
    assert "toy-F16.gguf: piece 2 is missing" in fetch(urls=pieces)["msg"]
    assert not (store / "names").exists()


def test_an_address_goes_on_where_it_broke(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    hub.fault("cut", at=1, path="/cdn/")  # The look at its size.
    hub.fault("cut", at=100_000)
    hub.fault("cut", at=150_000)
    answer = fetch(urls=[address(hub, FILE)], sha256=sha256(toys / FILE))
    assert answer["changed"] is True
    firsts = [asked.first for asked in hub.gets()][1:]
    assert firsts[0] is None and firsts == sorted(firsts, key=lambda first: first or 0)
    assert named(store, answer["name"]) == {FILE: sha256(toys / FILE)}


def test_a_server_without_ranges(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    hub.fault("norange", times=0)
    hub.fault("cut", at=0, times=1)
    hub.fault("cut", at=200_000)
    assert fetch(urls=[address(hub, FILE)], sha256=sha256(toys / FILE))["changed"] is True
    assert named(store, "toy-Q4_K_M") == {FILE: sha256(toys / FILE)}


def test_a_file_that_changes_between_two_runs_is_begun_anew(
    fetch: Run, hub: SimulatedHub, toys: Path, store: Path
) -> None:
    for _number in range(6):
        hub.fault("cut", at=100_000)
    assert "run again to go on" in fetch(urls=[address(hub, FILE)])["msg"]
    hub.heal()
    other = (toys / FILE).read_bytes()
    other = other[:-1] + bytes([other[-1] ^ 1])
    hub.add(REPO, {FILE: other})
    answer = fetch(urls=[address(hub, FILE)])
    assert answer["manifest"]["files"][0]["sha256"] == hashlib.sha256(other).hexdigest()


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing.gguf", "the repository has no such file"), ("", "it names no file"), ("README.md", "README.md")],
)
def test_addresses_that_cannot_be(fetch: Run, hub: SimulatedHub, store: Path, name: str, says: str) -> None:
    answer = fetch(urls=[address(hub, name)], sha256="0" * 64)
    assert answer["failed"] and says in answer["msg"]
    assert not (store / "names").exists()


# Files of the machine


def test_a_file_is_linked(fetch: Run, toys: Path, store: Path) -> None:
    os.chmod(toys / FILE, 0o644)
    assert fetch(check=True, paths=[str(toys / FILE)])["changed"] is True
    assert not store.exists()
    answer = fetch(paths=[str(toys / FILE)])
    assert (answer["changed"], answer["name"], answer["fetched_bytes"]) == (True, "toy-Q4_K_M", 0)
    assert os.path.samefile(answer["file"], toys / FILE)
    assert fetch(paths=[str(toys / FILE)])["changed"] is False
    assert fetch(check=True, paths=[str(toys / FILE)])["changed"] is False


def test_what_goes_beside_a_file(fetch: Run, toys: Path, tmp_path: Path) -> None:
    """A projector is GGUF too, and no part of the model that it goes with."""
    for name in (FILE, "mmproj-toy-f16.gguf"):
        (tmp_path / name).write_bytes((toys / "toy-Q8_0.gguf").read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    names = [FILE, "mmproj-toy-f16.gguf", "tokenizer.json"]
    answer = fetch(paths=[str(tmp_path / name) for name in names])
    roles = {file["name"]: file["role"] for file in answer["manifest"]["files"]}
    assert roles == dict(zip(names, ["model", "mmproj", "tokenizer"], strict=True))
    assert os.path.basename(answer["file"]) == FILE


def test_a_file_that_changed_is_seen(fetch: Run, toys: Path, tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes((toys / FILE).read_bytes())
    first = fetch(paths=[str(source)])
    source.unlink()
    gone = fetch(paths=[str(source)])
    assert gone["changed"] is False and "no such file" in str(gone["warnings"])
    source.write_bytes((toys / "toy-Q8_0.gguf").read_bytes())
    assert fetch(check=True, paths=[str(source)])["changed"] is True
    second = fetch(paths=[str(source)])
    assert second["changed"] is True
    assert second["manifest"]["files"] != first["manifest"]["files"]


def test_a_file_that_stays_where_it_is(fetch: Run, toys: Path, store: Path) -> None:
    answer = fetch(paths=[str(toys / FILE)], external=True, name="outside")
    assert os.readlink(answer["file"]) == str(toys / FILE)
    assert not (store / "blobs").exists()
    assert fetch(paths=[str(toys / FILE)], external=True, name="outside")["changed"] is False
    assert fetch(check=True, paths=[str(toys / FILE)], name="outside")["changed"] is True
    held = fetch(paths=[str(toys / FILE)], name="outside")
    assert held["changed"] is True and not os.path.islink(held["file"])


def test_a_copy_that_does_not_fit(fetch: Run, toys: Path, tmp_path: Path) -> None:
    fetch(paths=[str(toys / "toy-Q8_0.gguf")])
    (tmp_path / "m.gguf").write_bytes((toys / FILE).read_bytes())
    (tmp_path / "m.gguf").chmod(0o666)  # Somebody else may change it, so it is copied.
    given = {"paths": [str(tmp_path / "m.gguf")], "quota": 300_000}
    assert fetch(check=True, **given)["evicted"] == fetch(**given)["evicted"] == ["toy-Q8_0"]
    for check in (True, False):
        assert "raise llamacpp_models_quota" in fetch(check=check, name="more", **{**given, "quota": 1000})["msg"]


def test_pieces_on_the_disk_are_joined(fetch: Run, toys: Path, store: Path) -> None:
    pieces = [str(path) for path in sorted(toys.glob("toy-F16.gguf.part*"))]
    answer = fetch(paths=pieces)
    assert named(store, "toy-F16") == {"toy-F16.gguf": hashlib.sha256(whole_of(toys)).hexdigest()}
    assert answer["fetched_bytes"] == len(whole_of(toys))
    assert fetch(paths=pieces)["changed"] is False
    assert "cannot be used where they are" in fetch(paths=pieces, external=True)["msg"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"paths": ["/nothing/m.gguf"]}, "no such file or directory on this node; correct path"),
        ({"paths": ["/etc/passwd"], "sha256": "0" * 64}, "instead of " + "0" * 64),
        ({"paths": ["/dev/null"]}, "/dev/null"),
        ({"urls": ["ftp://127.0.0.1/m.gguf"]}, "only http and https"),
        ({"state": "present"}, "say where the model is with repo, urls or paths"),
        ({"state": "absent"}, "say which model with name"),
        ({"state": "absent", "name": "../../etc/passwd"}, "name = '../../etc/passwd'"),
    ],
)
def test_what_cannot_be(fetch: Run, store: Path, arguments: dict[str, object], says: str) -> None:
    answer = fetch(**arguments)
    assert answer["failed"] and says in answer["msg"]
    assert not (store / "names").exists()
