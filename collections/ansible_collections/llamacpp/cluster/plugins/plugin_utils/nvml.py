# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Send the control node's pynvml along with a module that asks NVML.

Nodes need not have the package nvidia-ml-py: it is one file of pure Python, which travels as an argument of the
module (65 KB packed). That costs no further round trip, and a node without NVML never unpacks it.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import zlib
from typing import Any

from ansible.plugins.action import ActionBase


@functools.cache
def packed_pynvml() -> str | None:
    """Return the control node's pynvml, packed; None when it has none (or the package of that name that wraps it)."""
    spec = importlib.util.find_spec("pynvml")
    if spec is None or not spec.origin or not spec.origin.endswith("pynvml.py"):
        return None
    with open(spec.origin, "rb") as stream:
        return base64.b64encode(zlib.compress(stream.read())).decode()


# Ansible imports actions before it forks, so that the forks find it packed.
packed_pynvml()


class NvmlAction(ActionBase):
    """Base for actions whose module takes C(pynvml)."""

    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args, pynvml=packed_pynvml())
        result.update(
            self._execute_module(module_args=arguments, task_vars=task_vars, wrap_async=bool(self._task.async_val))
        )
        return result
