"""From runs to figures, and from figures to a page. Nothing here runs anything or reads a clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, median
from typing import Any

from runs import Run

GOAL_RATIO = 4.0  # a no-op site.yml to fact gathering
GOAL_SLOPE = 0.5  # seconds a node
GOAL_SECOND = 15.0  # seconds
SLOWEST = 10
UNITS = ("seconds", "control_cpu", "main_cpu", "nodes_cpu")
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"

# A JSON object of the results, as docs/bench/site.json keeps them.
Figures = dict[str, Any]


class PageError(Exception):
    """A page that cannot take the figures. The text says what to write into it."""


@dataclass(frozen=True)
class Verdict:
    """One promise and what was found; ``met`` decides, the rest is for people."""

    what: str
    figure: str
    goal: str
    met: bool


def compared(nodes: int, site: Sequence[Run], setup: Sequence[Run]) -> Figures:
    """No-op runs of site.yml beside fact gathering on the same nodes: all times, their medians, and what site.yml did.

    ``spans``: heading -> ``seconds`` (median over the runs) and ``times`` it came in one run, slowest first.
    """
    spans = {
        label: {"seconds": round(median(run.spans[label].seconds for run in site), 3), "times": span.times}
        for label, span in site[0].spans.items()
        if all(label in run.spans for run in site)
    }
    return {
        "nodes": nodes,
        "site": timed(site),
        "setup": timed(setup),
        "ratio": round(median(run.seconds for run in site) / median(run.seconds for run in setup), 2),
        "spans": dict(sorted(spans.items(), key=lambda item: -item[1]["seconds"])),
    }


def timed(runs: Sequence[Run]) -> Figures:
    """Seconds of runs of one kind, as medians: what :class:`runs.Run` has under these names."""
    return {
        **{unit: round(median(getattr(run, unit) for run in runs), 2) for unit in UNITS},
        "runs_seconds": [round(run.seconds, 2) for run in runs],
    }


def scaled(points: Sequence[Figures]) -> Figures:
    """Several sizes of :func:`compared`, and what each node adds to every time (least squares)."""
    sizes = [point["nodes"] for point in points]
    return {
        "points": list(points),
        "a_node": {
            kind: {
                unit: round(linear_regression(sizes, [point[kind][unit] for point in points]).slope, 3)
                for unit in UNITS
            }
            for kind in ("site", "setup")
        },
    }


def verdicts(figures: Figures) -> list[Verdict]:
    """What was promised, for the parts that were measured."""
    found = []
    if noop := figures.get("noop"):
        site, setup = noop["site"]["seconds"], noop["setup"]["seconds"]
        found.append(
            Verdict(
                f"a run of `site.yml` that changes nothing, {noop['nodes']} nodes",
                f"{site:.1f} s = {noop['ratio']:.1f} x the {setup:.1f} s of `ansible.builtin.setup`",
                f"at most {GOAL_RATIO:.0f} x",
                noop["ratio"] <= GOAL_RATIO,
            )
        )
    if scale := figures.get("scale"):
        sizes = [point["nodes"] for point in scale["points"]]
        slope, yardstick = (scale["a_node"][kind]["seconds"] for kind in ("site", "setup"))
        found.append(
            Verdict(
                f"what each node adds to it, {sizes[0]} to {sizes[-1]} nodes",
                f"{slope:.2f} s = {times(slope, yardstick)} x the {yardstick:.2f} s of `ansible.builtin.setup`",
                f"at most {GOAL_SLOPE} s",
                slope <= GOAL_SLOPE,
            )
        )
    if second := figures.get("second-instance"):
        seconds = second["site"]["seconds"]
        ratio = f" = {seconds / noop['site']['seconds']:.1f} x the run that changes nothing" if noop else ""
        found.append(
            Verdict(
                "a second instance of a model that is there, deployed and proved",
                f"{seconds:.1f} s{ratio}",
                f"at most {GOAL_SECOND:.0f} s",
                seconds <= GOAL_SECOND,
            )
        )
    return found


def verdict_rows(figures: Figures) -> list[list[str]]:
    """A table, its head first."""
    rows = [[each.what, each.figure, each.goal, "met" if each.met else "**not met**"] for each in verdicts(figures)]
    return [["What", "Figure", "Goal", ""], *rows]


def times(value: float, yardstick: float) -> str:
    """How many times the yardstick; a slope that was not found to be above zero is none."""
    return f"{value / yardstick:.1f}" if yardstick > 0 else "?"


def stretched(a_node: Figures, nodes: int = 1000) -> str:
    """What the slopes say of many nodes, in a sentence."""
    site = a_node["site"]
    return (
        f"By these slopes a run over {nodes:,} nodes that changes nothing costs Ansible"
        f" {nodes * site['control_cpu']:,.0f} s of processor time, {nodes * site['main_cpu']:,.0f} s of it in its main"
        f" process, and every node {site['nodes_cpu']:.1f} s, which nodes that are machines spend side by side."
    )


def size_rows(points: Sequence[Figures], a_node: Figures | None) -> list[list[str]]:
    """A table of the sizes, its head first; ``a_node`` becomes its last row."""
    head = ["Nodes", "`site.yml`, s", "`setup`, s", "Ratio"]
    head += [
        f"{who}, s: {kind}" for who in ("CPU of Ansible", "CPU of all nodes") for kind in ("`site.yml`", "`setup`")
    ]
    rows = [[str(point["nodes"]), *_times(point, 1)] for point in points]
    return [head, *rows, *([["each more", *_times(a_node, 2)]] if a_node else [])]


def _times(kinds: Figures, digits: int) -> list[str]:
    """The cells behind the number of nodes; in brackets, Ansible's main process."""
    site, setup = kinds["site"], kinds["setup"]
    wall, control, main, nodes = ([f"{kind[unit]:.{digits}f}" for kind in (site, setup)] for unit in UNITS)
    control = [f"{whole} ({part})" for whole, part in zip(control, main, strict=True)]
    return [*wall, times(site["seconds"], setup["seconds"]), *control, *nodes]


def span_rows(points: Sequence[Figures]) -> list[list[str]]:
    """A table of the slowest tasks of the first and the last of ``points``, slowest at the last first.

    A task that is included for each instance comes more than once in a run; its times are added up.
    """
    ends = [points[0], points[-1]] if len(points) > 1 else [points[0]]
    labels = dict.fromkeys(label for point in reversed(ends) for label in list(point["spans"])[:SLOWEST])
    last = ends[-1]["spans"]
    rows = []
    for label in sorted(labels, key=lambda label: -last.get(label, {"seconds": 0.0})["seconds"]):
        spans = [point["spans"].get(label, {"seconds": 0.0, "times": 0}) for point in ends]
        seconds = [f"{span['seconds']:.2f}" + (f" ({span['times']} x)" if span["times"] > 1 else "") for span in spans]
        if len(ends) > 1:
            apart = ends[1]["nodes"] - ends[0]["nodes"]
            seconds.append(f"{1000 * (spans[1]['seconds'] - spans[0]['seconds']) / apart:.0f}")
        rows.append([label, *seconds])
    head = ["Where the time goes", *(f"{point['nodes']} nodes, s" for point in ends)]
    return [[*head, "Each more, ms"] if len(ends) > 1 else head, *rows]


def sizes_of(figures: Figures) -> list[Figures]:
    """All sizes that were measured: those of ``scale``, else that of ``noop``, else none."""
    if scale := figures.get("scale"):
        return list(scale["points"])
    return [figures["noop"]] if "noop" in figures else []


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def report(figures: Figures) -> str:
    """The generated part of the page."""
    machine = figures["machine"]
    parts = [markdown(verdict_rows(figures))]
    if points := sizes_of(figures):
        a_node = figures.get("scale", {}).get("a_node")
        parts.append(markdown(size_rows(points, a_node)))
        if a_node:
            parts.append(stretched(a_node))
        parts.append(markdown(span_rows(points)))
    parts.append(
        "Medians; in brackets, the part of Ansible's main process, which no second core can share."
        f" Nodes and control node share one machine: {machine['cores']} cores ({machine['processor']}),"
        f" {machine['memory_gib']} GiB, {machine['system']}, Linux {machine['kernel']};"
        f" ansible-core {machine['ansible_core']}, Python {machine['python']}, {machine['forks']} forks."
    )
    measured = [
        f"`{name}` on {part['date']} at {part['revision']}, {part['repeats']} runs of each, load before {part['load']}"
        for name, part in figures.items()
        if name != "machine"
    ]
    parts.append(f"Measured: {'; '.join(measured)}.")
    return "\n\n".join(parts)


def page(text: str, figures: Figures) -> str:
    """``text`` with everything between its two markers replaced by the figures; the rest is a person's and stays.

    Raises PageError when the markers are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise PageError(f"the page has no place for the figures; write these two lines into it:\n{BEGIN}\n{END}")
    return f"{before}{BEGIN}\n\n{report(figures)}\n\n{END}{after}"
