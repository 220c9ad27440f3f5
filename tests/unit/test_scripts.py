"""What `make setup`, `make test` and `make sanity` decide."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import bootstrap
import check
import pytest
import sanity

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_groups_include_groups() -> None:
    project = {"dependency-groups": {"a": ["x==1"], "b": ["y==2", {"include-group": "a"}]}}
    assert bootstrap.requirements(project, "b") == ["y==2", "x==1"]


def test_unknown_group_names_those_that_exist() -> None:
    with pytest.raises(bootstrap.SetupError, match="it has a"):
        bootstrap.requirements({"dependency-groups": {"a": []}}, "b")


def test_everything_that_setup_installs_is_pinned() -> None:
    wanted = bootstrap.requirements(PROJECT, PROJECT["tool"]["bootstrap"]["group"])
    assert [entry for entry in wanted if "==" not in entry] == []
    assert any(entry.startswith("ansible-core==") for entry in wanted)


def test_ubuntu_gets_debians_keys_and_a_python_without_pip_gets_venv() -> None:
    settings = PROJECT["tool"]["bootstrap"]
    _, debian = bootstrap.os_release('ID=debian\nPRETTY_NAME="Debian GNU/Linux 12"')
    _, ubuntu = bootstrap.os_release("ID=ubuntu\nID_LIKE=debian\n")
    _, mint = bootstrap.os_release('ID=linuxmint\nID_LIKE="ubuntu debian"\n')
    assert "debian-archive-keyring" not in bootstrap.wanted_packages(settings, debian, True)
    assert "debian-archive-keyring" in bootstrap.wanted_packages(settings, ubuntu, True)
    assert "debian-archive-keyring" in bootstrap.wanted_packages(settings, mint, True)
    assert "python3-venv" in bootstrap.wanted_packages(settings, debian, False)
    assert "python3-venv" not in bootstrap.wanted_packages(settings, debian, True)


def test_a_package_that_nobody_has_is_missing() -> None:
    assert bootstrap.missing_packages(["no-such-package", "bash"]) == ["no-such-package"]


def test_without_root_and_sudo_the_command_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)
    with pytest.raises(bootstrap.SetupError, match="apt-get install --no-install-recommends rsync ccache"):
        bootstrap.require_root(["rsync", "ccache"])


def test_progress_counts_steps_and_ignores_the_rest() -> None:
    progress = bootstrap.Progress("apt-get: step", r"^(Setting up \S+)", 4)
    assert progress.text("Reading package lists...") is None
    assert progress.text("Setting up rsync (3.2.7)") == "apt-get: step 1 of 4: Setting up rsync"
    assert progress.text("Setting up ccache (4.8)") == "apt-get: step 2 of 4: Setting up ccache"


def test_output_of_a_failing_tool_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    status = bootstrap.run_logged(
        [sys.executable, "-c", "print('last words'); raise SystemExit(3)"], log, bootstrap.Progress("x", "^never")
    )
    assert status == 3
    assert "last words" in bootstrap.tail(log)


REPORT = '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1"/></testsuites>'


def stage(name: str, code: int, report: str | None = None) -> check.Stage:
    """A stage whose command exits with `code`; with `report` it behaves like pytest and writes that."""
    write = "" if not report else f"import sys; open(sys.argv[-1].split('=', 1)[1], 'w').write({report!r}); "
    return check.Stage(name, "test", ((sys.executable, "-c", f"{write}raise SystemExit({code})"),), report is not None)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.setattr(check, "REPORTS", tmp_path)
    monkeypatch.delenv("KEEP_GOING", raising=False)
    return monkeypatch


def test_first_failure_ends_the_run(stages: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stages.setattr(check, "STAGES", (stage("a", 0), stage("b", 1), stage("c", 0)))
    assert check.main([]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "1 passed, 1 failed"
    assert any(line.startswith("c ") and "not run" in line for line in lines)


def test_keep_going_runs_the_rest(stages: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stages.setattr(check, "STAGES", (stage("a", 1), stage("b", 0)))
    stages.setenv("KEEP_GOING", "1")
    assert check.main([]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 1 failed"


def test_pytest_stages_are_counted_by_test(stages: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stages.setattr(check, "STAGES", (stage("a", 1, REPORT),))
    assert check.main(["a"]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "2 passed, 2 failed, 1 skipped"


@pytest.mark.parametrize("report", ['<testsuites><testsuite tests="0"/></testsuites>', "cut off"])
def test_a_pytest_that_ran_nothing_or_died_has_failed(
    stages: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], report: str
) -> None:
    stages.setattr(check, "STAGES", (stage("a", 5, report),))
    assert check.main([]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"


def test_an_unknown_stage_names_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check.main(["lnit"])
    assert "there are setup, lint" in capsys.readouterr().err


def test_bootstrap_script_has_the_name_that_ansible_test_looks_for() -> None:
    assert sanity.bootstrap_name("x = dict(\n    pip='24.2',\n)") == "get_pip_24_2.py"
    with pytest.raises(ValueError, match="does not name"):
        sanity.bootstrap_name("x = 1")


def test_pip_settings_of_every_kind_are_kept() -> None:
    listing = (
        ":env:.cert='/etc/ssl/ca.crt'\nglobal.extra-index-url='file:///a file:///b'\n"
        "global.cert='/old'\ninstall.find-links='/x\\n/y'\n"
    )
    parser = ConfigParser()
    parser.read_string(sanity.pip_configuration(listing))
    assert parser["global"]["cert"] == "/etc/ssl/ca.crt"
    assert parser["global"]["extra-index-url"] == "file:///a file:///b"
    assert parser["install"]["find-links"].split() == ["/x", "/y"]


@pytest.mark.parametrize("script", ["bootstrap.py", "check.py", "sanity.py"])
def test_scripts_explain_themselves(script: str) -> None:
    shown = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--help"], capture_output=True, text=True, check=True
    )
    assert "usage:" in shown.stdout


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [target for target in phony if f"  {target} " not in shown] == []
