#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Put one verified model file where a node's instances read it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_file
short_description: Put one verified GGUF file in its place, atomically
version_added: 0.1.0
description:
  - Brings a GGUF file from O(url), from a O(path) on the node or from the control node to O(dest).
  - The bytes go into a file beside O(dest), are compared with O(sha256) and read as GGUF, and only then renamed.
    Whatever happens before that, O(dest) is either the old file or not there.
  - A record beside O(dest) keeps the sha256 with size, time and inode of the file, so an unchanged
    file is not hashed again.
  - A download that broke off is resumed.
  - The action of the same name uploads a file of the control node and shows the progress of long work.
options:
  dest:
    description: Where the file belongs.
    type: path
    required: true
  src:
    description: File on the control node. Handled by the action plugin.
    type: path
  url:
    description: Address of the file, V(http) or V(https).
    type: str
  path:
    description: File on the node. It is linked, not copied.
    type: path
  incoming:
    description: File that the action plugin has uploaded into the store. Moved, not copied.
    type: path
  sha256:
    description: sha256 of the file. Required with O(url).
    type: str
  stamp:
    description:
      - Set by the action plugin. Size and time of O(src), by which a changed source is noticed
        where no O(sha256) is given.
    type: str
  probe:
    description: Only say whether O(dest) is in place.
    type: bool
    default: false
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Put the model into the store
  llamacpp.cluster.model_file:
    src: /srv/models/qwen3-14b-q4_k_m.gguf
    dest: /var/lib/llamacpp/models/qwen3-14b-q4_k_m.gguf

- name: Download a model
  llamacpp.cluster.model_file:
    url: https://models.example.org/qwen3-14b-q4_k_m.gguf
    sha256: 500a8806e85ee9c83f3ae08420295592451379b4f8cf2d0f41c15dffeb6b81f0
    dest: /var/lib/llamacpp/models/qwen3-14b-q4_k_m.gguf
"""

RETURN = r"""
present:
  description: Whether O(dest) is in place with the right content.
  returned: always
  type: bool
sha256:
  description: sha256 of O(dest); empty when it is not in place.
  returned: always
  type: str
bytes:
  description: Size of O(dest) in bytes.
  returned: always
  type: int
"""

import hashlib
import json
import os
import tempfile
import time
import urllib.error

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError, read_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress, amount

BLOCK = 1 << 20
CONNECT_SECONDS = 60


class ModelError(Exception):
    """The file cannot be put in place; the text says why and what to do."""


class ModelFile:
    """One file of the store."""

    def __init__(self, module: AnsibleModule) -> None:
        self.params = module.params
        self.dest: str = module.params["dest"]
        self.record = self.dest + ".json"
        self.part = self.dest + ".part"
        self.wanted: str | None = (module.params["sha256"] or "").lower() or None
        self.progress = Progress(module.params["progress_file"])

    def recorded(self, any_source: bool = False) -> str:
        """Return the sha256 of ``dest`` from its record; empty when the file is not the recorded one.

        ``any_source``: also when the record speaks of another source file than the one that is declared now.
        """
        try:
            with open(self.record, encoding="utf-8") as stream:
                record = json.load(stream)
            info = os.stat(self.dest)
        except (FileNotFoundError, ValueError):
            return ""
        same = [info.st_size, info.st_mtime_ns, info.st_ino] == [record.get(k) for k in ("bytes", "mtime_ns", "inode")]
        if not any_source and not self.wanted and self.params["stamp"] != record.get("stamp"):
            return ""
        return str(record.get("sha256", "")) if same else ""

    def write_record(self, sha256: str) -> None:
        """Remember what ``dest`` is."""
        info = os.stat(self.dest)
        record = {"sha256": sha256, "bytes": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}
        record["stamp"] = self.params["stamp"]
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(self.dest))
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(record, stream)
        os.chmod(temporary, 0o644)
        os.rename(temporary, self.record)

    def hash(self, path: str) -> str:
        """Hash a file, with progress."""
        digest, done, total, started = hashlib.sha256(), 0, os.stat(path).st_size, time.monotonic()
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(BLOCK), b""):
                digest.update(block)
                done += len(block)
                self.progress.say("checking sha256: %s" % amount(done, total, started, time.monotonic()))
        return digest.hexdigest()

    def in_place(self) -> str:
        """Return the sha256 of ``dest`` when it is the wanted file; empty when it has to be brought."""
        if self.params["path"] and not _same_file(self.params["path"], self.dest):
            return ""
        known = self.recorded()
        if not known and os.path.isfile(self.dest) and (self.wanted or not self.params["src"]):
            # Somebody's file, or the record was lost: look once, then remember.
            known = self.hash(self.dest)
        if not known or (self.wanted and known != self.wanted):
            return ""
        return known

    def verify(self, path: str, origin: str) -> str:
        """Check sha256 and header of a file that is to become ``dest``; return its sha256."""
        try:
            read_header(path)
        except GgufError as error:
            raise ModelError("%s is no usable model: %s" % (origin, error)) from error
        found = self.hash(path)
        if self.wanted and found != self.wanted:
            raise ModelError(
                "sha256 = %s, but %s has %s: correct the checksum, or find out what is wrong with the file"
                % (self.wanted, origin, found)
            )
        return found

    def download(self) -> None:
        """Fetch ``url`` into the part file, going on where an earlier try stopped."""
        url = self.params["url"]
        done = os.stat(self.part).st_size if os.path.exists(self.part) else 0
        headers = {"Range": "bytes=%d-" % done} if done else {}
        try:
            answer = open_url(url, headers=headers, timeout=CONNECT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code == 416 and done:
                return  # Everything is there already; the checksum will tell.
            raise ModelError("url = %s: the server says %d %s" % (url, error.code, error.reason)) from error
        except (OSError, ValueError) as error:
            raise ModelError("url = %s: %s" % (url, error)) from error
        if done and answer.status != 206:
            done = 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        started, base = time.monotonic(), done
        with open(self.part, "ab" if done else "wb") as stream:
            while True:
                block = answer.read(BLOCK)
                if not block:
                    break
                stream.write(block)
                done += len(block)
                self.progress.say(
                    "downloading: %s" % amount(done - base, total - base if total else None, started, time.monotonic())
                )
        if total is not None and done < total:
            raise ModelError(
                "url = %s: the connection broke after %d of %d bytes; run again to go on" % (url, done, total)
            )

    def bring(self) -> tuple[str, bool]:
        """Bring the file and rename it into place; return its sha256 and whether that changed anything."""
        directory = os.path.dirname(self.dest)
        os.makedirs(directory, mode=0o755, exist_ok=True)
        if self.params["incoming"]:
            origin = source = self.params["incoming"]
        elif self.params["url"]:
            origin, source = self.params["url"], self.part
            self.download()
        else:
            origin = source = self.params["path"]
        if not os.path.isfile(source):
            raise ModelError("%s: no such file on the node" % origin)
        try:
            found = self.verify(source, origin)
        except ModelError:
            if source != self.params["path"]:
                os.unlink(source)  # Wrong bytes are not worth resuming.
            raise
        if source == self.params["path"]:
            self.link(source)
        elif found == self.recorded(any_source=True):
            # The same bytes from a newer file. The record keeps its time: whoever reads the model need not start anew.
            os.unlink(source)
            written = os.stat(self.record)
            self.write_record(found)
            os.utime(self.record, ns=(written.st_atime_ns, written.st_mtime_ns))
            return found, False
        else:
            os.chown(source, 0, 0)
            os.chmod(source, 0o644)
            os.rename(source, self.dest)
        self.write_record(found)
        return found, True

    def link(self, source: str) -> None:
        """Make ``dest`` another name of ``source``: a hard link, or a symbolic one across file systems."""
        temporary = "%s.%d" % (self.part, os.getpid())
        try:
            os.link(source, temporary)
        except OSError:
            os.symlink(source, temporary)
        os.rename(temporary, self.dest)


def _same_file(path: str, dest: str) -> bool:
    """Whether ``dest`` is a link to ``path`` as it is now."""
    try:
        return os.path.samefile(path, dest)
    except FileNotFoundError:
        return False


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "src": {"type": "path"},
            "url": {"type": "str"},
            "path": {"type": "path"},
            "incoming": {"type": "path"},
            "sha256": {"type": "str"},
            "stamp": {"type": "str"},
            "probe": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        },
        mutually_exclusive=[("src", "url", "path")],
        required_one_of=[("src", "url", "path")],
        required_by={"url": ("sha256",)},
        supports_check_mode=True,
    )
    model = ModelFile(module)
    try:
        found = model.in_place()
        changed = not found
        if changed and not module.check_mode and not module.params["probe"]:
            found, changed = model.bring()
        elif found and not model.recorded() and not module.check_mode:
            model.write_record(found)
    except (ModelError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        model.progress.close()
    size = os.stat(model.dest).st_size if found else 0
    module.exit_json(changed=changed, present=bool(found), sha256=found, bytes=size)


if __name__ == "__main__":
    main()
