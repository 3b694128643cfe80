"""docs/security.md: its numbers are the code's, and the tests it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from veilsum.secagg.thresholds import check_thresholds, share_threshold, vote_quorum

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "security.md").read_text()
THREATS = REPOSITORY / "tests" / "threats"


def section(title: str) -> str:
    _, _, rest = PAGE.partition(f"\n## {title}\n")
    assert rest, f"there is no section {title!r}"
    return rest.partition("\n## ")[0]


def table(title: str) -> list[list[str]]:
    """The rows of a section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(rows) > 2
    assert len({len(row) for row in rows}) == 1
    return rows[2:]


@pytest.mark.parametrize("row", table("Parameters"), ids=lambda row: f"{row[0]} {row[1]}")
def test_the_parameters_are_those_of_the_code(row):
    sites, colluders, quorum, strict, available, lost, honest = map(int, row)

    assert quorum == vote_quorum(sites, colluders)
    assert strict == share_threshold("strict", sites, colluders)
    assert available == share_threshold("available", sites, colluders)
    fewest = max(quorum, 3)
    assert (lost, honest) == (sites - fewest, fewest - colluders)
    for threshold in (strict, available):
        check_thresholds(
            sites=sites, min_sites=3, colluders=colluders, quorum=quorum, threshold=threshold
        )


def test_every_threat_has_its_row():
    numbers = [
        number
        for row in table("Threats, and where each is tested")
        for number in re.findall(r"T(\d\d)", row[0])
    ]

    assert numbers == [f"{number:02}" for number in range(1, 41)]


def test_every_threat_test_is_listed_in_the_row_of_its_number():
    rows = {row[0]: row[3] for row in table("Threats, and where each is tested")}
    for file in sorted(THREATS.glob("test_*.py")):
        number = re.match(r"test_t(\d\d)_", file.name)
        place = rows[f"T{number[1]}"] if number else section("Threats, and where each is tested")
        assert f"`tests/threats/{file.name}`" in place, (
            f"docs/security.md does not name {file.name} where it names the threats' tests"
        )


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|docs|bench)/[^`]*)`", PAGE))))
def test_every_file_that_is_named_exists(path):
    assert (REPOSITORY / path).exists()


def test_the_page_says_what_masking_is_not():
    claims = section("What is not claimed")

    assert "Masking is not differential privacy." in claims
    assert "Masking is no defence against it." in claims
