"""Renders files of --benchmark-json as one Markdown table.

python bench/table.py FILE.json ... writes bench/results/<date>-<cpu>.md and prints its path.
Several files of one machine make one table; of the same benchmark the last one counts.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_COLUMNS = ("ms", "spread", "GB/s", "Gcoord/s", "of copy", "of triad", "of read")


def cell(column: str, value: float | None) -> str:
    if value is None:
        return ""
    if column.startswith("of ") or column == "spread":
        return f"{value:.0%}"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def ratios(facts: dict[str, float]) -> str:
    """The yardsticks, whose names differ from row to row, in one cell."""
    return ", ".join(
        f"{value:.2f} x {key.removeprefix('x ')}"
        for key, value in facts.items()
        if key.startswith("x ")
    )


def row(name: str, facts: dict[str, float]) -> str:
    cells = [name.removeprefix("test_").replace("_", " ")]
    cells += [cell(column, facts.get(column)) for column in _COLUMNS]
    return f"| {' | '.join([*cells, ratios(facts)])} |"


def section(title: str, benchmarks: dict[str, dict[str, float]]) -> list[str]:
    head = ["operation", *_COLUMNS, "how many times faster than"]
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return [*lines, *(row(name, facts) for name, facts in benchmarks.items()), ""]


def heading(run: dict[str, Any]) -> list[str]:
    facts = run["machine_info"]["veilsum"]
    commit = run["commit_info"].get("id", "unknown")[:12]
    if run["commit_info"].get("dirty"):
        commit += ", with changes"
    return [
        f"# Speed on {facts['cpu']}",
        "",
        f"{run['datetime'][:10]}, commit {commit}, instruction set {facts['isa']}, "
        f"{facts['compiler']}, NumPy {facts['numpy']}, {cores(run)} processors.",
        "",
        "Medians; shares and ratios are medians of pairs measured in turn (bench/README.md).",
        "",
    ]


def cores(run: dict[str, Any]) -> int:
    return int(run["machine_info"]["cpu"].get("count", 0))


def render(runs: list[dict[str, Any]]) -> str:
    sections: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs:
        for entry in run["benchmarks"]:
            module = entry["fullname"].partition("::")[0].rpartition("/")[2]
            sections.setdefault(module, {})[entry["name"]] = entry["extra_info"]
    lines = heading(runs[-1])
    for module, benchmarks in sorted(sections.items()):
        lines += section(module, benchmarks)
    return "\n".join(lines)


def target(run: dict[str, Any]) -> Path:
    cpu = re.sub(r"[^a-z0-9]+", "-", run["machine_info"]["veilsum"]["cpu"].lower()).strip("-")
    isa = run["machine_info"]["veilsum"]["isa"]
    return RESULTS / f"{run['datetime'][:10]}-{cpu}-{isa}.md"


def main(paths: list[str]) -> None:
    if not paths:
        raise SystemExit("usage: python bench/table.py FILE.json ...")
    runs = [json.loads(Path(path).read_text()) for path in paths]
    RESULTS.mkdir(exist_ok=True)
    out = target(runs[-1])
    out.write_text(render(runs))
    print(out)


if __name__ == "__main__":
    main(sys.argv[1:])
