# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How nodes get a model."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._distribution import (
    NONE,
    SWARM_FROM_BYTES,
    TRANSPORTS,
    choose_transport,
)

GIB = 1 << 30


@pytest.mark.parametrize(
    ("holders", "receivers", "bytes", "capable", "reachable", "transport"),
    [
        (1, 0, GIB, True, True, NONE),
        (1, 1, GIB, True, True, "http"),
        (1, 2, GIB, True, True, "swarm"),
        (1, 7, GIB, True, True, "swarm"),
        (3, 3, GIB, True, True, "http"),
        (3, 4, GIB, True, True, "swarm"),
        (1, 7, GIB, False, True, "http"),
        (1, 7, SWARM_FROM_BYTES - 1, True, True, "http"),
        (1, 7, SWARM_FROM_BYTES, True, True, "swarm"),
        (1, 7, None, True, True, "http"),
        (1, 1, GIB, True, False, "rsync"),
        (1, 7, GIB, False, False, "rsync"),
    ],
)
def test_auto(holders, receivers, bytes, capable, reachable, transport):
    found, why = choose_transport("auto", holders, receivers, bytes, capable, reachable)
    assert found == transport and why


def test_a_size_that_nobody_knows_is_not_called_small():
    assert choose_transport("auto", 1, 7, None, True)[1] == "its size is not known, and a swarm is for large models"
    assert choose_transport("auto", 1, 7, 0, True)[1].startswith("below 256 MiB")


@pytest.mark.parametrize("declared", [word for word in TRANSPORTS if word != "auto"])
def test_what_is_declared_is_obeyed(declared):
    assert choose_transport(declared, 1, 5, 1, capable=False, reachable=False)[0] == declared


def test_nothing_is_moved_where_nobody_needs_it():
    assert choose_transport("swarm", 1, 0, GIB, True)[0] == NONE
    assert choose_transport("shared", 0, 0, GIB, True)[0] == "shared"


def test_a_word_that_is_no_transport():
    with pytest.raises(ValueError, match="transport = 'ftp': write one of auto, swarm, http, rsync, shared"):
        choose_transport("ftp", 1, 1, 1, True)
