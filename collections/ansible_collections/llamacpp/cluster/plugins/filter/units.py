# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters that the unit templates and the roles around them use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils import _units


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {
            "api_keys": _units.api_keys,
            "heads_to_key": _units.heads_to_key,
            "digest": _units.digest,
            "endpoints": endpoints,
            "local_endpoint": _units.local_endpoint,
            "retired_units": _units.retired_units,
            "served_use": _units.served_use,
            "unit_arguments": _units.unit_arguments,
            "unit_word": _units.quote,
            "watched_files": _units.watched_files,
        }


def endpoints(workers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return ``address:port`` of each worker, in order."""
    return ["%s:%d" % (worker["host"], worker["port"]) for worker in workers]
