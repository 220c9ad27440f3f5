# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The models on a disk: blobs by sha256, names for them, and nothing half.

<root>/
  blobs/<sha256>               a file's bytes, verified, never written again
  stamps/<sha256>.json         by what the blob is recognised without reading it: size, mtime and inode
  manifests/<name>.json        which files a name stands for; written last, removed last
  names/<name>/<file>          hard links to blobs; symbolic links to files that the store does not hold (external)
  used/<name, / as comma>      its time is when the name was last wanted
  incoming/<sha256>.part       a file on its way in; .lock beside it is held by whoever brings it
  quarantine/<sha256>.<time>   a blob whose bytes turned out to be others
  .sha256.json                 checksums of files that were adopted, and of those that preflight read (_hash_cache.py)
  .lock                        held while names or blobs change, never while bytes come in

How a model comes in: ``lacking`` says which files it needs (what is there and has another time than its stamp is hashed
again, once); ``room`` makes room for them; for each, under ``transfer_lock``, bytes go into ``part(sha256)`` and
``admit`` makes a blob of it; ``name`` gives the whole set its name. Kill it anywhere: what was not named is not there
for anybody, and the next run goes on. The thread that holds the lock may take it again; methods take it themselves.
"""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import (
    File,
    Manifest,
    StoreError,
    check_file,
    check_name,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_clean import Cleaning, Finding, Swept

__all__ = ["File", "Finding", "Manifest", "Store", "StoreError", "Swept", "check_file", "check_name"]


class Store(Cleaning):
    """The store below ``root``, which need not be there yet. Methods raise :class:`StoreError` and :class:`OSError`.

    ``units`` and ``proc`` are where users of models are looked for. What it does is in its bases, a concern each:
    :class:`State` what is there, :class:`Blobs` bytes that come in, :class:`Names` names, room and users,
    :class:`Cleaning` looking after all of it.
    """
