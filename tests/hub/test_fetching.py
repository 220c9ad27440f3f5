"""The module `model` with the real client, asking the simulated hub: what it brings, and that it brings it once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_toys import COLLECTIONS, REPO, Run, named, sha256
from simulated_hub import SimulatedHub

from ansible_collections.llamacpp.cluster.plugins.module_utils import _fetch_hub
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store


def test_a_quantisation_comes_once(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    first = fetch(quant="Q4_K_M")
    assert first["changed"] is True
    assert first["name"] == REPO + "/Q4_K_M"
    assert first["fetched_bytes"] == (toys / "toy-Q4_K_M.gguf").stat().st_size
    assert first["file"] == str(store / "names" / REPO / "Q4_K_M/toy-Q4_K_M.gguf")
    assert named(store, first["name"]) == {"toy-Q4_K_M.gguf": sha256(toys / "toy-Q4_K_M.gguf")}
    source = first["manifest"]["source"]
    assert source["commit"] == first["commit"] == hub.repos[REPO].refs["main"]
    assert (source["revision"], source["quant"]) == ("main", "Q4_K_M")
    assert os.listdir(store / "incoming") == [sha256(toys / "toy-Q4_K_M.gguf") + ".lock"]

    again = fetch(quant="Q4_K_M")
    assert again["changed"] is False
    assert again["manifest"] == first["manifest"]
    assert len(hub.gets()) == 1


def test_a_commit_that_is_here_asks_nobody(fetch: Run, hub: SimulatedHub) -> None:
    commit = hub.repos[REPO].refs["main"]
    assert fetch(quant="Q8_0", revision=commit)["changed"] is True
    hub.stop()
    again = fetch(quant="Q8_0", revision=commit)
    assert (again["changed"], again["commit"]) == (False, commit)
    hub.start()


def test_a_branch_that_moved(fetch: Run, hub: SimulatedHub, toys: Path) -> None:
    first = fetch(quant="Q8_0")
    files = {name: blob.content for name, blob in hub.repos[REPO].commits[first["commit"]].items()}
    other = hub.add(REPO, {**files, "README.md": b"better words"})
    second = fetch(quant="Q8_0")
    assert second["commit"] == second["manifest"]["source"]["commit"] == other
    assert second["manifest"]["files"] == first["manifest"]["files"]
    assert len(hub.gets()) == 1
    third = hub.add(REPO, {**files, "toy-Q8_0.gguf": (toys / "toy-Q4_K_M.gguf").read_bytes()})
    assert fetch(quant="Q8_0", revision=first["commit"])["changed"] is True
    assert fetch(quant="Q8_0")["commit"] == third
    assert len(hub.gets()) == 2


def test_a_branch_of_a_hub_that_is_gone(fetch: Run, hub: SimulatedHub) -> None:
    first = fetch(quant="Q8_0")
    hub.stop()
    again = fetch(quant="Q8_0")
    assert again["changed"] is False
    assert f"the model that is here is kept (commit {first['commit']})" in again["said"]
    refused = fetch(quant="Q4_K_M")
    assert refused["failed"] and "cannot be reached" in refused["msg"]
    hub.start()


def test_a_checksum_is_that_of_the_model_alone(fetch: Run, hub: SimulatedHub, toys: Path) -> None:
    given = {"quant": "Q8_0", "beside": ["mmproj"], "sha256": sha256(toys / "toy-Q8_0.gguf")}
    commit = fetch(**given)["commit"]
    hub.stop()
    again = fetch(**given, revision=commit)
    assert (again["changed"], again["commit"]) == (False, commit)
    hub.start()


def test_a_run_with_nothing_to_bring_notes_that_a_model_is_wanted(fetch: Run, store: Path) -> None:
    name = fetch(quant="Q8_0")["name"]
    os.utime(store / f"manifests/{name}.json", (1, 1))
    assert fetch(check=True, quant="Q8_0")["changed"] is False
    assert Store(str(store)).last_used(name) == 1
    assert fetch(quant="Q8_0")["changed"] is False
    assert Store(str(store)).last_used(name) > time.time() - 60


def test_shards_in_a_folder_come_whole(fetch: Run, store: Path) -> None:
    by_quant = fetch(quant="UD-Q2_K_XL")
    names = [f"toy-UD-Q2_K_XL-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert [item["name"] for item in by_quant["manifest"]["files"]] == names
    assert by_quant["file"].endswith(names[0])
    by_folder = fetch(folder="UD-Q2_K_XL/", name="mine")
    assert by_folder["fetched_bytes"] == 0
    assert named(store, "mine") == named(store, by_quant["name"])


def test_pieces_are_joined(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    whole = b"".join(path.read_bytes() for path in sorted(toys.glob("toy-F16.gguf.part*")))
    first = fetch(quant="F16", sha256=hashlib.sha256(whole).hexdigest())
    assert named(store, first["name"]) == {"toy-F16.gguf": hashlib.sha256(whole).hexdigest()}
    assert fetch(quant="F16")["changed"] is False
    fetch(state="absent", name=first["name"])
    assert fetch(quant="F16")["manifest"]["files"] == first["manifest"]["files"]
    # Nobody publishes the checksum of the joined file, but that its pieces are the same is known.
    files = {name: blob.content for name, blob in hub.repos[REPO].commits[first["commit"]].items()}
    hub.add(REPO, {**files, "README.md": b"better words"})
    before = len(hub.gets())
    assert fetch(quant="F16")["changed"] is True
    assert len(hub.gets()) == before


def test_what_belongs_beside(fetch: Run, toys: Path, store: Path) -> None:
    answer = fetch(quant="Q4_K_M", beside=["mmproj", "tokenizer"])
    assert {item["name"]: item["role"] for item in answer["manifest"]["files"]} == {
        "toy-Q4_K_M.gguf": "model",
        "mmproj-toy-f16.gguf": "mmproj",
        "config.json": "tokenizer",
        "tokenizer.json": "tokenizer",
    }
    assert named(store, answer["name"])["config.json"] == sha256(toys / "config.json")
    assert fetch(quant="Q4_K_M", beside=["mmproj", "tokenizer"])["changed"] is False
    assert fetch(quant="Q4_K_M", beside=["mmproj"])["changed"] is True


def test_several_quantisations_share_what_is_the_same(fetch: Run, hub: SimulatedHub, store: Path) -> None:
    for quant in ("Q4_K_M", "Q8_0"):
        fetch(quant=quant, beside=["mmproj"])
    assert sorted(Store(str(store)).names()) == [REPO + "/Q4_K_M", REPO + "/Q8_0"]
    assert len([asked for asked in hub.gets() if "mmproj" in asked.path]) == 1
    assert len(list((store / "blobs").iterdir())) == 3
    gone = fetch(state="absent", name=REPO + "/Q4_K_M")
    assert gone["changed"] is True
    assert len(list((store / "blobs").iterdir())) == 2
    assert fetch(state="absent", name=REPO + "/Q4_K_M")["changed"] is False


def test_check_mode_says_what_would_come(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    would = fetch(check=True, quant="Q4_K_M")
    assert (would["changed"], would["fetched_bytes"]) == (True, (toys / "toy-Q4_K_M.gguf").stat().st_size)
    assert not store.exists() and not hub.gets()
    did = fetch(quant="Q4_K_M")
    assert dict(did["manifest"], created="") == dict(would["manifest"], created="")
    assert fetch(check=True, quant="Q4_K_M")["changed"] is False
    gone = fetch(check=True, state="absent", name=did["name"])
    assert (gone["changed"], gone["freed_bytes"]) == (True, did["fetched_bytes"])
    assert "name = '../x'" in fetch(check=True, state="absent", name="../x")["msg"]
    assert named(store, did["name"])


def test_ranges_for_files_that_one_answer_cannot_hold(
    fetch: Run, hub: SimulatedHub, toys: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fetch_hub, "RANGE", 100_000)
    answer = fetch(quant="Q4_K_M")
    assert named(store, answer["name"]) == {"toy-Q4_K_M.gguf": sha256(toys / "toy-Q4_K_M.gguf")}
    assert [asked.first for asked in hub.gets()] == [0, 100_000, 200_000]


def test_a_repository_that_moved(fetch: Run, hub: SimulatedHub) -> None:
    hub.repos["owner/old"] = type(hub.repos[REPO])(moved=REPO)
    assert fetch(repo="owner/old", quant="Q8_0")["name"] == "owner/old/Q8_0"


def test_the_endpoint_of_the_environment(fetch: Run, hub: SimulatedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    assert fetch(quant="Q8_0", endpoint=None)["changed"] is True


# Tokens


def test_a_gated_repository_explains_itself(fetch: Run, hub: SimulatedHub, store: Path) -> None:
    hub.repos[REPO].gated = "hf_right"
    without = fetch(quant="Q8_0")
    assert without["failed"]
    assert f"it is gated: accept the conditions on {hub.url}/{REPO}" in without["msg"]
    assert "llamacpp_hub_token_file" in without["msg"]
    wrong = fetch(quant="Q8_0", token="hf_wrong")
    assert "the owner of this token may not have it yet" in wrong["msg"]
    assert "hf_wrong" not in wrong["said"]
    assert not (store / "names").exists()


@pytest.mark.parametrize("way", ["option", "file", "environment"])
def test_ways_to_give_a_token(
    fetch: Run, hub: SimulatedHub, store: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hf_a_rather_secret_token"
    hub.repos[REPO].gated = secret
    arguments = {}
    if way == "option":
        arguments = {"token": secret}
    elif way == "environment":
        monkeypatch.setenv("HF_TOKEN", secret)
    else:
        (tmp_path / "token").write_text(secret + "\n")
        arguments = {"token_file": str(tmp_path / "token")}
    answer = fetch(quant="Q8_0", beside=["tokenizer"], **arguments)
    assert answer["changed"] is True
    assert secret not in answer["said"].replace(json.dumps(arguments), "")
    assert not [path for path in store.rglob("*.json") if secret in path.read_text()]
    # The storage service, another origin, never sees it.
    assert [asked.token for asked in hub.gets("cdn")] == [False] * len(hub.gets("cdn"))


def test_the_terminal_never_shows_a_token(hub: SimulatedHub, store: Path, tmp_path: Path) -> None:
    """With -vvv, and whether the hub takes it or not; given as the role models gives it."""
    right, wrong = "hf_a_rather_secret_token", "hf_one_that_is_wrong"
    hub.repos[REPO].gated = right
    common = {"repo": REPO, "quant": "Q8_0", "store": str(store), "endpoint": hub.url}
    tasks: list[dict[str, object]] = []
    for name, secret in (("wrong", wrong), ("right", right)):
        (tmp_path / name).write_text(secret + "\n")
        token = "{{ lookup('ansible.builtin.file', '%s') | trim }}" % (tmp_path / name)
        tasks.append({"llamacpp.cluster.model": {**common, "token": token}, "ignore_errors": name == "wrong"})
    play = {"hosts": "localhost", "gather_facts": False, "connection": "local", "tasks": tasks}
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    (tmp_path / "play.yml").write_text(json.dumps([{**play, "vars": {"ansible_python_interpreter": sys.executable}}]))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "ANSIBLE_ASYNC_DIR": str(tmp_path / "async"),
    }
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-vvv", "-i", "localhost,", tmp_path / "play.yml"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "the owner of this token may not have it yet" in said and '"token": "VALUE_SPECIFIED_IN_NO_LOG' in said
    assert right not in said and wrong not in said
    assert named(store, REPO + "/Q8_0")


def test_a_token_file_without_a_token(fetch: Run, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    assert "it has no token" in fetch(quant="Q8_0", token_file=str(tmp_path / "token"))["msg"]
    assert "no such file" in fetch(quant="Q8_0", token_file=str(tmp_path / "nothing"))["msg"]


def test_a_private_repository(fetch: Run, hub: SimulatedHub) -> None:
    hub.repos[REPO].private = "hf_right"
    assert "no such repository, or it is private and needs a token" in fetch(quant="Q8_0")["msg"]
    assert "or this token may not see it" in fetch(quant="Q8_0", token="hf_wrong")["msg"]
    assert fetch(quant="Q8_0", token="hf_right")["changed"] is True


@pytest.mark.parametrize(
    ("path", "status", "code", "token", "says"),
    [
        ("/revision/", 401, "", "hf_old", "the hub says 401: the token is wrong or expired"),
        ("/revision/", 403, "", "hf_narrow", "the hub says 403: this token may not read it"),
        ("/resolve/", 403, "GatedRepo", "hf_new", "the owner of this token may not have it yet"),
        ("/resolve/", 401, "GatedRepo", None, "it is gated: accept the conditions on "),
        ("/resolve/", 404, "EntryNotFound", None, "toy-Q8_0.gguf: the hub does not have it any more; run again"),
        ("/tree/", 404, "RevisionNotFound", None, "it has no revision "),
        ("/tree/", 404, "RepoNotFound", "hf_new", "no such repository, or this token may not see it"),
    ],
)
def test_each_refusal_has_its_own_words(
    fetch: Run, hub: SimulatedHub, store: Path, path: str, status: int, code: str, token: str | None, says: str
) -> None:
    # By these words the client tells a token that is wrong from a repository that is not there.
    headers = {"X-Error-Code": code, "X-Error-Message": "Invalid credentials in Authorization header"}
    hub.fault("status", path=path, status=status, method="", headers=headers, times=0)
    answer = fetch(quant="Q8_0", token=token)
    assert answer["failed"] and says in answer["msg"]
    assert not (store / "names").exists()
    hub.heal()
    assert fetch(quant="Q8_0")["changed"] is True


# What is not there


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"quant": "Q3_K_S"}, "it has no quantisation Q3_K_S; it has UD-Q2_K_XL (1 MiB), Q8_0 (1 MiB), Q4_K_M"),
        ({"file": "*.gguf"}, "means several models"),
        ({"file": "../../etc/passwd"}, "no file is ../../etc/passwd"),
        ({"quant": "Q8_0", "name": "../../etc/passwd"}, "name = '../../etc/passwd'"),
        ({"quant": "Q8_0", "revision": "v9"}, "it has no revision v9"),
        ({"quant": "Q8_0", "sha256": "0" * 64}, "the hub says "),
        ({"quant": "Q8_0", "repo": "owner/nothing"}, "no such repository"),
        ({"quant": "Q8_0", "repo": "nothing"}, "written owner/name"),
    ],
)
def test_refusals(fetch: Run, hub: SimulatedHub, store: Path, arguments: dict[str, str], says: str) -> None:
    answer = fetch(**arguments)
    assert answer["failed"] and says in answer["msg"]
    assert not (store / "names").exists() and not hub.gets()


def test_a_set_that_is_not_whole(fetch: Run, hub: SimulatedHub, toys: Path) -> None:
    shards = sorted((toys / "UD-Q2_K_XL").iterdir())
    hub.add(REPO, {f"{path.parent.name}/{path.name}": path for path in (shards[0], shards[2])})
    assert "its UD-Q2_K_XL is not complete: file 2 of 3" in fetch(quant="UD-Q2_K_XL")["msg"]


def test_shards_that_do_not_belong_together(fetch: Run, hub: SimulatedHub, toys: Path, store: Path) -> None:
    shards = sorted((toys / "UD-Q2_K_XL").iterdir())
    hub.add(REPO, {path.name: (shards[2] if path == shards[1] else path) for path in shards})
    answer = fetch(quant="UD-Q2_K_XL")
    assert "these files are no whole model" in answer["msg"]
    assert not (store / "names").exists()
