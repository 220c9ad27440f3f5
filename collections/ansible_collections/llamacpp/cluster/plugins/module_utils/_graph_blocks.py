# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""All building blocks of llama.cpp's compute graphs in one: what the architectures are made of."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_attention import Attention
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_ffn import FeedForward
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_state import Recurrent


class Blocks(Attention, FeedForward, Recurrent):
    """One graph under construction."""
