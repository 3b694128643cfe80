"""`veilsum verify`: whether a sum is the sum of the updates, from a transcript alone."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veilsum.cli.output import JsonOption, print_facts, print_json
from veilsum.errors import ConfigError, DecodeError

if TYPE_CHECKING:
    from veilsum.roster import Roster
    from veilsum.secagg import SecureResult
    from veilsum.secagg.transcript_file import Transcript


def verify(
    file: Annotated[Path, typer.Argument(help="Transcript of a round.")],
    roster: Annotated[
        Path | None, typer.Option("--roster", help="The roster that the round was held with.")
    ] = None,
    previous: Annotated[
        Path | None, typer.Option("--previous", help="The roster before it, if it was not first.")
    ] = None,
    tiles: Annotated[
        str,
        typer.Option(
            "--tiles",
            help="Of how many chunks of each stream the sum is computed again: a number or 'all'.",
        ),
    ] = "64",
    backend: Annotated[
        str, typer.Option("--backend", help="What sums with --tiles all: cpu or cuda:0.")
    ] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Verify a transcript, offline and without a key.

    Checks every signature, the chain of hashes, the votes, the seeds against what was
    advertised, the sum and its mean against what the coordinator signed, and computes
    chunks of the sum again from the updates, which stay masked. Ends with 1 at the first
    chunk that is wrong. Without --roster it shows only that the transcript agrees with
    itself: compare the roster's hash with the one that was pinned.

    \b
    Example:
      veilsum verify round-7.vst --roster roster.json --tiles all
    """
    from veilsum._native import Secret
    from veilsum.devices import available_threads, require_backend
    from veilsum.pki.roster_file import load_roster
    from veilsum.secagg.transcript_file import Transcript
    from veilsum.secagg.verifying import Engine
    from veilsum.secagg.verifying import verify as verify_sum

    per_stream = _per_stream(tiles)
    if backend != "cpu" and per_stream is not None:
        raise typer.BadParameter("a device sums all chunks: add --tiles all")
    trusted: Roster | None = None if roster is None else load_roster(roster, previous=previous)
    engine = Engine(
        bytes(memoryview(Secret.from_os(32))), available_threads(), require_backend(backend)
    )
    transcript = Transcript(_mapped(file), roster=trusted)
    result = verify_sum(transcript, engine, per_stream=per_stream)
    facts = _facts(file, transcript, result)
    facts["roster_given"] = trusted is not None
    facts |= _checked(transcript, per_stream)
    if as_json:
        print_json({"event": "verified", **facts})
    else:
        print_facts((name.replace("_", " "), _text(value)) for name, value in facts.items())


def _per_stream(tiles: str) -> int | None:
    if tiles == "all":
        return None
    if not tiles.isdecimal() or not 1 <= int(tiles) < 2**31:
        raise typer.BadParameter("expected a number from 1 on, or 'all'", param_hint="--tiles")
    return int(tiles)


def _mapped(file: Path) -> mmap.mmap:
    try:
        with file.open("rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise DecodeError(f"{file} is empty") from error


def _facts(file: Path, transcript: Transcript, result: SecureResult) -> dict[str, Any]:
    return {
        "file": str(file),
        "digest": result.digest,
        "total_weight": result.total_weight,
        **transcript_facts(transcript),
    }


def transcript_facts(transcript: Transcript) -> dict[str, Any]:
    """What a transcript is of; its messages are signed, its sum need not be right."""
    plan, certified = transcript.plan, transcript.certified
    return {
        "consortium": plan.roster.consortium,
        "roster": plan.roster.hash.hex(),
        "epoch": plan.roster.epoch,
        "task": plan.task_id,
        "run": plan.run_id,
        "round": plan.round_number,
        "attempt": plan.attempt,
        "sites": list(certified.survivors),
        "dropped": list(certified.dropouts),
        "votes": f"{len(certified.voters)} of {plan.vote_quorum} needed",
        "model": transcript.result.model_hash.hex(),
    }


def _checked(transcript: Transcript, per_stream: int | None) -> dict[str, Any]:
    spec = transcript.plan.ring
    counts = [spec.chunk_count(stream) for stream in spec.streams]
    checked = sum(counts if per_stream is None else (min(per_stream, one) for one in counts))
    return {"chunks": sum(counts), "chunks_checked": checked}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
