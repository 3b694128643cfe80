"""What a coordinator that starts again knows of what the one before did, on a real disk.

Runners and storages are real; sites are played, and a life ends without a last word.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from support.plain_run import SITES, spec
from support.runner_lives import living, outbox_of
from support.serving import run_async
from veilsum.control import Decline, ProtocolMessage, RoundClosed, RoundId
from veilsum.coordinator.events import SiteSent
from veilsum.optimizers.spec import OptimizerSpec
from veilsum.proto.v1 import federation_pb2 as pb
from veilsum.transport import wire
from veilsum.transport.storage import DiskFailed

FIRST = RoundId("run", 1)
LATE = spec(rounds=3, quorum=3, late="next")


def model_file(state: Path, name: str = "round-1.safetensors") -> Path:
    return state / "models" / "run" / name


@pytest.mark.parametrize("opens", ["before the restart", "after it"])
def test_a_late_update_that_was_held_is_in_the_mean_after_a_restart(
    tmp_path: Path, opens: str
) -> None:
    async def main() -> None:
        async with living(tmp_path / "state") as life:
            await life.join(SITES)
            await life.submit("run", LATE)
            await life.deliver("lyon", 1)
            await life.deliver("basel", 1)
            await life.leave("lyon")
            await life.deliver("kyoto", 1)  # the next round waits for lyon
            held = await life.deliver("oslo", 1, value=7.0)
            assert not held.done()
            if opens == "before the restart":
                await life.join(["lyon"], b"2" * 16)
                await held  # counts, says the coordinator
            held.cancel()
            plans = list(life.sent)

        async with living(tmp_path / "state") as life:
            life.sent[:0] = plans
            if opens == "after it":
                held = await life.deliver("oslo", 1, value=7.0)
                assert not held.done()
                await life.join(["lyon"], b"2" * 16)
                await held
            await life.deliver("basel", 2)
            await life.deliver("kyoto", 2)
            (_, second) = life.core.status("run").rounds
            assert (second.sites, second.late) == (("basel", "kyoto", "oslo"), ("oslo",))

    run_async(main)


def test_a_late_site_hears_of_the_round_that_it_was_invited_to(tmp_path: Path) -> None:
    """Its update ended the next round, and the coordinator died before it answered."""

    async def main() -> None:
        async with living(tmp_path / "state") as life:
            await life.join(SITES)
            await life.submit("run", LATE)
            for site in SITES[:3]:
                await life.deliver(site, 1)
            for site in SITES[:2]:
                await life.deliver(site, 2)
            await life.deliver("oslo", 1)
            digests = [record.digest for record in life.core.status("run").rounds]

        async with living(tmp_path / "state") as life:
            closed = RoundClosed(FIRST, True, "", digests[0])
            assert closed in outbox_of(life, "oslo")
            second = RoundClosed(RoundId("run", 2), True, "", digests[1])
            assert second not in outbox_of(life, "oslo")
            assert second in outbox_of(life, "basel")

    run_async(main)


def test_the_run_under_way_goes_on_before_one_that_a_wrong_clock_calls_older(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with living(tmp_path / "state") as life:
            await life.join(SITES)
            await life.submit("run", spec())
            await life.submit("next", spec())
            await life.deliver("basel", 1)

        with sqlite3.connect(tmp_path / "state" / "state.db") as database:
            earlier = "UPDATE runs SET submitted = submitted - 1000 WHERE run_id = 'next'"
            database.execute(earlier)
        database.close()

        async with living(tmp_path / "state") as life:
            found = {run.run_id: run.state for run in life.core.runs()}
            assert found == {"run": "running", "next": "waiting"}
            assert "basel" not in life.core.status("run").sites_waiting

    run_async(main)


def test_who_has_lost_the_directory_replaces_no_file_in_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with living(tmp_path / "state") as life:
            await life.join(SITES)
            await life.submit("run", spec())
            for site in SITES[:-1]:
                await life.deliver(site, 1)
            (tmp_path / "state" / "lock").write_text('{"pid": 1, "host": "b", "since": 1.0}')
            model_file(tmp_path / "state").write_bytes(b"of the other")

            call = asyncio.create_task(life.deliver(SITES[-1], 1))
            assert life.running is not None
            with pytest.raises(DiskFailed, match="taken over by process 1 on b"):
                await life.running
            call.cancel()

        assert model_file(tmp_path / "state").read_bytes() == b"of the other"

    run_async(main)


def test_what_a_protocol_message_says_in_a_plain_run_is_not_written_down(tmp_path: Path) -> None:
    async def main() -> None:
        async with living(tmp_path / "state") as life:
            await life.join(SITES)
            await life.submit("run", spec())
            for number in range(3):
                await life.tell(SiteSent("oslo", ProtocolMessage(FIRST, b"m" * (1 << 20))))
                assert "oslo" not in life.core.status("run").sites_waiting
                await life.join(["oslo"], bytes([number]) * 16)
            await life.tell(SiteSent("oslo", ProtocolMessage(FIRST, b"m" * (1 << 20))))
            waiting = life.core.status("run").sites_waiting
            assert sum(len(entry.data) for entry in life.storage.log()) < 4096

        async with living(tmp_path / "state") as life:
            assert life.core.status("run").sites_waiting == waiting

    run_async(main)


@pytest.mark.parametrize("lost", ["round-1.safetensors", "optimizer-1.safetensors"])
def test_a_run_does_not_go_on_from_what_its_last_round_did_not_lead_to(
    tmp_path: Path, lost: str
) -> None:
    async def main() -> None:
        state = tmp_path / "state"
        async with living(state) as life:
            await life.join(SITES)
            await life.submit("run", spec(rounds=3, server_optimizer=OptimizerSpec("fedavgm")))
            for site in SITES:
                await life.deliver(site, 1)

        if lost.startswith("round"):
            content = model_file(state).read_bytes()
            model_file(state).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            model_file(state, lost).unlink()

        async with living(state) as life:
            (ended,) = life.storage.runs()
            expected = "its round's record says" if lost.startswith("round") else "is gone"
            assert ended.state == "aborted"
            assert expected in ended.reason

    run_async(main)


@pytest.mark.parametrize("buffer_size", [0, 2])
def test_a_coordinator_can_read_what_it_wrote_of_a_site_that_says_much(
    tmp_path: Path, buffer_size: int
) -> None:
    """What a site says may be as long as the wire lets it be; with it longer texts are made."""
    said = pb.Decline(
        round=pb.RoundId(run_id="run", number=1),
        code="c" * wire.MAX_ID_BYTES,
        reason="r" * wire.MAX_DECLINE_BYTES,
    )
    decline = wire.decode_to_coordinator(pb.SiteMessage(decline=said).SerializeToString())
    assert isinstance(decline, Decline)

    async def main() -> None:
        async with living(tmp_path / "state") as life:
            await life.join(SITES)
            await life.submit("run", spec(rounds=3, buffer_size=buffer_size))
            await life.tell(SiteSent("oslo", decline))
            for site in ("basel", "kyoto", "lyon", "quito"):
                if life.core.status("run").current_round == 1:
                    await life.deliver(site, 1)
            assert "oslo" in life.core.status("run").rounds[0].dropped
            told = [message for site, message in life.sent if site == "oslo"]
            for message in told:
                wire.decode_to_site(wire.encode_to_site(message))

        async with living(tmp_path / "state") as life:
            (found,) = life.storage.runs()
            kept = life.storage.run(found.run_id)
            assert kept is not None
            assert "r" * wire.MAX_DECLINE_BYTES in kept.rounds[0].dropped["oslo"]
            details = [event.detail for _, event in life.storage.events("run")]
            assert any("r" * wire.MAX_DECLINE_BYTES in detail for detail in details)

    run_async(main)
