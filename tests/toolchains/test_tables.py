"""docs/toolchains.md shows the tables that the choice is made from, row by row."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.llamacpp.cluster.plugins.module_utils import _cuda_versions, _gcc_versions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "toolchains.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text("utf-8").splitlines()
    if line.startswith("| ")
]


def row(*start: str) -> list[str]:
    """The cells of the row that begins with these."""
    found = [cells for cells in ROWS if cells[: len(start)] == list(start)]
    assert len(found) == 1, f"rows that begin with {start}: {found}"
    return found[0]


def test_toolkits() -> None:
    for toolkit in _cuda_versions.TOOLKITS:
        _version, gcc, architectures, driver, glibc, wheels = row(toolkit.version)
        assert gcc == str(toolkit.gcc)
        assert architectures == "sm_" + ", ".join(str(number) for number in sorted(toolkit.architectures))
        assert (driver, glibc) == (toolkit.driver, toolkit.glibc or "no limit known")
        assert wheels == ("yes" if toolkit.version in _cuda_versions.WHEELS else "")
    assert len([cells for cells in ROWS if cells[0][:3] in ("11.", "12.", "13.")]) == len(_cuda_versions.TOOLKITS)


def test_distributions() -> None:
    for key, distribution in _gcc_versions.DISTRIBUTIONS.items():
        _name, own, others, glibc, source = row(distribution.name, str(distribution.own))
        minors = {major: f" ({distribution.name[2:]}.{since})" for major, since in distribution.others.items() if since}
        assert others == ", ".join(f"{major}{minors.get(major, '')}" for major in sorted(distribution.others))
        assert (own, glibc, source) == (str(distribution.own), distribution.glibc, distribution.source)
        name, first, last = _cuda_versions.REPOSITORIES[key]
        assert row(distribution.name, f"`{name}`: {first} to {last}")[2].startswith(
            _cuda_versions.DISTRIBUTION.get(key, "none")
        )
