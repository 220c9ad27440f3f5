"""Fixtures of the lab's tests."""

from __future__ import annotations

from fixtures import lab

__all__ = ["lab"]
