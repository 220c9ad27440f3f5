#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Install an empty package that stands for one that must not be installed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_placeholder
short_description: Install an empty package that provides names
version_added: 0.1.0
description:
  - Makes a Debian package without files and installs it with C(dpkg), so that another package's dependencies hold
    without what they would bring. Debian's nvidia-cuda-toolkit depends on the driver's libraries, which compilers
    do not need and which would replace a driver that came from somewhere else.
options:
  name:
    description: Name of the package.
    type: str
    required: true
  version:
    description: Version of the package. Another one replaces an installed one.
    type: str
    default: "1"
  provides:
    description: What it provides, as in a control file, such as V(libcuda-11.8-1) or V(libnvidia-ml.so.1 (= 520)).
    type: list
    elements: str
    required: true
  description:
    description: What people read who wonder about it; one line.
    type: str
    required: true
extends_documentation_fragment:
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Keep Debian's driver out
  llamacpp.cluster.apt_placeholder:
    name: llamacpp-no-driver
    provides: [libcuda-11.8-1, "libnvidia-ml.so.1 (= 520)"]
    description: Stands for NVIDIA's driver, which the node has from elsewhere or does not need to compile
"""

RETURN = r"""
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule

CONTROL = """Package: %(name)s
Version: %(version)s
Architecture: all
Maintainer: llamacpp.cluster <root@localhost>
Section: metapackages
Priority: optional
Provides: %(provides)s
Description: %(description)s
"""


def is_installed(module: AnsibleModule) -> bool:
    """Whether dpkg has the package in this version, providing the same."""
    params = module.params
    rc, out, _err = module.run_command(
        ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev}|${Version}|${Provides}", params["name"]]
    )
    return bool(rc == 0 and out.strip() == "ii |%s|%s" % (params["version"], ", ".join(params["provides"])))


def install(module: AnsibleModule) -> None:
    """Make and install the package."""
    params = dict(module.params, provides=", ".join(module.params["provides"]))
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as directory:
        tree, package = os.path.join(directory, "tree"), os.path.join(directory, "package.deb")
        os.makedirs(os.path.join(tree, "DEBIAN"), mode=0o755)
        os.chmod(tree, 0o755)  # dpkg-deb wants at least that, whatever the umask is
        os.chmod(os.path.join(tree, "DEBIAN"), 0o755)
        with open(os.path.join(tree, "DEBIAN", "control"), "w", encoding="utf-8") as stream:
            stream.write(CONTROL % params)
        for command in (["dpkg-deb", "--build", tree, package], ["dpkg", "--install", package]):
            rc, out, err = module.run_command(command)
            if rc != 0:
                module.fail_json(msg="%s failed: %s" % (" ".join(command[:2]), (err or out).strip()))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "version": {"type": "str", "default": "1"},
            "provides": {"type": "list", "elements": "str", "required": True},
            "description": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    changed = not is_installed(module)
    if changed and not module.check_mode:
        install(module)
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
