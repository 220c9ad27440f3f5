"""labctl's command line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from typing import Any

from . import faults, watchdog
from . import lab as labs
from .names import LABS, NETWORKS, SUITES, Lab, LabError, parse_suites


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    top = argparse.ArgumentParser(
        prog="labctl.py",
        description="A cluster of booted Debian nodes on this machine, to deploy to and to break."
        " Needs root (it asks sudo).",
    )
    top.add_argument("--name", choices=list(LABS), default="lab", help="which lab (default: lab)")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("up", help="bring the lab to N nodes that all answer ssh")
    command.add_argument("--nodes", type=int, default=3, metavar="N", help="1 to 200 (default: 3)")
    command.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="NODE=SUITE",
        help=f"what a node runs: {', '.join(SUITES)} (may be repeated)",
    )
    command.add_argument("--owner-pid", type=int, metavar="PID", help="take the lab down when this process ends")
    _common(command, check=True)
    _common(commands.add_parser("down", help="remove the lab and all it made"), check=True)
    _common(commands.add_parser("status", help="list the nodes"))
    for name, words in {
        "kill": "power loss: no goodbye to anyone, the disk stays",
        "start": "boot a node that is off",
        "freeze": "stop all processes of a node where they stand",
        "thaw": "let them run on",
    }.items():
        command = commands.add_parser(name, help=words)
        command.add_argument("node")
        _common(command)
    for name, words in {"cut": "pull a node's cables", "mend": "plug them in again"}.items():
        command = commands.add_parser(name, help=words)
        command.add_argument("node")
        command.add_argument("--network", choices=[*NETWORKS, "both"], default="both")
        _common(command)
    command = commands.add_parser("shape", help="limit every node's bandwidth, each direction")
    command.add_argument("--rate", required=True, help="such as 1gbit or 200mbit; none lifts it")
    command.add_argument("--network", choices=list(NETWORKS), default="fabric")
    _common(command)
    command = commands.add_parser("exec", help="run a command as root in a node, without network")
    command.add_argument("node")
    command.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    command = commands.add_parser("_watch")
    command.add_argument("owner_pid", type=int)
    return top


def _common(command: argparse.ArgumentParser, *, check: bool = False) -> None:
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    if check:
        command.add_argument("--check", action="store_true", help="only tell whether something would change")


def become_root(argv: list[str]) -> None:
    """Run this command again through sudo unless we are root already."""
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    if sudo is None:
        raise LabError("the lab needs root and there is no sudo; run this command as root")
    ask = [] if sys.stdin.isatty() else ["--non-interactive"]
    proxy = [f"http_proxy={os.environ['http_proxy']}"] if os.environ.get("http_proxy") else []
    os.execv(sudo, [sudo, *ask, "env", *proxy, sys.executable, os.path.abspath(sys.argv[0]), *argv])


def act(arguments: argparse.Namespace) -> tuple[bool | None, int]:
    """Do what was asked; return whether something changed (None: a question) and a status."""
    lab = Lab(arguments.name)
    command = arguments.command
    if command == "up":
        suites = parse_suites(arguments.suite)
        changed = labs.up(
            lab,
            arguments.nodes,
            suites,
            check=arguments.check,
            owner_pid=arguments.owner_pid,
        )
        return changed, 0
    if command == "down":
        return labs.down(lab, check=arguments.check), 0
    if command in ("kill", "start"):
        return (faults.kill if command == "kill" else faults.start)(lab, arguments.node), 0
    if command in ("freeze", "thaw"):
        return faults.freeze(lab, arguments.node, command == "freeze"), 0
    if command in ("cut", "mend"):
        networks = list(NETWORKS) if arguments.network == "both" else [arguments.network]
        return (faults.cut if command == "cut" else faults.mend)(lab, arguments.node, networks), 0
    if command == "shape":
        return faults.shape(lab, arguments.network, arguments.rate), 0
    if command == "exec":
        argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
        if not argv:
            raise LabError("exec: say what to run, such as: exec node1 -- systemctl status")
        return None, faults.execute(lab, arguments.node, argv)
    if command == "_watch":
        if watchdog.watch(lab, arguments.owner_pid):
            labs.down(lab)
        return None, 0
    return None, 0


def show(status: dict[str, Any]) -> str:
    """The status for people."""
    if not status["up"]:
        return f"lab {status['lab']}: down"
    lines = [f"lab {status['lab']}: {len(status['nodes'])} nodes, inventory {status['inventory']}"]
    lines += [f"  {network}: limited to {rate}" for network, rate in status["shapes"].items()]
    for name, node in status["nodes"].items():
        cut = f"  cut off: {', '.join(node['cut'])}" if node["cut"] else ""
        lines.append(
            f"  {name:<8}{node['state']:<9}{node['suite']:<15}"
            f"{node['management']:<14}{node['fabric']:<14}{cut}".rstrip()
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run labctl; returns the exit status (1: the error is on stderr)."""
    arguments = parser().parse_args(argv)
    try:
        become_root(argv)
        changed, code = act(arguments)
        if arguments.command in ("exec", "_watch"):
            return code
        status = labs.status(Lab(arguments.name))
        if arguments.json:
            print(json.dumps({"changed": bool(changed), **status}, sort_keys=True))
        elif changed is None or arguments.command == "up":
            print(show(status))
        return code
    except LabError as error:
        print(f"labctl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("labctl: interrupted; run it again to go on, or `down` to clean up", file=sys.stderr)
        return 130
