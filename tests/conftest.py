"""The lab is one for all tests of a session."""

from __future__ import annotations

from fixtures import lab

__all__ = ["lab"]
