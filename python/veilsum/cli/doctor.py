"""`veilsum doctor`: what this build is, and whether this machine computes as it must."""

from __future__ import annotations

import platform
from typing import Annotated, Any

import typer

from veilsum._version import __version__
from veilsum.cli.exits import FAILED
from veilsum.cli.output import JsonOption, print_error, print_facts, print_json, print_table


def doctor(
    as_json: JsonOption = False,
    emulated: Annotated[
        bool, typer.Option("--emulated", hidden=True, help="Test an emulated device, too.")
    ] = False,
) -> None:
    """Show version, backends and devices, and test every kernel against known answers.

    Run it once on each machine that takes part. It exits with 1 if a test fails.

    \b
    Example:
      veilsum doctor
    """
    from veilsum.selftest import cpu_checks, device_checks

    facts = _facts()
    checks = [*cpu_checks(), *device_checks(emulated=emulated)]
    failed = [check for check in checks if not check.passed]
    if as_json:
        shown = [
            {"name": c.name, "on": c.on, "passed": c.passed, "problem": c.problem} for c in checks
        ]
        print_json({**facts, "checks": shown, "passed": not failed})
    else:
        print_facts(_for_people(facts))
        print_table(
            ("self-test", "on", "result"),
            ((c.name, c.on, "ok" if c.passed else f"FAILED: {c.problem}") for c in checks),
        )
    if failed:
        first = failed[0]
        print_error(
            f"{len(failed)} of {len(checks)} self-tests failed, the first: "
            f"{first.name} on {first.on}: {first.problem}",
            "take no part in a federation with this machine; VEILSUM_ISA=base avoids the "
            "faster kernels if only those fail",
        )
        raise typer.Exit(FAILED)


def _facts() -> dict[str, Any]:
    from veilsum import _native
    from veilsum.devices import backends

    built, devices, reason = _native.cuda_status()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "compiler": _native.compiler(),
        "backends": [{"name": b.name, "detail": b.detail} for b in backends()],
        "instruction_sets": list(_native.supported_isas()),
        "active_instruction_set": _native.active_isa(),
        "aes": list(_native.supported_aes()),
        "active_aes": _native.active_aes(),
        "cuda": {"built": built, "devices": list(devices), "reason": reason},
    }


def _for_people(facts: dict[str, Any]) -> list[tuple[str, object]]:
    cuda = facts["cuda"]
    lines: list[tuple[str, object]] = [
        ("veilsum", facts["version"]),
        ("python", facts["python"]),
        ("compiler", facts["compiler"]),
    ]
    lines += [(f"backend {b['name']}", b["detail"]) for b in facts["backends"]]
    lines.append(("instruction sets", ", ".join(facts["instruction_sets"])))
    lines.append(("AES", ", ".join(facts["aes"])))
    lines.append(("cuda in this build", "yes" if cuda["built"] else "no"))
    lines.append(("cuda devices", ", ".join(cuda["devices"]) or f"none: {cuda['reason']}"))
    return lines
