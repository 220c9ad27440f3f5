# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A combination of compilers that cannot work."""

from __future__ import annotations


class ToolchainError(ValueError):
    """No toolchain fits; the text says which row of which table speaks against it and what to write instead."""
