# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What several tests of plugins need."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.tests.unit.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has nothing yet, and is the one that is asked; whoever asks has no token."""
    server = HubServer()
    for name in ("HF_TOKEN", "HF_HOME", "HF_TOKEN_PATH", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.stop()
