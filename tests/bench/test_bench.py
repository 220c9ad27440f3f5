"""The benchmark's arithmetic and its page. What is measured is not tested here, and speed nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench
import figures
import pytest
from runs import Run, RunFailed, Span, Stopwatch

OUTPUT = """\
PLAY [Look] ********************************************************************

TASK [llamacpp.cluster.models : Put it there] **********************************
ok: [node1]

TASK [llamacpp.cluster.models : Put it there] **********************************
ok: [node2]

PLAY RECAP *********************************************************************
node1                      : ok=2    changed=0    unreachable=0    failed=0    skipped=0
node2                      : ok=2    changed=1    unreachable=0    failed=0    skipped=0
"""


def run(seconds: float, changed: int = 0, **spans: float) -> Run:
    return Run(
        seconds, seconds / 2, seconds / 4, {name: Span(value, 1) for name, value in spans.items()}, {"node1": changed}
    )


def point(nodes: int, site: float, setup: float) -> dict[str, Any]:
    return figures.compared(nodes, [run(site, look=site / 2)], [run(setup)])


def measured(**parts: Any) -> dict[str, Any]:
    """Results as `make bench` keeps them."""
    machine = dict.fromkeys(("processor", "memory_gib", "system", "kernel", "python", "ansible_core", "forks"), "?")
    how = {"date": "2026-01-02", "revision": "abc", "load": 0.1, "repeats": 3}
    return {"machine": {**machine, "cores": 2}, **{name: {**how, **part} for name, part in parts.items()}}


def test_time_goes_to_the_heading_it_was_spent_under() -> None:
    watch = Stopwatch()
    for second, line in enumerate(OUTPUT.splitlines(), start=1):
        watch.line(line, float(second))
    watch.stop(20.0)
    assert {label: (span.seconds, span.times) for label, span in watch.spans.items()} == {
        "(ansible-playbook starts)": (1.0, 1),
        "play: Look": (2.0, 1),
        "models : Put it there": (6.0, 2),
        "(recap and exit)": (11.0, 1),
    }
    assert watch.changed == {"node1": 0, "node2": 1}


def test_a_recap_that_a_task_prints_is_not_taken_for_the_recap() -> None:
    watch = Stopwatch()
    watch.line("node9 : ok=1 changed=1 unreachable=0 failed=0", 1.0)
    assert watch.changed == {}


def test_the_time_of_a_run_that_changed_something_is_refused() -> None:
    with pytest.raises(RunFailed, match="node1: 2"):
        run(9.0, changed=2).unchanged()
    with pytest.raises(RunFailed, match="no recap"):
        Run(9.0, 1.0, 0.5, {}, {}).unchanged()
    assert run(9.0).unchanged().seconds == 9.0


def test_medians_and_their_ratio() -> None:
    site = [run(12.0, look=5.0, plan=1.0), run(8.0, look=3.0, plan=2.0), run(9.0, look=1.0)]
    found = figures.compared(3, site, [run(2.0), run(4.0), run(3.0)])
    assert (found["site"]["seconds"], found["setup"]["seconds"], found["ratio"]) == (9.0, 3.0, 3.0)
    assert found["site"]["runs_seconds"] == [12.0, 8.0, 9.0]
    assert found["spans"] == {"look": {"seconds": 3.0, "times": 1}}, "plan was not in every run"


def test_slope_is_that_of_a_line() -> None:
    sizes = (3, 6, 12, 24)
    found = figures.scaled([point(size, 8.0 + 0.25 * size, 2.0 + 0.125 * size) for size in sizes])
    assert found["a_node"]["site"]["seconds"] == pytest.approx(0.25)
    assert found["a_node"]["setup"]["seconds"] == pytest.approx(0.125)


def test_slopes_are_stretched_to_a_thousand_nodes() -> None:
    scale = figures.scaled([point(size, 8.0 + size, 2.0) for size in (3, 6)])
    said = (
        "over 1,000 nodes that changes nothing costs Ansible 500 s of processor time, 250 s of it in its main process"
    )
    assert said in figures.stretched(scale["a_node"])
    assert figures.stretched(scale["a_node"]) in figures.report(measured(scale=scale))


@pytest.mark.parametrize(("site", "met"), [(8.0, True), (8.2, False)])
def test_a_goal_is_met_or_not(site: float, met: bool) -> None:
    (verdict,) = figures.verdicts(measured(noop=point(3, site, 2.0)))
    assert verdict.met is met
    assert ("not met" in figures.report(measured(noop=point(3, site, 2.0)))) is not met


def test_a_slope_of_fact_gathering_that_drowned_in_noise_is_no_yardstick() -> None:
    scale = figures.scaled([point(3, 9.0, 2.0), point(6, 12.0, 2.0)])
    (verdict,) = figures.verdicts(measured(scale=scale))
    assert verdict.figure.startswith("1.00 s = ? x the 0.00 s")


def test_every_part_has_its_verdict() -> None:
    scale = figures.scaled([point(3, 9.0, 2.0), point(6, 12.0, 2.6)])
    second = {"nodes": 3, "site": figures.timed([run(14.0)])}
    found = figures.verdicts(measured(noop=point(3, 8.0, 2.0), scale=scale, **{"second-instance": second}))
    assert [verdict.met for verdict in found] == [True, False, True]
    assert "1.00 s = 5.0 x the 0.20 s" in found[1].figure
    assert "14.0 s = 1.8 x the run" in found[2].figure


def test_slowest_tasks_are_those_of_both_ends() -> None:
    small = figures.compared(3, [run(9.0, **{f"a{number}": 1.0 for number in range(12)}, z=0.5)], [run(1.0)])
    large = figures.compared(6, [run(9.0, **{f"a{number}": 1.0 for number in range(12)}, z=3.5)], [run(1.0)])
    head, first, *others = figures.span_rows([small, large])
    assert head[1:] == ["3 nodes, s", "6 nodes, s", "Each more, ms"]
    assert first == ["z", "0.50", "3.50", "1000"]
    assert len(others) == 10


def test_page_keeps_what_a_person_wrote() -> None:
    text = f"# Bench\n\nBefore.\n\n{figures.BEGIN}\nold\n{figures.END}\n\n## At 1,000 nodes\n\nAfter.\n"
    results = measured(noop=point(3, 8.0, 2.0))
    once = figures.page(text, results)
    assert once.startswith("# Bench\n\nBefore.\n")
    assert once.endswith("## At 1,000 nodes\n\nAfter.\n")
    assert "old" not in once
    assert "8.0 s = 4.0 x" in once
    assert figures.page(once, results) == once


def test_page_without_a_place_for_figures_says_what_to_write() -> None:
    with pytest.raises(figures.PageError, match=figures.END):
        figures.page("# Bench\n", measured())


def test_the_page_of_the_repository_shows_the_figures_that_are_kept() -> None:
    text = bench.PAGE.read_text("utf-8")
    assert figures.BEGIN in text
    assert figures.END in text
    if bench.RESULTS.exists():
        assert figures.page(text, bench.json.loads(bench.RESULTS.read_text("utf-8"))) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "--repeats 0: write at least 1"),
        (["--only", "noop", "--repeats", "2"], "figures of noop are kept from 5 runs on"),
        (["--only", "scale", "--sizes", "3"], "--sizes 3: a slope needs two sizes"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments_of(arguments)
    assert message in capsys.readouterr().err


def test_figures_of_another_machine_are_not_mixed_with_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "bench.md"
    page.write_text(f"{figures.BEGIN}\n{figures.END}\n", "utf-8")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "bench" / "site.json")
    second = {"nodes": 3, "site": figures.timed([run(14.0)])}
    bench.keep(measured(noop=point(3, 8.0, 2.0)))
    bench.keep(measured(**{"second-instance": second}))
    assert "8.0 s" in page.read_text("utf-8")
    other = measured(**{"second-instance": second})
    other["machine"]["cores"] = 64
    bench.keep(other)
    assert "8.0 s" not in page.read_text("utf-8")
