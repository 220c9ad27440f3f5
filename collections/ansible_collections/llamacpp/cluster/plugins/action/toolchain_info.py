# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Send pynvml along: the driver's own library says best which driver there is."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.plugin_utils.nvml import NvmlAction


class ActionModule(NvmlAction):
    """Runs the module of the same name."""
