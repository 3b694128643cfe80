"""Whole attacks, as a coordinator that lies and sites that help it would mount them.

Each is carried to the point where it would show one site's update; what stops it is
asserted, and where a site has waived that protection, that the attack then succeeds.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from support.federation import counting_secrets, rounding_seed
from support.secagg import (
    NAMES,
    ZERO_HASH,
    Federation,
    consortium,
    make_plan,
    read,
    seal,
    signing_key,
    small_arrays,
)
from support.unmasking import pair_masks, read_update, rebuilt
from veilsum import secagg
from veilsum._native import Secret
from veilsum.control import (
    Decline,
    ProtocolMessage,
    RoundId,
    RoundOpened,
    TaskSettings,
    Welcome,
    task_hash,
)
from veilsum.errors import ConfigError, LedgerError
from veilsum.model import ModelLayout, result_digest
from veilsum.pki.identity import Identity
from veilsum.secagg import keys
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.keys import BOX_BYTES
from veilsum.secagg.messages import (
    RelayedDeal,
    SealedShare,
    ShareDeal,
    ShareRelay,
    SurvivorCertificate,
    SurvivorProposal,
    SurvivorVote,
    UnmaskShares,
)
from veilsum.secagg.payload import COORDINATOR
from veilsum.secagg.phases import Dealers
from veilsum.secagg.transcript import survivors_transcript
from veilsum.secagg.upload import encode_upload
from veilsum.secagg.wire import MAX_NAME_BYTES, MAX_SITES
from veilsum.site.bounds import TaskBounds
from veilsum.site.effects import FetchModel, SendToCoordinator, SiteEffect, Upload
from veilsum.site.events import CoordinatorSent, Disconnected, ModelFetched, SiteEvent, TrainingDone
from veilsum.site.session import SiteCore
from veilsum.site.trainer import EvaluationResult, TrainingResult
from veilsum.transport import coordinator_app, site_runner
from veilsum.transport.client import Connection, Unreachable
from veilsum.transport.endpoint import Endpoint
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import Outgoing
from veilsum.transport.server import FEDERATION
from veilsum.transport.settings import RELAY_LIMIT, CoordinatorSettings, SiteSettings
from veilsum.transport.wire import decode_to_site, encode_to_site

VICTIM, KYOTO, LYON, OSLO, HELPER = NAMES[:5]


# --- two survivor sets with one helper ----------------------------------------------------


class SplitVote:
    """Five sites, one of which helps. The coordinator shows one half of the honest sites that
    the victim survived and the other half that it did not: the first half returns shares of
    the victim's self seed, the second of its mask seed, and the helper has both."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._plan = federation.plan
        self._headers: dict[str, bytes] = {}

    def run(self) -> np.ndarray:
        """The victim's update as the coordinator reads it. Up to M5 everyone is honest."""
        uploads = self._honest_until_the_inputs()
        dealers = self._federation.coordinator._phase.dealers
        helper = self._federation.sites[HELPER]._phase.held
        with_victim = self._unmask([VICTIM, KYOTO, LYON], [VICTIM, KYOTO], dealers)
        without = self._unmask([KYOTO, LYON, OSLO], [LYON, OSLO], dealers)
        self_seed = self._rebuilt(with_victim, helper.self_shares, dealers, "self_shares")
        mask_seed = self._rebuilt(without, helper.mask_shares, dealers, "mask_shares")
        return self._read(uploads[VICTIM], dealers, self_seed, mask_seed)

    def _honest_until_the_inputs(self) -> dict[str, secagg.UploadInput]:
        federation, uploads = self._federation, {}
        while federation.queue:
            origin, to, message = federation.queue.popleft()
            if isinstance(message, secagg.UploadInput):
                uploads[origin] = message
                self._headers[origin] = Envelope.from_bytes(message.header).payload_digest
            else:
                federation.deliver(origin, to, message)
        return uploads

    def _unmask(
        self, survivors: Sequence[str], told: Sequence[str], dealers: Dealers
    ) -> dict[str, UnmaskShares]:
        """What two honest sites answer to this survivor set."""
        inputs = {site: self._headers[site] for site in survivors}
        context, t3 = self._plan.context, survivors_transcript(dealers.t2, inputs)
        proposal = SurvivorProposal(context, COORDINATOR, dealers.t2, tuple(inputs.items()))
        votes = {site: self._ask(site, seal(proposal)) for site in told}
        votes[HELPER] = seal(SurvivorVote(context, HELPER, t3))
        envelopes = tuple(Envelope.from_bytes(votes[site]) for site in sorted(votes))
        certificate = seal(SurvivorCertificate(context, COORDINATOR, t3, envelopes))
        return {site: read(UnmaskShares, self._ask(site, certificate)) for site in told}

    def _ask(self, site: str, message: bytes) -> bytes:
        first = self._federation.sites[site].handle(message)[0]
        assert isinstance(first, secagg.Send), first
        return first.message

    def _rebuilt(
        self,
        answers: Mapping[str, UnmaskShares],
        helper: Mapping[str, Secret],
        dealers: Dealers,
        kind: str,
    ) -> Secret:
        shares: dict[str, Secret | bytes] = {
            site: dict(getattr(answer, kind))[VICTIM] for site, answer in answers.items()
        }
        shares[HELPER] = helper[VICTIM]
        return rebuilt(dealers.members, shares)

    def _read(
        self, upload: secagg.UploadInput, dealers: Dealers, self_seed: Secret, mask_seed: Secret
    ) -> np.ndarray:
        masks, signs = pair_masks(dealers, self._plan.context, VICTIM, mask_seed)
        masks.append(keys.self_mask_key(dealers.t2, self_seed, VICTIM))
        return read_update(self._plan, upload.chunks, masks, [*signs, -1])


def test_a_helper_splits_the_vote_where_sites_accept_a_plan_that_assumes_none():
    """Why a site must insist on c: the plan comes from the coordinator."""
    plan = make_plan(5, colluders=0)
    waived = dict.fromkeys(plan.cohort, secagg.LocalPolicy(min_colluders=0))
    federation = Federation(plan, policies=waived)

    seen = SplitVote(federation).run()

    np.testing.assert_allclose(seen, federation.contributions[VICTIM].update["weight"], atol=1e-3)


@pytest.mark.parametrize(("sites", "colluders", "demanded"), [(5, 0, 2), (5, 1, 2), (8, 1, 2)])
def test_a_site_insists_on_a_third_of_the_roster_unless_it_says_otherwise(
    sites, colluders, demanded
):
    plan = make_plan(sites, colluders=colluders)
    federation = Federation(plan, policies={VICTIM: secagg.LocalPolicy()})

    (effect,) = federation.sites[VICTIM].handle(federation.hold("round-open", to=VICTIM))

    assert effect == secagg.Withdraw(
        "policy", f"colluders is {colluders}, this site demands {demanded}"
    )


def test_a_victim_is_not_invited_together_with_two_helpers_of_the_coordinator():
    """All else about such a round is in order: three sites, one of them assumed a helper, and
    every site's vote needed. But both others are helpers, and subtract themselves."""
    plan = make_plan(3, colluders=1)
    federation = Federation(plan, policies={VICTIM: secagg.LocalPolicy()})

    (effect,) = federation.sites[VICTIM].handle(federation.hold("round-open", to=VICTIM))

    assert effect == secagg.Withdraw("policy", "colluders is 1, this site demands 2")


# --- the same round again, after its sum --------------------------------------------------


TASK = TaskSettings()
MODEL = small_arrays(9)
LAYOUT = ModelLayout.from_arrays(MODEL)
MODEL_HASH = bytes.fromhex(result_digest(LAYOUT, MODEL))
TRAINED = {name: array + array.dtype.type(1) for name, array in MODEL.items()}


def core_of_the_victim() -> SiteCore:
    return SiteCore(
        VICTIM,
        signing_key(VICTIM),
        consortium().roster,
        secagg.LocalPolicy(min_colluders=1),  # the rounds below invite four sites of eight
        TaskBounds(),
        counting_secrets(VICTIM),
        rounding_seed(VICTIM),
        secagg.Ledger.in_memory(Secret.from_os),
    )


class Attempt:
    """One attempt at round 1 with the victim's core among ordinary sessions."""

    def __init__(self, core: SiteCore, attempt: int, cohort: tuple[str, ...] = NAMES[:4]) -> None:
        self.core = core
        self.round = RoundId("run", 1, attempt)
        self.plan = make_plan(
            len(cohort),
            cohort=cohort,
            layout=LAYOUT,
            run_id="run",
            attempt=attempt,
            model_hash=MODEL_HASH,
            task_hash=task_hash(TASK),
            clip=2.0,
        )
        self.federation = Federation(self.plan)
        self.effects: list[SiteEffect] = []

    def invite(self) -> list[SiteEffect]:
        message = self.federation.hold("round-open", to=VICTIM)
        opened = RoundOpened(self.round, self.plan.task_id, TASK, message, None)
        return self._to_core(CoordinatorSent(opened))

    def until_the_upload(self) -> Upload:
        self.until_nothing_is_under_way()
        (upload,) = [effect for effect in self.effects if isinstance(effect, Upload)]
        return upload

    def until_nothing_is_under_way(self) -> None:
        if FetchModel(self.round) in self.effects:  # a core that has the model still asks for none
            self._to_core(ModelFetched(self.round, LAYOUT, MODEL))
        result = TrainingResult(TRAINED, 10, {})
        self._to_core(TrainingDone(self.round, result, EvaluationResult({}, 1)))
        while self.federation.queue:
            origin, to, message = self.federation.queue.popleft()
            if to == VICTIM:
                self._to_core(CoordinatorSent(ProtocolMessage(self.round, message)))
            else:
                self.federation.deliver(origin, to, message)

    def _to_core(self, event: SiteEvent) -> list[SiteEffect]:
        effects = self.core.handle(event)
        self.effects += effects
        for effect in effects:
            if isinstance(effect, SendToCoordinator) and isinstance(
                effect.message, ProtocolMessage
            ):
                reply = self.federation.coordinator.handle(VICTIM, effect.message.payload)
                self.federation.from_coordinator(reply)
        return effects


def declined(effects: list[SiteEffect]) -> list[str]:
    messages = [effect.message for effect in effects if isinstance(effect, SendToCoordinator)]
    return [message.code for message in messages if isinstance(message, Decline)]


def test_an_update_that_is_out_is_not_in_another_attempt_without_some_site():
    """The sum with and the sum without a site differ by its update, to the last bit: even the
    rounding of a second attempt is that of the first. This trainer repeats itself."""
    core = core_of_the_victim()
    first = Attempt(core, 0, NAMES[:5])
    first.invite()
    first.until_the_upload()
    core.handle(Disconnected())

    second = Attempt(core, 1)
    assert not declined(second.invite())
    second.until_nothing_is_under_way()

    assert declined(second.effects) == ["spent"]
    assert not [effect for effect in second.effects if isinstance(effect, Upload)]
    assert core.phase == "idle"


def test_a_round_that_ended_before_the_update_was_out_may_be_opened_again():
    core = core_of_the_victim()
    Attempt(core, 0).invite()
    core.handle(Disconnected())

    second = Attempt(core, 1)

    assert FetchModel(second.round) in second.invite()
    second.until_the_upload()


# --- wiping while masking -----------------------------------------------------------------


def test_an_update_whose_mask_keys_were_wiped_meanwhile_never_leaves_the_session(monkeypatch):
    federation = Federation(make_plan(4))
    session = federation.sites[VICTIM]
    federation.contribute = lambda site: []
    federation.run()

    def closed_meanwhile(*args: Any, **settings: Any) -> Any:
        encoded = encode_upload(*args, **settings)
        session.close()
        return encoded

    monkeypatch.setattr("veilsum.secagg.site.encode_upload", closed_meanwhile)
    given = federation.contributions[VICTIM]
    with pytest.raises(ConfigError, match="left the round while its update was masked"):
        session.contribute(
            given.update, weight=1, metrics={}, rounding=Secret.from_bytes(bytes(32))
        )

    assert (session.phase, session.upload) == ("closed", None)


class SlowCore:
    """Takes long over a message, and notices if it is handed another event meanwhile."""

    def __init__(self) -> None:
        self.busy = threading.Event()
        self.disturbed = threading.Event()
        self.heard_twice = threading.Event()
        self.events: list[str] = []

    def handle(self, event: SiteEvent) -> list[SiteEffect]:
        if isinstance(event, CoordinatorSent):
            self.busy.set()
            self.disturbed.wait(0.3)
            self.busy.clear()
        else:
            self._notice()
        self.events.append(type(event).__name__)
        if len(self.events) == 2:
            self.heard_twice.set()
        return []

    def close(self) -> None:
        self._notice()
        self.events.append("close")

    def _notice(self) -> None:
        if self.busy.is_set():
            self.disturbed.set()


class BrokenConnection:
    """Brings one message and breaks while the core is at it. There is no other after it."""

    def __init__(self, core: SlowCore) -> None:
        self._core = core
        self._broken = False

    async def __aenter__(self) -> BrokenConnection:
        if self._broken:
            raise Unreachable("gone")
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def send(self, message: object) -> None: ...

    async def messages(self) -> AsyncIterator[Welcome]:
        yield Welcome("test", ZERO_HASH)
        await asyncio.to_thread(self._core.busy.wait)
        self._broken = True
        raise Unreachable("gone")


@pytest.mark.parametrize("stopped", [False, True])
def test_neither_a_connection_that_breaks_nor_a_stop_disturbs_a_core_that_is_masking(
    stopped: bool, tmp_path
):
    core = SlowCore()
    settings = SiteSettings(
        VICTIM, "localhost:1", tmp_path, tmp_path, "some.module:trainer", insecure=True, hold_s=0.0
    )

    async def main() -> None:
        outgoing, log = Outgoing(None, Log("site")), Log("site")
        runner = site_runner.SiteRunner(core, None, settings, outgoing, log)
        connection = BrokenConnection(core)
        serving = asyncio.create_task(runner.serve(None, lambda endpoint: connection))
        if stopped:
            await asyncio.to_thread(core.busy.wait)
        else:
            await asyncio.to_thread(core.heard_twice.wait)
        serving.cancel()
        await asyncio.wait((serving,))
        runner.close()

    asyncio.run(main())

    assert core.events == ["CoordinatorSent", *["Disconnected"] * (not stopped), "close"]
    assert not core.disturbed.is_set()


# --- the largest cohort -------------------------------------------------------------------


def test_the_largest_message_of_the_largest_round_fits_a_grpc_message():
    """Else a round of 255 sites would end at the relay, and every site's process with it."""
    name, digest, sites = "x" * MAX_NAME_BYTES, bytes(32), MAX_SITES
    deal = ShareDeal(digest, name, digest, digest)
    header = Envelope(deal.to_payload(), bytes(64), bytes(8))
    share = SealedShare(digest, digest, bytes(BOX_BYTES))
    relay = ShareRelay(digest, COORDINATOR, (RelayedDeal(header, share, (digest,) * 8),) * sites)

    message = ProtocolMessage(RoundId("r" * MAX_NAME_BYTES, 1), seal(relay))

    assert len(encode_to_site(message)) <= RELAY_LIMIT
    assert decode_to_site(encode_to_site(message)) == message


def test_a_relay_of_that_size_reaches_a_site(tmp_path):
    settings = CoordinatorSettings(tmp_path, tmp_path, tmp_path, insecure=True)
    relay = ProtocolMessage(RoundId("run", 1), bytes(6 << 20))
    roster = consortium().roster

    async def join(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await anext(aiter(requests))
        yield encode_to_site(Welcome(roster.consortium, roster.hash))
        yield encode_to_site(relay)

    async def main() -> None:
        server = grpc.aio.server(options=coordinator_app._options(settings))
        handler = grpc.stream_stream_rpc_method_handler(join)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(FEDERATION, {"Join": handler})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        identity = Identity("test", "site", VICTIM)
        endpoint = Endpoint(f"127.0.0.1:{port}", identity, None, roster, "0")
        async with Connection(endpoint) as connection:
            messages = connection.messages()
            await anext(messages)
            assert await anext(messages) == relay
        await server.stop(None)

    asyncio.run(main())


# --- a site that cannot remember ----------------------------------------------------------


def core_with(ledger: secagg.Ledger | None) -> SiteCore:
    return SiteCore(
        VICTIM,
        signing_key(VICTIM),
        consortium().roster,
        secagg.LocalPolicy(min_colluders=1),
        TaskBounds(),
        counting_secrets(VICTIM),
        rounding_seed(VICTIM),
        ledger,
    )


def test_a_core_without_a_ledger_takes_part_in_no_masked_round():
    core = core_with(None)

    assert declined(Attempt(core, 0).invite()) == ["ledger"]
    assert core.phase == "idle"


def test_a_core_whose_disk_fills_up_before_the_upload_leaves_the_round():
    def append(record: object) -> None:
        if type(record).__name__ == "Contributed":
            raise LedgerError("no space left on device")

    core = core_with(secagg.Ledger(Secret.zeros(32), append))
    attempt = Attempt(core, 0)
    attempt.invite()

    attempt.until_nothing_is_under_way()

    assert declined(attempt.effects) == ["ledger"]
    assert not any(isinstance(effect, Upload) for effect in attempt.effects)
    assert core.phase == "idle"
