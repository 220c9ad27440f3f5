# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How nodes get a model that one of them has: the choice alone, nothing is moved here."""

from __future__ import annotations

TRANSPORTS = ("auto", "swarm", "http", "rsync", "shared")
# What choose_transport answers where one node needs the files and nobody else.
NONE = "none"
CONTROLLER = "controller"
# An estimate: what a cable of 1 Gbit/s brings in the 2 s that a swarm takes to get going.
SWARM_FROM_BYTES = 256 << 20


def choose_transport(
    declared: str, holders: int, receivers: int, bytes: int | None, capable: bool, reachable: bool = True
) -> tuple[str, str]:
    """Return how the receivers get a model, one of TRANSPORTS but ``auto``, or NONE; and why, for the plan.

    ``declared``: one of TRANSPORTS; all but ``auto`` are obeyed. ``holders``: nodes that have the files (at least the
    fetcher). ``receivers``: nodes that lack them. ``bytes``: of all files, None where nobody knows. ``capable``: the
    engine of the swarm runs on all of these nodes. ``reachable``: the nodes reach each other over the fabric; the
    control node reaches every node.

    A push or a pull from one holder takes as long as there are receivers, since all share its cable; a swarm about
    once (docs/decisions/0019-transport.md has the figures). Raises :class:`ValueError` for a word not in TRANSPORTS.
    """
    if declared not in TRANSPORTS:
        raise ValueError("transport = %r: write one of %s" % (declared, ", ".join(TRANSPORTS)))
    if declared == "shared":
        return "shared", "the path is shared, nothing is copied"
    if receivers == 0:
        return NONE, "nobody else needs it"
    if declared != "auto":
        return declared, "declared"
    if not reachable:
        return "rsync", "the nodes do not reach each other, so the control node pushes"
    if receivers <= max(holders, 1):
        return "http", "a sender for each receiver is as fast as a cable"
    if not capable:
        return "http", "the engine of the swarm does not run on all of them"
    if bytes is None:
        return "http", "its size is not known, and a swarm is for large models"
    if bytes < SWARM_FROM_BYTES:
        return "http", "below %d MiB a swarm takes longer to start than the copy" % (SWARM_FROM_BYTES >> 20)
    return "swarm", "%d receivers, %s: they give it to each other" % (
        receivers,
        "one sender" if holders <= 1 else "%d senders" % holders,
    )
