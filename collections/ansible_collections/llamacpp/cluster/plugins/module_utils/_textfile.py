# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring a text file to a content, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from typing import Any


def bring(path: str, content: str, check_mode: bool = False) -> dict[str, Any]:
    """Bring a file, and its directory, to be there with ``content`` (mode 0644); an equal file is not touched.

    Returns ``changed`` and, when that is true, ``diff``, as Ansible shows it. Nobody ever sees half a file.
    Raises :class:`OSError`.
    """
    wanted = content.encode()
    before = b""
    try:
        with open(path, "rb") as stream:
            before = stream.read()
    except FileNotFoundError:
        pass
    else:
        if before == wanted:
            return {"changed": False}
    if not check_mode:
        directory = os.path.dirname(path) or "."
        os.makedirs(directory, mode=0o755, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".%s." % os.path.basename(path), dir=directory)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(wanted)
            os.chmod(temporary, 0o644)
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    shown = before.decode(errors="replace")
    return {"changed": True, "diff": {"before_header": path, "after_header": path, "before": shown, "after": content}}
