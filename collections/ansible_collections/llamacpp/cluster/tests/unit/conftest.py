# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make the collection importable when pytest is started anywhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("ansible_collections") is None:
    # .../ansible_collections/llamacpp/cluster/tests/unit/conftest.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[5]))
