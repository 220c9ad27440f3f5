"""Modules that take long are watched with next to no work on the node, and leave nothing there."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.llamacpp.cluster.plugins.plugin_utils import watch

RESULT = {"changed": True, "ansible_job_id": "j1", "words": '{"started": 1, "finished": 0'}


class Node(watch.WatchedAction):
    """A node whose module runs as long as nobody writes its result. ``asked``: modules that ran there."""

    def __init__(self, directory: Path) -> None:
        # Nothing of a play is needed for what is tested here.
        self.directory, self.asked, self.looks = directory, list[str](), 0
        self._task: Any = SimpleNamespace(check_mode=False, async_val=0, environment=[], delegate_to=None)
        self.progress = Path()

    def run(self, *_words: Any, **_more: Any) -> dict[str, Any]:
        raise NotImplementedError

    def _async_dir(self) -> str:
        return str(self.directory)

    def _execute_module(
        self, module_name: str = "", module_args: Any = None, wrap_async: bool = False, **_more: Any
    ) -> dict[str, Any]:
        if wrap_async:
            self.progress = Path(module_args["progress_file"])
            (self.directory / "j1").write_text('{"started": true, "finished": false, "ansible_job_id": "j1"}', "utf-8")
            return {"ansible_job_id": "j1"}
        self.asked.append(module_name)
        answer: dict[str, Any] = json.loads((self.directory / "j1").read_text("utf-8"))
        return answer if "started" in answer else {**answer, "finished": True}

    def _low_level_execute_command(self, cmd: str, *_words: Any, **_more: Any) -> dict[str, Any]:
        self.looks += 1
        return {"stdout": subprocess.run(["sh", "-c", cmd], capture_output=True, text=True, check=True).stdout}

    def end(self, result: dict[str, Any]) -> None:
        (self.directory / "new").write_text(json.dumps(result), "utf-8")
        (self.directory / "new").rename(self.directory / "j1")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watch, "SHOW_SECONDS", 0.1)
    directory = tmp_path / "a directory"
    directory.mkdir()
    return Node(directory)


def test_only_the_end_is_asked_for_with_a_module(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        while node.looks < 5:
            time.sleep(0.01)
        node.progress.write_text("3 of 7 MiB\n", "utf-8")
        seen = node.looks
        while node.looks < seen + 3:
            time.sleep(0.01)
        node.end(RESULT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        # The thread needs the name of the file of progress, and has it before its first look.
        result = node.run_watched({}, {"inventory_hostname": "node7"}, quiet=0)
    finally:
        thread.join()
    assert result == {"changed": True, "words": RESULT["words"]}
    assert node.asked == ["ansible.legacy.async_status"]
    assert capsys.readouterr().out.count("node7: 3 of 7 MiB") == 1
    assert not list(node.directory.iterdir())
    assert not node.progress.exists()


def test_what_an_unknown_ansible_writes_is_left_to_it(node: Node) -> None:
    """Its own module says that the work goes on; so it is asked until it says something else."""

    def execute(**words: Any) -> dict[str, Any]:
        answer = Node._execute_module(node, **words)
        if words.get("wrap_async"):
            (node.directory / "j1").write_text('{"finished": false, "started": true}', "utf-8")
        elif len(node.asked) == 3:
            node.end(RESULT)
        return answer

    node._execute_module = execute  # type: ignore[method-assign]
    assert node.run_watched({}, {"inventory_hostname": "node7"})["changed"] is True
    assert len(node.asked) == 4
