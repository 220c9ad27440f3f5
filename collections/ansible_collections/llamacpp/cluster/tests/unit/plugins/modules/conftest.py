# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run a module in this process, as Ansible would run it."""

from __future__ import annotations

import json
import sys

import pytest


@pytest.fixture
def run_module(monkeypatch, capsys):
    """Return a function that runs a module's main() and returns what it says, as a dictionary."""
    testing = pytest.importorskip("ansible.module_utils.testing")
    # A test that loads a part of the controller lets all warnings of this process go to the terminal.
    internal = sys.modules.get("ansible.module_utils._internal")
    if internal is not None:
        monkeypatch.setattr(internal, "is_controller", False, raising=False)

    def run(module, check=False, diff=False, **arguments):
        given = dict(arguments, _ansible_check_mode=check, _ansible_diff=diff)
        with testing.patch_module_args(given), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return run
