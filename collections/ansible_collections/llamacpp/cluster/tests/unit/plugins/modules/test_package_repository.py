# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Packages from one directory alone, and the archive that such a directory is unpacked from.

apt-get and dpkg-deb are played by scripts; tests/bundle asks real ones.
"""

from __future__ import annotations

import tarfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import package_bundle, packages

APT_GET = """\
#!/bin/sh
echo "$@" >> {log}
for word; do
    case "$word" in
        --print-uris) print=yes ;;
        --option=Dir::Cache::archives=*) archives=${{word#--option=Dir::Cache::archives=}} ;;
    esac
done
case "$*" in
    *nosuch*) echo "E: Unable to locate package nosuch"; exit 100 ;;
    *install*) ;;
    *) exit 0 ;;
esac
for name in $(cat {available}); do
    if [ -n "$print" ]; then echo "'http://deb.example.org/$name.deb' $name.deb 4 MD5Sum:ab"
    elif [ -n "$archives" ]; then echo deb > "$archives/$name.deb"; fi
done
"""
DPKG_DEB = """\
#!/bin/sh
name=$(basename "$2" .deb)
printf 'Package: %s\\nVersion: %s\\nDescription: a package\\n' "${name%%_*}" "${name#*_}"
"""


class Machine:
    """A machine with a package manager that writes down what it is told."""

    def __init__(self, root):
        self.log = root / "log"
        self.available = root / "available"
        self.status = root / "status"
        self.status.write_text("Package: make\nStatus: install ok installed\n")
        self.log.write_text("")
        self.has("make_4.3", "g++_12.2")

    def has(self, *names):
        self.available.write_text("\n".join(names))

    def told(self):
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A Debian system with make."""
    made = Machine(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("apt-get", APT_GET.format(log=made.log, available=made.available)),
        ("dpkg-deb", DPKG_DEB),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", "%s:/usr/bin:/bin" % programs)
    monkeypatch.setattr(packages, "DPKG_STATUS", str(made.status))
    return made


@pytest.fixture
def repository(machine, run_module, tmp_path):
    """The directory that package_bundle's archive is unpacked to."""
    archive = tmp_path / "p.tar"
    run_module(package_bundle, name=["make", "g++"], archive=str(archive))
    target = tmp_path / "repository"
    with tarfile.open(archive) as tar:
        tar.extractall(target)
    machine.log.write_text("")
    return target


def test_an_archive_has_every_package_with_an_index(machine, run_module, tmp_path):
    archive = tmp_path / "p.tar"
    done = run_module(package_bundle, name=["make", "g++"], archive=str(archive))
    assert done["changed"]
    assert done["packages"] == {"make": "4.3", "g++": "12.2"}
    assert done["bytes"] == archive.stat().st_size
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["versions", "Packages", "g++_12.2.deb", "make_4.3.deb"]
        index = tar.extractfile("Packages").read().decode()
    assert "Package: g++\nVersion: 12.2\n" in index
    assert "Filename: ./make_4.3.deb\nSize: 4\n" in index
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("p.tar")] == ["p.tar"]


def test_it_is_not_written_again_until_a_version_changes(machine, run_module, tmp_path):
    arguments = {"name": ["make", "g++"], "archive": str(tmp_path / "p.tar")}
    run_module(package_bundle, **arguments)
    assert not run_module(package_bundle, **arguments)["changed"]
    machine.has("make_4.4", "g++_12.2")
    again = run_module(package_bundle, **arguments)
    assert (again["changed"], again["packages"]) == (True, {"make": "4.4", "g++": "12.2"})


def test_what_an_earlier_try_left_in_an_older_version_does_not_stay(machine, run_module, tmp_path):
    left = tmp_path / "p.tar.d"
    left.mkdir()
    (left / "make_4.2.deb").write_text("deb")
    run_module(package_bundle, name=["make"], archive=str(tmp_path / "p.tar"))
    with tarfile.open(tmp_path / "p.tar") as tar:
        assert "make_4.2.deb" not in tar.getnames()


def test_a_package_that_nobody_has_leaves_no_archive(machine, run_module, tmp_path):
    said = run_module(package_bundle, name=["nosuch"], archive=str(tmp_path / "p.tar"))
    assert "Unable to locate package nosuch" in said["msg"]
    assert not (tmp_path / "p.tar").exists()
    said = run_module(package_bundle, name=["make", "cmake"], archive=str(tmp_path / "p.tar"))
    assert said["msg"] == "the package manager downloaded no cmake"
    assert not (tmp_path / "p.tar").exists()


def test_apt_is_shown_the_directory_and_nothing_else(repository, machine, run_module):
    done = run_module(packages, name=["make", "g++"], repository=str(repository))
    assert (done["changed"], done["missing"]) == (True, ["g++"])
    update, install = machine.told()
    assert update.endswith(" update")
    assert install.endswith(" install --no-install-recommends g++")
    for line in (update, install):
        assert "Dir::Etc::sourceparts=/dev/null" in line
    assert "deb [trusted=yes] file:%s ./" % repository in (repository / ".apt" / "sources.list").read_text()


def test_names_that_the_directory_lacks_are_said_before_apt_is_asked(repository, machine, run_module):
    said = run_module(packages, name=["make", "cmake", "g++", "ninja-build"], repository=str(repository))
    assert "%s has no package cmake, ninja-build: run playbooks/bundle.yml" % repository in said["msg"]
    assert machine.told() == []


def test_a_node_that_lacks_nothing_needs_no_directory(machine, run_module, tmp_path):
    done = run_module(packages, name=["make"], repository=str(tmp_path / "nowhere"))
    assert (done["changed"], machine.told()) == (False, [])


def test_check_mode_says_what_it_would_install(repository, machine, run_module, tmp_path):
    for place in (repository, tmp_path / "not-brought-in-check-mode"):
        done = run_module(packages, check=True, name=["g++"], repository=str(place))
        assert (done["changed"], done["missing"]) == (True, ["g++"])
    assert machine.told() == []
    assert not (repository / ".apt").exists()
