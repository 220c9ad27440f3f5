#!/usr/bin/env python3
"""The demonstration: three nodes boot on this machine, become one cluster and answer a question.

Everything that happens is what you would do for nodes of your own: a playbook, an inventory, an HTTP request. The
second run is quick, because nothing that is there is made again. `make lab-down` removes the nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chat import ChatError, Timings, stream
from hub import ModelError, Source, find
from rich.console import Console
from rich.rule import Rule

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
CACHE = ROOT / ".cache"
INVENTORY = "inventories/lab"
DICE_MODEL = CACHE / "demo.gguf"
PLAN = CACHE / "lab" / "plan.json"
API_KEY = CACHE / "lab" / "api-key"
VARIABLES = CACHE / "lab" / "demo-variables.json"
STEPS = 4
LEAST_NODES = 3  # that many the lab's inventory declares
QUESTION = "What is a cluster, and what happens at night?"

console = Console(highlight=False)


class DemoError(Exception):
    """A step that failed. The text says which, and what to look at."""


def shown(path: Path) -> str:
    """A path as a person in the repository's root would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def step(number: int, what: str) -> None:
    """The header of a step."""
    console.print()
    console.print(Rule(f"[bold]{number} of {STEPS}: {what}", align="left"))


def environment() -> dict[str, str]:
    """Ours, with Ansible's commands on PATH."""
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def run(command: list[str], failed: str) -> None:
    """Run a command with its output passing through. Raises DemoError(`failed`) unless it succeeds."""
    console.print(f"[dim]$ {shlex.join(command)}", markup=True, soft_wrap=True)
    status = subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode
    if status != 0:
        raise DemoError(f"{failed} (exit status {status}; the messages are above)")


def host_variables(host: str) -> dict[str, Any]:
    """What the lab's inventory says of a host, templates unresolved. Raises DemoError."""
    answer = subprocess.run(
        [str(BIN / "ansible-inventory"), "--inventory", INVENTORY, "--host", host],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise DemoError(f"{INVENTORY} cannot be read: {answer.stderr.strip()}")
    variables: dict[str, Any] = json.loads(answer.stdout)
    return variables


def overrides(source: Source | None, nodes: int) -> list[str]:
    """Arguments that make the lab's instance differ from its declaration where `source` or `nodes` do; often none.

    They go through a file that only we may read: an instance can hold API keys, and a command line is for all to see.
    """
    declared = host_variables("node1")["llamacpp_instances"][0]
    wanted = {**declared, "nodes": [f"node{number}" for number in range(1, nodes + 1)]}
    if source:
        wanted["model"] = {"path": str(source.path)} | ({"sha256": source.sha256} if source.sha256 else {})
    if wanted == declared:
        return []
    VARIABLES.parent.mkdir(parents=True, exist_ok=True)
    VARIABLES.touch(mode=0o600)
    VARIABLES.write_text(json.dumps({"llamacpp_instances": [wanted]}, indent=2) + "\n", "utf-8")
    return ["--extra-vars", f"@{shown(VARIABLES)}"]


def load_plan() -> dict[str, Any]:
    """The plan that site.yml wrote. Raises DemoError when it did not."""
    try:
        plan: dict[str, Any] = json.loads(PLAN.read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DemoError(f"site.yml left no plan that can be read at {shown(PLAN)}: {error}") from error
    return plan


def show_plan(plan: dict[str, Any], addresses: dict[str, str]) -> None:
    """The plan as the collection's own filter draws it; `addresses` are those of the nodes' management network."""
    sys.path.insert(0, str(ROOT / "collections"))
    from ansible_collections.llamacpp.cluster.plugins.module_utils._table import plan_table

    console.print(plan_table(plan, addresses), markup=False, soft_wrap=True)


def ask(base: str, question: str, max_tokens: int) -> Timings | None:
    """Print the answer as it comes; return the server's timings."""
    key = API_KEY.read_text("utf-8").strip() if API_KEY.exists() else None
    timings = None
    console.print(f"[bold cyan]you[/]   {question}")
    console.print("[bold green]model[/]", end="")
    for piece in stream(base, key, question, max_tokens):
        if isinstance(piece, Timings):
            timings = piece
        else:
            # Not through rich: it wraps and buffers, and the pieces shall be seen when they come.
            print(piece, end="", flush=True)
    print()
    return timings


def what_next(base: str, model: str) -> str:
    """What to type now; `model` is what MODEL said, empty where it said nothing."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32})
    key = f'-H "Authorization: Bearer $(cat {shown(API_KEY)})" ' if API_KEY.exists() else ""
    again = f"MODEL={shlex.quote(model)} make demo" if model else "make plan && make site"
    lines = [
        "Ask it yourself:",
        f"  curl -s {base}/v1/chat/completions {key}-d '{body}'",
        f"Serve more people at once: change `parallel` in {INVENTORY}/group_vars/all/20_lab.yml, then",
        f"  {again}        (one service restarts, nothing else)",
        "Look inside a node:",
        "  .venv/bin/ansible node1 -m ansible.builtin.command -a 'systemctl --no-pager status llamacpp-*'",
        "Your own nodes: README.md, section `From the lab to your own nodes`.",
        "Take everything down: make lab-down",
    ]
    if not model:
        lines.insert(
            0, "A model that makes sense: MODEL=/path/to/some.gguf make demo, or MODEL=hf://owner/repo/file.gguf"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Run it as `make demo`, which installs what is needed first.",
    )
    parser.add_argument(
        "--model",
        default=os.environ.get("MODEL", ""),
        help="a GGUF file, or hf://owner/repo/file.gguf; default: MODEL from the environment, or random weights",
    )
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes the lab has (default: %(default)s)")
    parser.add_argument("--question", default=QUESTION, help="what to ask (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=96, help="length of the answer (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.nodes < LEAST_NODES:
        parser.error(
            f"--nodes {arguments.nodes} (NODES): {INVENTORY} declares {LEAST_NODES} nodes; write at least that"
        )
    if arguments.max_tokens < 1:
        parser.error(f"--max-tokens {arguments.max_tokens}: write at least 1")
    started = time.monotonic()

    step(1, "the model")
    source = None
    if arguments.model:
        source = find(arguments.model, CACHE / "models")
        console.print(f"{shown(source.path)}, {source.path.stat().st_size / 2**20:.0f} MiB")
    else:
        run([str(BIN / "python"), "demo/make_model.py", shown(DICE_MODEL)], "the model could not be written")

    step(2, f"{arguments.nodes} nodes")
    lab = [str(BIN / "ansible-playbook"), "playbooks/lab_up.yml", "--extra-vars", f"lab_nodes={arguments.nodes}"]
    run(lab, "the lab did not come up; `make lab-down` removes what is left of it")

    step(3, "the cluster (the first time llama.cpp is compiled: minutes)")
    site = [str(BIN / "ansible-playbook"), "--inventory", INVENTORY, "playbooks/site.yml"]
    site += overrides(source, arguments.nodes)
    run(site, "site.yml failed; mend what it names and run `make demo` again, it goes on where it stopped")

    step(4, "a question")
    plan = load_plan()
    instance = plan["instances"][0]
    head = instance["head"]
    address = host_variables(head)["ansible_host"]
    base = f"http://{address}:{instance['port']}"
    show_plan(plan, {head: address})
    console.print()
    timings = ask(base, arguments.question, arguments.max_tokens)
    if timings:
        console.print(
            f"\n[bold]{timings.answer_per_second:.1f} tokens/s[/] ({timings.answer_tokens} tokens; "
            f"the question: {timings.prompt_tokens} tokens at {timings.prompt_per_second:.0f} tokens/s)"
        )
    if source is None:
        console.print("The weights of this model were thrown with dice, so it talks nonsense; the cluster is real.")
    console.print(f"Done in {time.monotonic() - started:.0f} s.\n")
    console.print(what_next(base, arguments.model), markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (DemoError, ModelError, ChatError) as failure:
        print(f"\n[demo] error: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
