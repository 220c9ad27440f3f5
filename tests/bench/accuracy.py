"""How close the estimates are to llama.cpp's own figures, by architecture.

    .venv/bin/python tests/bench/accuracy.py [DIR ...] [--json FILE] [--markdown FILE] [--worst 10]

DIR: sets of truth as tests/fit/make_truth.py writes them; without one, those that tests/fit knows. Prints
a table: of every architecture the largest error of each part on any device in MiB, the largest error of
the totals against llama-server in per cent, and the share of totals within what is promised (2 % or
32 MiB, never more than 1 % or 16 MiB too low). Exits with 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "collections"), str(ROOT / "tests" / "fit")]

from fitcases import SHARED, STORED, Case, Error, cases, errors, lines  # noqa: E402

from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused  # noqa: E402

PARTS = ("model", "context", "compute")
# Heads of the table, and what stands below.
COLUMNS = {
    "architecture": "architecture",
    "cases": "cases",
    "model": "model, MiB",
    "context": "context, MiB",
    "compute": "compute, MiB",
    "total_high": "total above, MiB",
    "total_low": "below, MiB",
    "per_cent": "worst, %",
    "within": "within, %",
}


def compare(case: Case) -> tuple[list[Error], str | None]:
    """Return the errors of a case, or what was refused and should not have been, or the other way round."""
    try:
        if case.refused:
            case.estimate()
            return [], f"{case.name}: llama.cpp refuses it, we do not"
        return list(errors(case)), None
    except Refused as error:
        return [], None if case.refused else f"{case.name}: we refuse it ({error}), llama.cpp does not"


def summary(architecture: str, count: int, found: Sequence[Error]) -> dict[str, Any]:
    """Return a row of the table. Errors of totals are those of devices: the host has other processes anyway."""
    parts: dict[str, list[Error]] = defaultdict(list)
    for error in found:
        parts[error.part].append(error)
    totals = [error for error in parts["total"] if error.where != "host"]
    largest = {
        part: max((abs(error.mib) for error in parts[part]), default=0.0) for part in ("model", "context", "compute")
    }
    worst = max(totals, key=lambda error: abs(error.mib) / max(error.theirs, 1), default=None)
    return {
        "architecture": architecture,
        "cases": count,
        **{part: round(size, 2) for part, size in largest.items()},
        "total_high": round(max((error.mib for error in totals), default=0.0), 1),
        "total_low": round(min((error.mib for error in totals), default=0.0), 1),
        "per_cent": round(100 * worst.mib / max(worst.theirs, 1), 2) if worst else 0.0,
        "within": round(100 * sum(error.within for error in totals) / len(totals), 2) if totals else 100.0,
    }


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Return the table for people."""
    text = ["| " + " | ".join(COLUMNS.values()) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    text += ["| " + " | ".join(str(row[column]) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(text) + "\n"


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    parser.add_argument("--worst", type=int, default=10, help="how many of the largest errors to name")
    given = parser.parse_args()
    by_architecture: dict[str, list[Error]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    complaints = []
    for root in given.roots or [root for root in (STORED, SHARED) if lines(root)]:
        for name in lines(root):
            for case in cases(root, name, every=True):
                found, complaint = compare(case)
                counts[case.truth["arch"]] += 1
                by_architecture[case.truth["arch"]] += found
                complaints += [complaint] if complaint else []
    rows = [summary(name, counts[name], found) for name, found in sorted(by_architecture.items())]
    everything = [error for found in by_architecture.values() for error in found]
    rows.append(summary("all", sum(counts.values()), everything))
    table = markdown(rows)
    print(table)
    # The host's total has no promise: what else the process takes there is not in llama.cpp's figures.
    outside = [error for error in everything if not error.within and (error.part != "total" or error.where != "host")]
    outside.sort(key=lambda error: -abs(error.mib))
    for line in [*complaints, *(str(error) for error in outside[: given.worst])]:
        print(line)
    print(
        f"{sum(counts.values())} cases, {len(everything)} figures, {len(outside)} outside, {len(complaints)} complaints"
    )
    if given.json:
        data = {"rows": rows, "outside": [str(error) for error in outside], "complaints": complaints}
        given.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(table, encoding="utf-8")
    return 1 if outside or complaints else 0


if __name__ == "__main__":
    sys.exit(main())
