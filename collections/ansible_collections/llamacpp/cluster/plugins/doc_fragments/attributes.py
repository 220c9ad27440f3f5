# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Attributes that the modules of this collection share."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation fragments."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Can run in check mode and say what would change without changing it.
    support: full
  diff_mode:
    description: Says what changed (or would change) when diff mode is on.
    support: full
  platform:
    description: Where the module runs.
    platforms: posix
    support: full
"""

    INFO = r"""
attributes:
  check_mode:
    description: Only reads, so check mode makes no difference.
    support: full
  diff_mode:
    description: Changes nothing, so there is nothing to show.
    support: N/A
  platform:
    description: Where the module runs.
    platforms: posix
    support: full
"""

    NO_DIFF = r"""
attributes:
  check_mode:
    description: Can run in check mode and say what would change without changing it.
    support: full
  diff_mode:
    description: What changes is a binary file; there is nothing to read in a diff.
    support: none
  platform:
    description: Where the module runs.
    platforms: posix
    support: full
"""
