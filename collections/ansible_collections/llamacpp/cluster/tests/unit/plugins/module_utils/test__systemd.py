# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When a service is started, restarted or left alone."""

from __future__ import annotations

import dataclasses

from ansible_collections.llamacpp.cluster.plugins.module_utils import _systemd

SHOW = """\
LoadState=loaded
ActiveState=active
SubState=running
Result=success
UnitFileState=enabled
NeedDaemonReload=no
MainPID=4711
InvocationID=0123456789abcdef
ExecMainStartTimestampMonotonic=250000000
"""
RUNNING = _systemd.parse_show(SHOW, 1000.0)
UNIT = "/etc/systemd/system/llamacpp-demo.service"


def changed(**fields):
    """Return the running state with some fields changed."""
    return dataclasses.replace(RUNNING, **fields)


def test_parse_show():
    assert (
        _systemd.UnitState(
            loaded=True,
            active="active",
            sub="running",
            result="success",
            enabled=True,
            needs_reload=False,
            main_pid=4711,
            invocation="0123456789abcdef",
            started_at=1250.0,
        )
        == RUNNING
    )


def test_parse_show_of_a_unit_that_is_not_there():
    state = _systemd.parse_show(
        "LoadState=not-found\nActiveState=inactive\nExecMainStartTimestampMonotonic=0\n", 1000.0
    )
    assert not state.loaded and not state.running and not state.enabled and state.started_at == 0.0


def test_nothing_to_do():
    assert not _systemd.decide(RUNNING, False, {UNIT: 1249.0}).any


def test_new_service_is_loaded_enabled_and_started():
    state = _systemd.parse_show("LoadState=not-found\nActiveState=inactive\n", 0.0)
    actions = _systemd.decide(state, True, {UNIT: 5.0})
    assert (actions.reload, actions.enable, actions.start, actions.restart) == (True, True, True, False)


def test_changed_file_restarts():
    actions = _systemd.decide(RUNNING, True, {UNIT: 2000.0})
    assert actions.reload and actions.restart and not actions.start


def test_run_killed_before_the_reload_is_finished():
    actions = _systemd.decide(changed(needs_reload=True), False, {UNIT: 1300.0})
    assert actions.reload and actions.restart


def test_run_killed_between_reload_and_restart_is_finished():
    actions = _systemd.decide(RUNNING, False, {UNIT: 1250.5})
    assert actions.restart and UNIT in actions.reason


def test_watched_file_that_is_newer_restarts():
    assert _systemd.decide(RUNNING, False, {UNIT: 1.0, "/etc/llamacpp/keys/demo": 1251.0}).restart


def test_failed_service_is_started_and_the_reason_is_said():
    actions = _systemd.decide(changed(active="failed", result="exit-code"), False, {})
    assert actions.start and not actions.restart and "exit-code" in actions.reason


def test_service_on_its_way_up_is_left_alone():
    assert not _systemd.decide(changed(active="activating"), False, {UNIT: 1249.0}).any


def test_disabled_service_is_enabled_without_a_restart():
    actions = _systemd.decide(changed(enabled=False), False, {UNIT: 1249.0})
    assert actions.enable and not actions.start and not actions.restart
