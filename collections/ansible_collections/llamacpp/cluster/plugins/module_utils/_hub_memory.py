# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a hub said the last time, for when it cannot be reached: models that are in their place need no hub.

A file for each question. Neither token nor addresses are in it, as addresses may have a password.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._http import shown
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import first_addresses
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring


class HubMemory:
    """Remembers below ``directory`` what a hub at ``endpoint`` answered to ``question``, which names a ``repo``."""

    def __init__(self, directory: str, endpoint: str, question: Mapping[str, Any]) -> None:
        self._repo = str(question["repo"])
        self._about = {**question, "endpoint": shown(endpoint)}
        told = json.dumps([endpoint, sorted(question.items())])
        self._path = os.path.join(directory, hashlib.sha256(told.encode()).hexdigest()[:32] + ".json")

    def keep(self, answer: Mapping[str, Any]) -> None:
        """Remember a result of hub_info instead of the one before; raises :class:`OSError`."""
        bare = {
            name: {key: value for key, value in found.items() if key != "urls"}
            for name, found in answer["quantisations"].items()
        }
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        kept = {"about": self._about, "since": since, "answer": {**answer, "quantisations": bare}}
        bring(self._path, json.dumps(kept, sort_keys=True) + "\n")

    def recall(self) -> tuple[dict[str, Any], str] | None:
        """Return the answer and when it was given; None when there is none, or none that can be read."""
        try:
            with open(self._path, encoding="utf-8") as stream:
                kept = json.load(stream)
            answer: dict[str, Any] = kept["answer"]
            for found in answer["quantisations"].values():
                found["urls"] = first_addresses(self._repo, answer["commit"], found["parts"])
            return answer, str(kept["since"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
