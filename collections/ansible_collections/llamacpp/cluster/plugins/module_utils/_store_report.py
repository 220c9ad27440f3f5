# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What module model_info says of a store. Reads no model's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import Manifest, utc
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_room import Held
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_users import Use


def report(store: Store, names: Sequence[str], expected: Sequence[Manifest]) -> dict[str, Any]:
    """Return the models of a store (those of ``names``, if there are any), and which of ``expected`` are not present.

    Sizes in bytes. Raises :class:`StoreError` and :class:`OSError`.
    """
    held, uses, space = store.held(), store.uses(), store.space()
    return {
        "models": [_model(store, model, held, uses.get(model.name, [])) for model in held if _asked(model.name, names)],
        "missing": sorted({manifest.name for manifest in expected if not store.present(manifest)}),
        "free_bytes": space.free,
        "store_bytes": space.stored,
    }


def _asked(name: str, names: Sequence[str]) -> bool:
    return not names or name in names


def _model(store: Store, model: Held, held: Sequence[Held], uses: Sequence[Use]) -> dict[str, Any]:
    manifest = store.manifest(model.name)
    starts = [use.since for use in uses if use.since is not None]
    return {
        "name": model.name,
        "files": [file.as_dict() for file in manifest.files] if manifest else [],
        "external": dict(manifest.external) if manifest else {},
        "bytes": sum(file.bytes for file in manifest.files) if manifest else 0,
        "own_bytes": store.own_bytes([model.name], held),
        "source": dict(manifest.source) if manifest else {},
        "created": manifest.created if manifest else None,
        "last_used": utc(model.last_used),
        "used_by": sorted({use.who for use in uses}),
        "used_since": utc(min(starts)) if starts else None,
        "complete": manifest is not None and store.present(manifest),
    }
