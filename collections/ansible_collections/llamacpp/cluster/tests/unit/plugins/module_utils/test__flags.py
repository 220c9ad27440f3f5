# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table of flags."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _flags


def test_rpc_stands_before_device():
    # llama-server resolves --device while it reads its arguments.
    words = _flags.server_arguments({"--device": "RPC0", "--rpc": "10.0.0.2:50052", "--model": "m"}, [])
    assert words == ["--model", "m", "--rpc", "10.0.0.2:50052", "--device", "RPC0"]


def test_switches_have_no_value_and_extra_arguments_come_last():
    words = _flags.server_arguments({"--metrics": "", "--port": "1"}, ["--temp", "0.6"])
    assert words == ["--port", "1", "--metrics", "--temp", "0.6"]


def test_a_flag_that_is_not_in_the_table():
    with pytest.raises(KeyError, match="--no-such"):
        _flags.server_arguments({"--no-such": "1"}, [])


def test_a_worker():
    assert _flags.worker_arguments("10.0.0.2", 50052, ["CUDA0", "CUDA1"], 16) == [
        "--host", "10.0.0.2", "--port", "50052", "--device", "CUDA0,CUDA1", "--threads", "16",
    ]  # fmt: skip
    assert "--threads" not in _flags.worker_arguments("10.0.0.2", 50052, ["CPU"], None)
    assert _flags.worker_arguments("10.0.0.2", 50052, ["CPU"], None, cache=True)[-1] == "--cache"


@pytest.mark.parametrize("flag", _flags.FLAGS, ids=lambda flag: flag.name)
def test_every_spelling_of_a_planned_flag_is_refused(flag):
    for spelling in (flag.name, *flag.aliases):
        assert _flags.conflict(spelling), spelling
    if flag.env:
        assert _flags.environment_conflict(flag.env)


def test_other_words_are_free():
    assert _flags.conflict("--temp") is None
    assert _flags.conflict("0.6") is None
    assert _flags.environment_conflict("GGML_RDMA_DEV") is None
