# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a hub said the last time, for when it cannot be reached: models that are in their place need no hub.

A file for each question. Neither tokens nor passwords are in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._http import shown
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring

# What of a result of hub_info is the hub's answer, and which of its options ask for another one.
_ANSWER = ("commit", "files", "quantisations", "beside")
_QUESTION = ("repo", "revision", "headers", "quants", "folder", "file", "beside")


class HubMemory:
    """Remembers below ``directory`` what the hub at ``endpoint`` answered to ``options`` of hub_info."""

    def __init__(self, directory: str, endpoint: str, options: Mapping[str, Any]) -> None:
        self._about = {"endpoint": shown(endpoint), **{name: options.get(name) for name in _QUESTION}}
        told = json.dumps(self._about, sort_keys=True)
        self._path = os.path.join(directory, hashlib.sha256(told.encode()).hexdigest()[:32] + ".json")

    def keep(self, result: Mapping[str, Any]) -> None:
        """Remember a result of hub_info instead of the one before; raises :class:`OSError`."""
        answer = {name: result[name] for name in _ANSWER}
        answer["quantisations"] = {
            name: {**found, "urls": [shown(url) for url in found["urls"]]}
            for name, found in answer["quantisations"].items()
        }
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        kept = {"about": self._about, "since": since, "answer": answer}
        bring(self._path, json.dumps(kept, sort_keys=True) + "\n")

    def recall(self) -> tuple[dict[str, Any], str] | None:
        """Return the answer and when it was given; None when there is none, or none that can be read."""
        try:
            with open(self._path, encoding="utf-8") as stream:
                kept = json.load(stream)
            return {name: kept["answer"][name] for name in _ANSWER}, str(kept["since"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
