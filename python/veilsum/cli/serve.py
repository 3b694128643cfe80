"""`veilsum coordinator` and `veilsum site`: the two long-running processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilsum.cli.output import JsonOption, print_json, print_line

_ConfigOption = Annotated[Path, typer.Option("--config", help="TOML file with the settings.")]
_InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="No TLS. On a loopback address only, to try things out.")
]


def coordinator(
    config: _ConfigOption,
    insecure: _InsecureOption = False,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby",
            help="While another coordinator uses the state directory, wait and then take over.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve sites and operators until stopped by Ctrl-C or SIGTERM.

    Prints one line once it can be connected to; its log goes to stderr. Told to stop, it lets
    uploads under way finish (drain_s); told twice, it stops at once. At SIGHUP it reads its
    certificate and the list of revoked ones again.

    \b
    Example:
      veilsum coordinator --config coordinator.toml
      veilsum coordinator --config coordinator.toml --standby
    """
    from veilsum.cli.config import load_coordinator
    from veilsum.transport.coordinator_app import run_coordinator
    from veilsum.transport.settings import split_address

    settings = load_coordinator(config, insecure=insecure)
    host, _ = split_address(settings.listen, "listen", lowest_port=0)

    def ready(port: int) -> None:
        if as_json:
            print_json({"event": "serving", "host": host, "port": port})
        else:
            print_line(f"serving on {host}:{port}, state in {settings.state_dir}")

    run_coordinator(settings, ready=ready, standby=standby)


def site(
    config: _ConfigOption,
    insecure: _InsecureOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run one site until stopped by Ctrl-C or SIGTERM. It dials out only.

    Keeps trying while the coordinator cannot be reached; its log goes to stderr.

    \b
    Example:
      veilsum site --config site.toml
    """
    from veilsum.cli.config import load_site
    from veilsum.transport.site_app import run_site

    settings = load_site(config, insecure=insecure)
    started = {"event": "started", "site": settings.site, "coordinator": settings.coordinator}
    if as_json:
        print_json(started)
    else:
        print_line(f"site {settings.site}, coordinator {settings.coordinator}")
    run_site(settings)


def flower_site(
    config: _ConfigOption,
    socket: Annotated[
        Path, typer.Option("--socket", help="Where ClientApps of this user reach it.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Keep the secrets of one site's masked rounds in Flower, until Ctrl-C or SIGTERM.

    Runs beside a SuperNode, whose ClientApps have secagg_mod and find it by
    --node-config 'veilsum-keeper="PATH"'. Coordinator, trainer and TLS files of the settings are
    not used: Flower carries the messages, and the ClientApp trains.

    \b
    Example:
      veilsum flower-site --config site.toml --socket /run/user/1000/veilsum/keeper.sock
    """
    from veilsum.cli.config import load_site
    from veilsum.integrations.flower.secure_socket import run_keeper

    settings = load_site(config)

    def ready() -> None:
        if as_json:
            print_json({"event": "serving", "site": settings.site, "socket": str(socket)})
        else:
            print_line(f"site {settings.site}, keeper at {socket}")

    run_keeper(settings, socket, ready)
