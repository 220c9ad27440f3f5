# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Commands whose output is read while they work."""

from __future__ import annotations

import os

from ansible_collections.llamacpp.cluster.plugins.module_utils import _command


def test_lines_arrive_in_order_with_the_exit_code():
    lines = []
    rc = _command.run_streaming(["sh", "-c", "echo one; echo two >&2; exit 3"], dict(os.environ), lines.append)
    assert (rc, lines) == (3, ["one\n", "two\n"])


def test_status_is_read_beside_an_output_that_would_fill_a_pipe():
    states = []
    rc, output = _command.run_with_status(
        lambda fd: ["bash", "-c", "head -c 300000 /dev/zero | tr '\\0' x; echo half >&%d; exit 1" % fd],
        dict(os.environ),
        states.append,
    )
    assert (rc, states, len(output)) == (1, ["half\n"], 300000)
