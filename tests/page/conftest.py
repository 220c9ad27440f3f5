"""Fixtures of the tests in a browser."""

from __future__ import annotations

from chromium import browser, show

__all__ = ["browser", "show"]
