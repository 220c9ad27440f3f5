# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sizes as people write them."""

from __future__ import annotations

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.llamacpp.cluster.plugins.module_utils import _checks as checks
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, Rejected


def quota_bytes(value: Any, variable: str = "quota") -> int:
    """Return the bytes of a quota, 0 for none."""
    try:
        return checks.quota(value)
    except Rejected as error:
        raise AnsibleFilterError(str(Problem(variable, value, str(error)))) from error


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {"quota_bytes": quota_bytes}
