"""Checks the JSON line of a short, masked demo: check_demo.py FILE SITES ROUNDS."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path


def check(text: str, sites: int, rounds: int) -> list[str]:
    """What is wrong with the outcome; empty if nothing is."""
    lines = text.splitlines()
    if len(lines) != 1:
        return [f"expected one line on stdout, got {len(lines)}"]
    outcome = json.loads(lines[0])
    findings = {
        "masked": outcome["masked"] is True,
        "proof_holds": outcome["proof_holds"] is True,
        "sites": len(outcome["sites"]) == sites,
        "rounds": len(outcome["rounds"]) == rounds,
        "digest": re.fullmatch("[0-9a-f]{64}", outcome["digest"]) is not None,
        "recomputed": all(one["digest"] == one["recomputed"] for one in outcome["rounds"]),
        "drop": outcome["drop"] is not None and outcome["drop"]["reason"] != "",
        "auc": 0.5 < outcome["auc"]["federated"]["all"] <= 1.0,
        "files": all(Path(file).exists() for file in outcome["files"].values()),
    }
    return [name for name, holds in findings.items() if not holds]


if __name__ == "__main__":
    wrong = check(Path(sys.argv[1]).read_text(), int(sys.argv[2]), int(sys.argv[3]))
    if wrong:
        sys.exit(f"the demo's JSON is wrong in: {', '.join(wrong)}")
