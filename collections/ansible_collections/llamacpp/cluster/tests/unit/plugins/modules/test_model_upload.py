# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A model on its way from the control node: what the module prepares and verifies, and what the action sends."""

from __future__ import annotations

import os
import pwd
import subprocess
from types import SimpleNamespace

import pytest

from ansible_collections.llamacpp.cluster.plugins.action import model_upload as action
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Manifest, Store
from ansible_collections.llamacpp.cluster.plugins.modules import model_upload
from ansible_collections.llamacpp.cluster.tests.unit.builders import llama
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import bring

ME = pwd.getpwuid(os.geteuid()).pw_name


class Site:
    """A control node with a model in its store, and a node without."""

    def __init__(self, tmp_path, run_module):
        self.control, self.node = Store(str(tmp_path / "control")), Store(str(tmp_path / "node"))
        self.content = llama()
        self.file = bring(self.control, "toy.gguf", self.content, "model")
        self.manifest = Manifest("toy", (self.file,))
        self.control.name(self.manifest)
        self.place = self.node.part(self.file.sha256) + ".upload"
        self._run = run_module

    def run(self, check=False, **arguments):
        given = {"manifest": self.manifest.as_dict(), "source": self.control.root, "store": self.node.root}
        return self._run(model_upload, check=check, **{**given, **arguments})

    def send(self, runner, content=None):
        """Let the action send the file; ``runner``: what runs its commands."""
        source = self.control.path_of("toy", "toy.gguf")
        if content is not None:
            source = self.control.root + "/other"
            with open(source, "wb") as stream:
                stream.write(content)
        sender = SimpleNamespace(_low_level_execute_command=runner)
        sender._say = lambda command, piece: action.ActionModule._say(sender, command, piece)
        item = {"name": "toy.gguf", "bytes": self.file.bytes, "path": self.place}
        action.ActionModule._send(sender, source, item, "node1")


@pytest.fixture
def site(tmp_path, run_module):
    return Site(tmp_path, run_module)


def shell(command, sudoable, in_data=None, user=None):
    """Run a command of the action as a connection does."""
    assert sudoable is False, "bytes are sent as the login user"
    done = subprocess.run(["sh", "-c", command], input=in_data or b"", capture_output=True, check=False, user=user)
    return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}


def test_a_model_arrives(site):
    prepared = site.run(login=ME)
    assert [item["path"] for item in prepared["lacking"]] == [site.place]
    assert prepared["changed"] is False, "nothing is there yet"
    site.send(shell)
    assert site.run()["changed"] is True
    assert site.node.present(site.manifest)
    with open(site.node.path_of("toy", "toy.gguf"), "rb") as stream:
        assert stream.read() == site.content
    again = site.run(login=ME)
    assert (again["lacking"], site.run()["changed"]) == ([], False)


def test_what_was_sent_stays(site, monkeypatch):
    monkeypatch.setattr(action, "PIECE_BYTES", 1000)
    site.run(login=ME)
    sent = []

    def breaks(command, sudoable, in_data=None):
        if in_data and len(sent) == 3:
            raise OSError("the connection is lost")
        sent.extend([in_data] if in_data else [])
        return shell(command, sudoable, in_data)

    with pytest.raises(OSError, match="lost"):
        site.send(breaks)
    assert os.stat(site.place).st_size == 3000
    site.run(login=ME)
    assert os.stat(site.place).st_size == 3000
    rest = []
    site.send(lambda command, sudoable, in_data=None: rest.append(in_data or b"") or shell(command, sudoable, in_data))
    assert b"".join(rest) == site.content[3000:]
    assert site.run()["changed"] is True


def test_two_runs_send_one_file_together(site, monkeypatch):
    monkeypatch.setattr(action, "PIECE_BYTES", 1000)
    site.run(login=ME)
    pieces = []

    def busy(command, sudoable, in_data=None):
        if in_data and not pieces:
            with open(site.place, "ab") as stream:  # The other run was faster.
                stream.write(site.content[:1500])
        pieces.append(in_data)
        return shell(command, sudoable, in_data)

    site.send(busy)
    assert site.run()["changed"] is True


@pytest.mark.parametrize("asked", [1, 3])
def test_another_run_that_has_sent_and_taken_it(site, monkeypatch, asked):
    monkeypatch.setattr(action, "PIECE_BYTES", 1000)
    site.run(login=ME)
    commands = []

    def late(command, sudoable, in_data=None):
        commands.append(command)
        if len(commands) == asked:
            with open(site.place, "wb") as stream:
                stream.write(site.content)
            assert site.run()["changed"] is True
        return shell(command, sudoable, in_data)

    site.send(late)
    assert len(commands) == asked, "nothing is sent twice"
    assert not os.path.exists(site.place)
    assert site.run()["changed"] is False


def test_another_run_that_found_wrong_what_both_have_sent(site, monkeypatch):
    site.run(login=ME)
    site.send(shell, b"x" * len(site.content))
    holding = site.node.transfer_lock

    def other_first(*arguments):
        os.unlink(site.place)
        return holding(*arguments)

    monkeypatch.setattr(model_upload.Store, "transfer_lock", lambda store, *arguments: other_first(*arguments))
    assert "toy.gguf: another run found that what was sent is wrong; run again" in site.run()["msg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_that_the_login_user_may_not_enter(site, tmp_path):
    tmp_path.chmod(0o700)
    site.run(login=ME)
    with pytest.raises(action.AnsibleError, match="Permission denied"):
        site.send(lambda command, sudoable, in_data=None: shell(command, sudoable, in_data, user=65534))


def test_wrong_bytes_are_thrown_away_and_nothing_is_named(site):
    site.run(login=ME)
    site.send(shell, b"x" * len(site.content))
    assert "toy.gguf from the control node" in site.run()["msg"]
    assert site.node.names() == []
    assert not os.path.exists(site.place)
    site.run(login=ME)
    site.send(shell)
    assert site.run()["changed"] is True


def test_a_node_that_takes_nothing_is_not_asked_for_ever(site):
    site.run(login=ME)
    with pytest.raises(action.AnsibleError, match="takes nothing more of toy"):
        site.send(lambda command, sudoable, in_data=None: {"stdout": "0\n"})
    with pytest.raises(action.AnsibleError, match="no space left"):
        site.send(lambda command, sudoable, in_data=None: {"stdout": "", "stderr": "no space left\n"})


def test_a_file_that_is_shorter_than_it_says(site):
    site.run(login=ME)
    with pytest.raises(action.AnsibleError, match="is shorter than its manifest says"):
        site.send(shell, site.content[:100])


def test_check_mode_changes_nothing(site):
    result = site.run(check=True)
    assert result["changed"] is True
    assert [item["bytes"] for item in result["lacking"]] == [len(site.content)]
    assert not os.path.exists(site.node.root)


def test_what_does_not_fit_is_said_before_a_byte_is_sent(site):
    assert "quota" in site.run(login=ME, quota=10)["msg"]
    assert not os.path.exists(site.place)
