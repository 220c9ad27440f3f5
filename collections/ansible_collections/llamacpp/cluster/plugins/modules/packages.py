#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Install packages of the distribution, with progress, and with a check mode that works on a fresh node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Install packages with progress
version_added: 0.1.0
description:
  - Installs packages of the distribution with C(apt-get) or C(dnf) and shows how far it is.
  - M(ansible.builtin.package) does not say how far it is, and on a fresh Debian its check mode fails because
    C(python3-apt) is not there yet; this module needs nothing but the package manager.
  - Never upgrades a package that is installed.
options:
  repository:
    description:
      - Directory on the node with packages to install from, instead of all repositories that the node knows. As
        M(llamacpp.cluster.package_bundle) makes it, C(.deb) files with their index C(Packages), or C(.rpm) files with
        C(repodata).
      - The node's own lists of repositories are neither read nor changed.
      - Empty means the node's own repositories.
    type: str
    default: ""
    version_added: 0.3.0
  name:
    description: Names of the packages.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Install what the build needs
  llamacpp.cluster.packages:
    name: [cmake, g++, ninja-build, ccache]

- name: Install it on a node without a network
  llamacpp.cluster.packages:
    name: [cmake, g++, ninja-build, ccache]
    repository: /var/cache/llamacpp/packages
"""

RETURN = r"""
missing:
  description: Packages that were (in check mode, would be) installed, without what they depend on.
  returned: always
  type: list
  elements: str
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle_packages import (
    APT_LISTS,
    INDEX,
    apt_files,
    apt_options,
    dnf_options,
    index_versions,
    lacking,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_with_status
from ansible_collections.llamacpp.cluster.plugins.module_utils._packages import (
    DPKG_STATUS,
    apt_progress,
    installed_in_rpm,
    installed_in_status,
    missing,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring

LOCK_SECONDS = 300
# Proxies that mix up questions which come before the answer to the one before let apt wait for ever (apt.conf(5)).
ACQUIRE = ("Acquire::http::Pipeline-Depth=0", "Acquire::Retries=3")
TAIL = 1500


class PackageError(Exception):
    """The package manager did not do it; the text holds its own words."""


def find_missing(module: AnsibleModule) -> list[str]:
    """Ask the package manager's records which packages are not installed."""
    wanted = module.params["name"]
    if os.path.exists(DPKG_STATUS):
        with open(DPKG_STATUS, encoding="utf-8", errors="replace") as stream:
            return missing(wanted, installed_in_status(stream))
    _rc, out, _err = module.run_command(["rpm", "--query", "--queryformat", "%{NAME}\\n", *wanted])
    return missing(wanted, installed_in_rpm(out.splitlines()))


def apt_get(arguments: list[str], progress: Progress) -> tuple[int, str]:
    """Run apt-get, show its status pipe as progress; return exit code and output."""

    def command(status: int) -> list[str]:
        options = ["APT::Status-Fd=%d" % status, "DPkg::Lock::Timeout=%d" % LOCK_SECONDS, *ACQUIRE]
        return ["apt-get", "--yes", "--quiet", *("--option=%s" % option for option in options), *arguments]

    def show(line: str) -> None:
        words = apt_progress(line)
        if words:
            progress.say(words)

    return run_with_status(command, dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8"), show)


def install(module: AnsibleModule, names: list[str], progress: Progress) -> None:
    """Install (in check mode, rehearse the installation of) packages."""
    repository = module.params["repository"]
    if repository and module.check_mode and not os.path.isdir(repository):
        return  # It would be there by now.
    if shutil.which("apt-get"):
        if repository:
            _apt_from(repository, names, progress, module.check_mode)
        else:
            _apt(names, progress, module.check_mode)
        return
    dnf = shutil.which("dnf")
    if not dnf:
        raise PackageError("neither apt-get nor dnf is there to install %s" % ", ".join(names))
    progress.say("installing %s" % ", ".join(names), now=True)
    options = dnf_options(repository) if repository else []
    answer = "--assumeno" if module.check_mode else "--assumeyes"
    rc, out, err = module.run_command(
        [dnf, "--quiet", *options, answer, "install", *names], environ_update={"LC_ALL": "C.UTF-8"}
    )
    # A rehearsal ends with status 1 as well, but says that it was told no.
    if rc != 0 and not (module.check_mode and "Operation aborted" in out + err):
        raise PackageError("dnf install %s%s failed:\n%s" % (" ".join(names), _from(repository), (err or out)[-TAIL:]))


def _apt(names: list[str], progress: Progress, check_mode: bool) -> None:
    """Install with apt from the repositories that the node knows."""
    flags = ["--simulate"] if check_mode else []
    rc, output = apt_get(["install", "--no-install-recommends", *flags, *names], progress)
    if rc != 0 and not check_mode:
        # The lists may be missing or stale: fetch them and try once more.
        progress.say("fetching the package lists", now=True)
        apt_get(["update"], progress)
        rc, output = apt_get(["install", "--no-install-recommends", *names], progress)
    if rc != 0 and not (check_mode and _no_lists()):
        raise PackageError("apt-get install %s failed:\n%s" % (" ".join(names), output[-TAIL:]))


def _apt_from(repository: str, names: list[str], progress: Progress, check_mode: bool) -> None:
    """Install with apt from one directory, without a look at the node's own repositories."""
    with open(os.path.join(repository, INDEX), encoding="utf-8") as stream:
        absent = lacking(names, index_versions(stream))
    if absent:
        raise PackageError(
            "%s has no package %s: run playbooks/bundle.yml for this inventory again" % (repository, ", ".join(absent))
        )
    if check_mode:
        return
    os.makedirs(os.path.join(repository, APT_LISTS, "partial"), exist_ok=True)
    for path, content in apt_files(repository).items():
        bring(path, content)
    options = apt_options(repository)
    rc, output = apt_get([*options, "update"], progress)
    if rc == 0:
        rc, output = apt_get([*options, "install", "--no-install-recommends", *names], progress)
    if rc != 0:
        raise PackageError("apt-get install %s%s failed:\n%s" % (" ".join(names), _from(repository), output[-TAIL:]))


def _from(repository: str) -> str:
    return " from %s alone" % repository if repository else ""


def _no_lists() -> bool:
    """Whether apt has no package lists yet, so that it knows no package; check mode may not fetch them."""
    lists = "/var/lib/apt/lists"
    return not any(name.endswith("_Packages") or "_Packages." in name for name in os.listdir(lists))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "repository": {"type": "str", "default": ""},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    progress = Progress(module.params["progress_file"])
    names = find_missing(module)
    if names:
        try:
            install(module, names, progress)
        except (PackageError, OSError) as error:
            module.fail_json(msg=str(error), missing=names)
        finally:
            progress.close()
    module.exit_json(changed=bool(names), missing=names)


if __name__ == "__main__":
    main()
