"""What a lab consists of, written down before it is made.

The record is the lab's memory across crashes: a name goes into it before the thing of that name
is created and leaves it after the thing is gone, so that ``down`` always knows what to remove,
and nothing that is not in a record is ever touched.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import host
from .names import LABS, Lab, LabError

SCHEMA = 1


@dataclass
class NodeRecord:
    """A node: its suite, the directory name of its root in the cache, what was done to it."""

    suite: str
    root: str
    machine_id: str
    seeded: bool = False
    cut: list[str] = field(default_factory=list)


@dataclass
class LabRecord:
    """A lab that is up, half up or half down."""

    name: str
    namespaces: list[str] = field(default_factory=list)
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    shapes: dict[str, str] = field(default_factory=dict)
    extra_inventory: str | None = None

    def dumps(self) -> str:
        """The record as JSON text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def loads(cls, text: str, origin: str) -> LabRecord:
        """The record back from :meth:`dumps`; ``origin`` names the file in errors."""
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise ValueError("its schema is not the one that this version writes")
            data["nodes"] = {name: NodeRecord(**node) for name, node in data["nodes"].items()}
            return cls(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LabError(
                f"cannot read the lab's record {origin}: {error}; take the lab down with the version that made it"
            ) from None

    def save(self) -> None:
        """Write the record to disk before returning."""
        directory = state_directory(Lab(self.name))
        host.make_directory(directory)
        host.write_text(directory / "record.json", self.dumps())


def state_directory(lab: Lab) -> Path:
    """Where a lab keeps everything that ``down`` removes."""
    return host.STATE / lab.name


def locks() -> Path:
    """Where lock files are; they are all that stays when a lab is down."""
    directory = host.STATE / ".locks"
    host.make_directory(directory)
    return directory


def load(lab: Lab) -> LabRecord | None:
    """The lab's record, or None when it is down."""
    path = state_directory(lab) / "record.json"
    try:
        return LabRecord.loads(path.read_text(), str(path))
    except FileNotFoundError:
        return None


def others(lab: Lab) -> dict[str, int]:
    """The other labs that have a record, each with its number of nodes.

    Their locks are not held: a lab may come or go while we look. It will look for us, too.
    """
    found = {}
    for name in LABS:
        if name != lab.name and (record := load(Lab(name))) is not None:
            found[name] = len(record.nodes)
    return found


def at_work(lab: Lab) -> AbstractContextManager[None]:
    """Hold the lock of a lab: one labctl at a time changes it."""
    return locked(lab.name, f"waiting for another labctl at work on the lab {lab.name!r}")


@contextmanager
def locked(name: str, waiting: str) -> Iterator[None]:
    """Hold the lock ``name`` (a lab's name, ``shared`` or ``root-<key>``).

    The kernel frees it when the process dies, however it dies. ``waiting`` is said when someone
    else holds it.
    """
    with open(locks() / f"{name}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            host.say(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
