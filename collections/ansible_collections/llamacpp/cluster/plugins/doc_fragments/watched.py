# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What modules have in common whose action plugin shows how far they are."""

from __future__ import annotations


class ModuleDocFragment:
    """The option that :class:`WatchedAction` sets."""

    DOCUMENTATION = r"""
options:
  progress_file:
    description: Set by the action plugin. The file to write the progress to.
    type: path
"""
