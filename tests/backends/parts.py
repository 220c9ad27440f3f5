"""A cluster on a part of the lab `backends`, and what its tests ask of releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from driver import KEY, Cluster
from fixtures import LiveLab


class Part(Cluster):
    """A cluster of some of the lab's nodes, all with one kind of release, which ``builder`` (the first) compiles."""

    def __init__(
        self, live: LiveLab, work: Path, model: Path, nodes: list[str], builder: str = "", **variables: Any
    ) -> None:
        super().__init__(live, work, model)
        hosts = dict.fromkeys(nodes)
        groups = {"part": {"hosts": hosts}, "compilers": {"hosts": {builder or nodes[0]: None}}}
        (work / "groups.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
        self.nodes = nodes
        self.variables.update(
            llamacpp_nodes_group="part",
            llamacpp_builders_group="compilers",
            # The last is the head, so that who serves is not who compiled.
            llamacpp_instances=[self.instance("demo", nodes[::-1], api_keys=[KEY])],
            **variables,
        )

    @property
    def release(self) -> str:
        """The one release's directory on every node."""
        (name,) = self.plan["releases"]
        return f"/opt/llamacpp/releases/{name}"

    def manifest(self, node: str) -> dict[str, Any]:
        """The manifest of the release that a node has."""
        loaded: dict[str, Any] = json.loads(self.shell(node, f"cat {self.release}/manifest.json"))
        return loaded

    def unresolved(self, node: str, file: str) -> set[str]:
        """Which shared libraries that a file of the release needs are not there on a node."""
        lines = self.shell(node, f"ldd {self.release}/{file}").splitlines()
        return {line.split()[0] for line in lines if "not found" in line}

    def needed(self, node: str, file: str) -> set[str]:
        """Which shared libraries a file of the release needs itself."""
        lines = self.shell(node, f"objdump -p {self.release}/{file}").splitlines()
        return {line.split()[1] for line in lines if line.split()[:1] == ["NEEDED"]}

    def seen_devices(self, node: str, **environment: str) -> str:
        """What the release's server calls its devices on a node, as the services' user sees them."""
        words = " ".join(f"{name}={value}" for name, value in environment.items())
        command = f"runuser -u llamacpp -- env {words} {self.release}/bin/llama-server --list-devices"
        said = self.shell(node, f"{command} 2>&1")
        # What stands before it is the log of backends that were loaded.
        log, heading, devices = said.partition("Available devices:")
        assert heading, log
        return devices
