"""A site process: dials the coordinator, runs the site's core and its training code."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace

from veilsum._native import Secret
from veilsum._version import __version__
from veilsum.devices import available_threads, require_backend
from veilsum.errors import ConfigError, VeilsumError
from veilsum.pki.identity import Identity
from veilsum.pki.roster_file import load_roster
from veilsum.roster import Roster
from veilsum.secagg.ledger import Ledger
from veilsum.selftest import require_working
from veilsum.site.session import SiteCore
from veilsum.site.trainer import Trainer
from veilsum.transport.client import Connection
from veilsum.transport.egress_file import EgressFile, open_egress
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.ledger_file import open_ledger
from veilsum.transport.logs import Log, start_logging
from veilsum.transport.outgoing import Outgoing
from veilsum.transport.process import harden_process, stop_signals, versions
from veilsum.transport.settings import SiteSettings, tls_files
from veilsum.transport.site_runner import Connect, SiteRunner
from veilsum.transport.tls import load_signing_key, load_tls_identity
from veilsum.transport.tls_reload import ClientTls
from veilsum.transport.training import load_trainer

_SEED_BYTES = 32


def run_site(
    settings: SiteSettings, *, trainer: Trainer | None = None, connect: Connect = Connection
) -> None:
    """Takes part in rounds until SIGINT or SIGTERM.

    Args:
        trainer: instead of the one that the settings name, for embedding.
        connect: makes the connection, for embedding.

    Raises:
        ConfigError: the settings cannot work, or the coordinator does not want this site.
        LedgerError: a ledger is damaged or cannot be written, or the vote ledger was copied or
            restored, or knows a later roster.
        DeviceError: there is no device such as `backend` names, or a self-test failed.
    """
    harden_process()
    start_logging(settings.log)
    if trainer is None:
        trainer = load_trainer(settings.trainer, settings.trainer_settings)
    asyncio.run(_until_stopped(settings, trainer, connect))


async def _until_stopped(settings: SiteSettings, trainer: Trainer, connect: Connect) -> None:
    stop = asyncio.Event()
    with stop_signals(stop):
        await serve_site(settings, trainer, stop=stop, connect=connect)


async def serve_site(
    settings: SiteSettings, trainer: Trainer, *, stop: asyncio.Event, connect: Connect = Connection
) -> None:
    """Takes part in rounds until `stop` is set. Within a running loop; see run_site.

    Raises:
        ConfigError: as run_site.
        DeviceError: as run_site.
    """
    harden_process()
    require_working(require_backend(settings.backend))
    with ExitStack() as files:
        await _serve(settings, trainer, open_kept(settings, files), stop, connect)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a site has on its own disk."""

    roster: Roster
    ledger: Ledger | None
    egress: EgressFile | None


def open_kept(settings: SiteSettings, files: ExitStack) -> Kept:
    """Opens what a site has on its own disk, until `files` is closed.

    Raises:
        ConfigError, LedgerError: as run_site.
    """
    ledger = None
    if settings.ledger is not None:
        ledger = files.enter_context(closing(open_ledger(settings.ledger))).ledger()
    roster = load_roster(
        settings.roster, previous=settings.previous_roster, pin=settings.roster_hash
    )
    if ledger is not None:
        ledger.agree_to(roster)
    egress = None
    if settings.egress is not None:
        egress = open_egress(settings.egress, roster.consortium, settings.site)
        files.enter_context(closing(egress))
    return Kept(roster, ledger, egress)


def make_core(settings: SiteSettings, kept: Kept, outgoing: Outgoing) -> SiteCore:
    """The site's side of rounds, whatever carries its messages.

    Raises:
        ConfigError: the key is not the one the roster lists for this site.
        DeviceError: there is no device such as `backend` names.
    """
    return SiteCore(
        settings.site,
        load_signing_key(settings.signing_key),
        kept.roster,
        settings.policy,
        settings.bounds,
        Secret.from_os,
        _rounding_seed(settings),
        kept.ledger,
        threads=settings.threads or available_threads(),
        backend=require_backend(settings.backend),
        egress=outgoing.summary,
    )


async def _serve(
    settings: SiteSettings, trainer: Trainer, kept: Kept, stop: asyncio.Event, connect: Connect
) -> None:
    log = Log("site", site=settings.site)
    outgoing = Outgoing(kept.egress, log)
    endpoint = replace(make_endpoint(settings, kept.roster), on_sent=outgoing.leaves)
    core = make_core(settings, kept, outgoing)
    log.info("starting", coordinator=settings.coordinator, trainer=settings.trainer, **versions())
    runner = SiteRunner(core, trainer, settings, outgoing, log)
    serving = asyncio.create_task(runner.serve(endpoint, connect))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        await runner.say_goodbye()
    finally:
        for task in (serving, stopping):
            task.cancel()
        with suppress(asyncio.CancelledError, VeilsumError):
            await serving
        runner.close()
        log.info("stopped")


def make_endpoint(settings: SiteSettings, roster: Roster) -> Endpoint:
    """Where and as whom a site calls.

    Raises:
        ConfigError: the files do not fit the site's name or its roster.
    """
    roster.signing_key(settings.site)  # is the site a member at all?
    identity = Identity(roster.consortium, "site", settings.site)
    files = tls_files(settings)
    if files is None:
        return Endpoint(settings.coordinator, identity, None, roster, __version__)
    tls = load_tls_identity(*files, "site")
    if tls.identity != identity:
        raise ConfigError(
            f"the certificate {settings.tls_certificate} is for {tls.identity.uri}, this site is "
            f"{identity.uri}"
        )
    return Endpoint(settings.coordinator, identity, ClientTls(files, tls), roster, __version__)


def _rounding_seed(settings: SiteSettings) -> Secret:
    if settings.rounding_seed is None:
        return Secret.from_os(_SEED_BYTES)
    return Secret.from_bytes(bytes.fromhex(settings.rounding_seed))
