"""`veilsum`: which commands there are, and how every one of them ends.

Exit codes: 0 done, 1 failed, 2 the command line or a configuration file cannot be used,
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from veilsum._version import __version__
from veilsum.cli import backup, bench, demo, doctor, inspect, ledger, pki, runs, serve, verify
from veilsum.cli.exits import FAILED, INTERRUPTED, USAGE, SettingsError
from veilsum.cli.output import print_error, print_line
from veilsum.errors import VeilsumError

# Typer has its own copy of click in some versions and depends on it in others; the class of
# all mistakes on the command line is the parent of this one in both.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="veilsum",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("coordinator")(serve.coordinator)
app.command("site")(serve.site)
app.command("flower-site")(serve.flower_site)
app.command("backup")(backup.backup)
app.add_typer(pki.app, name="pki")
app.add_typer(runs.app, name="run")
app.add_typer(ledger.app, name="ledger")
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)
app.command("bench")(bench.bench)


def _show_version(wanted: bool) -> None:
    if wanted:
        print_line(f"veilsum {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Exact, masked sums of model updates for federated learning."""


def run() -> None:
    """Entry point: runs the command line and ends the process with its exit code."""
    sys.exit(exit_code(sys.argv[1:]))


def exit_code(arguments: list[str]) -> int:
    """Runs one command line; every way in which a command can end is here."""
    try:
        answer = app(args=arguments, prog_name="veilsum", standalone_mode=False)
        return answer if isinstance(answer, int) else 0
    except _UsageError as error:
        _explain(error)
        return USAGE
    except SettingsError as error:
        print_error(str(error), error.hint)
        return USAGE
    except VeilsumError as error:
        print_error(str(error), error.hint)
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED  # whoever pressed the keys knows
    except BrokenPipeError:
        # Whoever read our output has left (`| head`). Python would complain once more when
        # it flushes stdout at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _explain(error: Exception) -> None:
    message: str = error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)  # noqa: T201  the help itself is the explanation
        return
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "veilsum"
    text = message[:1].lower() + message[1:].rstrip(".")
    print_error(text, f"`{command} --help` shows how it is used")
