"""`veilsum run`: what operators do with runs on a coordinator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veilsum.cli.exits import FAILED
from veilsum.cli.output import (
    JsonOption,
    print_facts,
    print_json,
    print_line,
    print_table,
    size_text,
)
from veilsum.cli.watching import RunView, event_document
from veilsum.errors import ConfigError

if TYPE_CHECKING:
    from veilsum.control import RoundId, RoundRecord, RunSpec, RunStatus
    from veilsum.transport.operator import OperatorClient

app = typer.Typer(
    help="Submit, look at, watch and stop runs. Needs an operator's certificate.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_CoordinatorOption = Annotated[
    str, typer.Option("--coordinator", envvar="VEILSUM_COORDINATOR", help="host:port to dial.")
]
_IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        envvar="VEILSUM_IDENTITY",
        help="The operator's folder, as `veilsum pki issue operator` made it.",
    ),
]
_InsecureOption = Annotated[
    str,
    typer.Option(
        "--insecure", metavar="CONSORTIUM", help="No TLS, with a coordinator on this machine only."
    ),
]
_RunArgument = Annotated[str, typer.Argument(metavar="[RUN]", help="The run (default: newest).")]


@app.command("submit")
def submit(
    file: Annotated[Path, typer.Argument(metavar="RUN.TOML", help="What to run.")],
    coordinator: _CoordinatorOption,
    identity: _IdentityOption = None,
    insecure: _InsecureOption = "",
    as_json: JsonOption = False,
) -> None:
    """Start a run and print its id.

    \b
    Example:
      veilsum run submit run.toml --coordinator localhost:7443 --identity pki/operator-anna
    """
    from veilsum.cli.config import load_run

    wanted = load_run(file)
    with _connect(coordinator, identity, insecure) as client:
        status = client.submit(wanted.spec, _model(wanted.model, wanted.model_file))
    if as_json:
        print_json({"run_id": status.run_id, "state": status.state})
    else:
        print_line(status.run_id)


@app.command("list")
def list_runs(
    coordinator: _CoordinatorOption,
    identity: _IdentityOption = None,
    insecure: _InsecureOption = "",
    as_json: JsonOption = False,
) -> None:
    """List all runs of a coordinator, newest first.

    \b
    Example:
      veilsum run list --coordinator localhost:7443 --identity pki/operator-anna
    """
    with _connect(coordinator, identity, insecure) as client:
        runs = client.runs()
    if as_json:
        print_json({"runs": [run_document(run) for run in runs]})
        return
    print_table(
        ("run", "task", "state", "round", "reason"),
        (
            (run.run_id, run.spec.task_id, run.state, _rounds_text(run), run.reason or "-")
            for run in runs
        ),
    )


@app.command("show")
def show(
    coordinator: _CoordinatorOption,
    run: _RunArgument = "",
    identity: _IdentityOption = None,
    insecure: _InsecureOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show one run with its rounds: who was in each sum, who was not and why, its digest.

    \b
    Example:
      veilsum run show --coordinator localhost:7443 --identity pki/operator-anna
    """
    with _connect(coordinator, identity, insecure) as client:
        status = client.get(run or _newest(client))
    if as_json:
        print_json(run_document(status))
    else:
        _print_run(status)


@app.command("watch")
def watch(
    coordinator: _CoordinatorOption,
    run: _RunArgument = "",
    identity: _IdentityOption = None,
    insecure: _InsecureOption = "",
    after: Annotated[
        int, typer.Option(min=0, help="Number of the last event that is known already.")
    ] = 0,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to try again while nobody answers.")
    ] = 3600.0,
    as_json: JsonOption = False,
) -> None:
    """Follow a run until it ends. Exits with 1 if it was aborted.

    Shows what has happened so far first, so it may be started at any time. Where the connection
    breaks or the coordinator is started again, it goes on after the last event that it had: with
    --json each has a number, and none is lost or comes twice.

    \b
    Example:
      veilsum run watch --coordinator localhost:7443 --identity pki/operator-anna
    """
    with _connect(coordinator, identity, insecure) as client:
        run_id = run or _newest(client)
        with RunView(silent=as_json) as view:
            for event in client.follow(run_id, after=after, patience_s=patience, lost=view.lost):
                if as_json:
                    print_json(event_document(event))
                view.show(event)
        status = client.get(run_id)
    if not as_json:
        _print_run(status)
    if status.state == "aborted":
        raise typer.Exit(FAILED)


@app.command("abort")
def abort(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run to stop.")],
    coordinator: _CoordinatorOption,
    reason: Annotated[str, typer.Option(help="Told to the sites and kept.")] = "",
    identity: _IdentityOption = None,
    insecure: _InsecureOption = "",
    as_json: JsonOption = False,
) -> None:
    """Stop a run; one that is over stays as it is.

    \b
    Example:
      veilsum run abort 20260101-120000-abcdef --reason "wrong learning rate"
    """
    with _connect(coordinator, identity, insecure) as client:
        status = client.abort(run, reason)
    if as_json:
        print_json({"run_id": status.run_id, "state": status.state, "reason": status.reason})
    else:
        print_line(f"{status.run_id} is {status.state}")


@app.command("prune")
def prune(
    coordinator: _CoordinatorOption,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Those that ended more than so many days ago.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, help="All but so many that ended last.")
    ] = None,
    proofs: Annotated[
        bool, typer.Option(help="Also their receipts, evidence and links of results.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say which.")] = False,
    identity: _IdentityOption = None,
    insecure: _InsecureOption = "",
    as_json: JsonOption = False,
) -> None:
    """Forget runs that are over: their rounds, events and models.

    Receipts, evidence and links, which prove things to others, stay unless --proofs is given. With
    both --older-than and --keep a run goes that meets one of them.

    \b
    Example:
      veilsum run prune --older-than 90 --coordinator localhost:7443 --identity pki/operator-anna
    """
    from veilsum.transport.wire_requests import Pruning

    if older_than is None and keep is None:
        raise typer.BadParameter("--older-than or --keep must say which runs")
    seconds = None if older_than is None else older_than * 86_400
    with _connect(coordinator, identity, insecure) as client:
        pruned = client.prune(Pruning(seconds, keep, proofs, dry_run))
    if as_json:
        print_json({"runs": [dataclasses.asdict(run) for run in pruned], "dry_run": dry_run})
        return
    print_table(
        ("run", "state", "size"),
        ((run.run_id, run.state, size_text(run.size_bytes)) for run in pruned),
    )


def run_document(status: RunStatus) -> dict[str, Any]:
    """A run as --json prints it: the fields of RunStatus."""
    return dataclasses.asdict(status)


def _connect(coordinator: str, identity: Path | None, consortium: str) -> OperatorClient:
    from veilsum.transport.operator import OperatorClient
    from veilsum.transport.settings import OperatorSettings

    if consortium:
        return OperatorClient(
            OperatorSettings(coordinator=coordinator, insecure=True, consortium=consortium)
        )
    if identity is None:
        raise typer.BadParameter(
            "--identity is needed: the folder of an operator's certificate "
            "(`veilsum pki issue operator NAME` makes one)"
        )
    return OperatorClient(
        OperatorSettings(
            coordinator=coordinator,
            ca=identity / "ca.pem",
            tls_certificate=identity / "tls.pem",
            tls_key=identity / "tls.key",
        )
    )


def _model(file: Path | None, name: str | None) -> bytes | str:
    if file is None:
        return name or ""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the model {file}: {error.strerror}") from error


def _newest(client: OperatorClient) -> str:
    runs = client.runs()
    if not runs:
        raise ConfigError(
            "there is no run at this coordinator yet", hint="start one with `veilsum run submit`"
        )
    return runs[0].run_id


def _rounds_text(run: RunStatus) -> str:
    return f"{run.current_round} of {run.spec.rounds}"


def _print_run(status: RunStatus) -> None:
    facts = [
        ("run", status.run_id),
        ("task", status.spec.task_id),
        ("kind", _kind_text(status.spec)),
        ("state", f"{status.state}: {status.reason}" if status.reason else status.state),
        ("round", _rounds_text(status)),
    ]
    if status.phase:
        facts.append(("phase", status.phase))
    if status.sites_waiting:
        facts.append(("waiting for", ", ".join(status.sites_waiting)))
    print_facts(facts)
    if status.rounds:
        print_table(
            ("round", "sites", "weight", "received", "seconds", "metrics", "digest"),
            [_round_row(record, status.spec) for record in status.rounds],
        )
    for record in status.rounds:
        for site, reason in record.dropped.items():
            print_line(f"round {_round_text(record.round)}: {site} {reason}")
        for site in record.late:
            print_line(f"round {_round_text(record.round)}: {site} delivered for the round before")


def _round_text(round_id: RoundId) -> str:
    again = f", attempt {round_id.attempt + 1}" if round_id.attempt else ""
    return f"{round_id.number}{again}"


def _kind_text(spec: RunSpec) -> str:
    if spec.masked:
        return "masked"
    buffered = f", {spec.buffer_size} updates a step" if spec.buffer_size else ""
    return f"plain, {spec.codec}{buffered}"


def _weight_text(record: RoundRecord, spec: RunSpec) -> str:
    if not spec.buffer_size:
        return str(record.total_weight)
    return f"{record.total_weight / 2**spec.buffering.fraction_bits:.1f}"


def _round_row(record: RoundRecord, spec: RunSpec) -> tuple[object, ...]:
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
    return (
        _round_text(record.round),
        len(record.sites),
        _weight_text(record, spec),
        size_text(sum(record.bytes_in.values())),
        f"{sum(record.seconds.values()):.1f}",
        metrics or "-",
        record.digest[:16] if record.completed else f"aborted: {record.reason}",
    )
