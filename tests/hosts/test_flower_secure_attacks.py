"""What a network, a coordinator or a site that means ill comes to in masked rounds over Flower."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import Array, ArrayRecord, Message

from support import flower_masked
from support.consortium import make_consortium
from support.flower_grid import error_reply, flower_task
from support.flower_masked import (
    SITES,
    SPEC,
    masked_federation,
    says,
    start,
    trained,
    weight_of,
)
from support.flower_objects import UNREADABLE_REPLIES, pulled
from veilsum.control import Goodbye, RoundOpened
from veilsum.errors import ConfigError, DecodeError, LedgerError
from veilsum.integrations.flower.secure_parts import About
from veilsum.integrations.flower.secure_socket import (
    KeeperServer,
    RemoteKeeper,
    serving,
    serving_in_thread,
)
from veilsum.integrations.flower.secure_wire import (
    TO_COORDINATOR,
    TO_SITE,
    Frame,
    Part,
    Sealed,
    from_content,
    seal,
    to_content,
    unseal,
)
from veilsum.records import RoundId
from veilsum.secagg.wire import Writer
from veilsum.transport import wire
from veilsum.transport.egress_file import open_egress
from veilsum.transport.logs import Log
from veilsum.transport.outgoing import message_kind
from veilsum.transport.tls import load_signing_key

Change = Callable[[Frame], Iterable[Part] | None]
"""New parts of a frame; None leaves it as it is."""


@pytest.fixture
def federation(tmp_path: Path):
    with flower_task(), masked_federation(make_consortium(tmp_path / "c", SITES)) as found:
        yield found


def frame_of(federation, site: str, message: Message) -> Frame:
    """What a site answers."""
    key = federation.consortium.roster.signing_key(site)
    return unseal(TO_COORDINATOR, from_content(message.content), key)


def told(federation, message: Message) -> Frame:
    """What a site is told."""
    key = federation.consortium.roster.coordinator_key
    return unseal(TO_SITE, from_content(message.content), key)


def rounds_opened(federation, site: str) -> list[RoundId]:
    """Those that a site was invited to."""
    heads = [
        part.head
        for message in federation.taken.get(site, ())
        for part in told(federation, message).parts
        if part.kind == "message"
    ]
    messages = [wire.decode_to_site(head) for head in heads]
    return [message.round for message in messages if isinstance(message, RoundOpened)]


def said_by(federation, site: str) -> list[str]:
    """Kinds of all that a site has said, in order."""
    frames = [frame_of(federation, site, message) for message in federation.answered[site]]
    return [
        message_kind(wire.decode_to_coordinator(part.head)) if part.kind == "message" else part.kind
        for frame in frames
        for part in frame.parts
    ]


def test_a_site_trains_when_its_keys_and_shares_have_left_also_with_a_model_that_it_has(
    federation, monkeypatch
):
    before = []

    def noting(arrays, site, seed):
        said = said_by(federation, site)
        before.append((site, said.count("key-advert"), said.count("share-deal")))
        return trained(arrays, site, seed)

    monkeypatch.setattr(flower_masked, "trained", noting)

    start(federation.strategy(), federation.grid(), rounds=2)

    assert sorted(before) == sorted((site, n, n) for site in SITES for n in (1, 2))


@contextmanager
def changed_frames(federation, site: str, change: Change) -> Iterator[None]:
    """What a site says is changed, and signed with its own key."""
    key = load_signing_key(federation.consortium.sites[site].signing_key)

    def forge(speaker, number, message):
        if speaker != site or message.has_error():
            return message
        frame = frame_of(federation, site, message)
        parts = change(frame)
        if parts is not None:
            sealed = seal(TO_COORDINATOR, frame._replace(parts=tuple(parts)), key)
            message.content = to_content(sealed)
        return message

    federation.to_server = forge
    yield


def survivors(strategy) -> list[tuple[str, ...]]:
    return [record.sites for record in strategy.rounds]


def without(site: str) -> tuple[str, ...]:
    return tuple(one for one in SITES if one != site)


def test_what_a_site_says_after_its_goodbye_counts_for_nothing(federation):
    goodbye = Part("message", wire.encode_to_coordinator(Goodbye()))
    strategy = federation.strategy()

    def leaving(frame: Frame):
        return (goodbye, *frame.parts) if frame.number == 1 else None

    with changed_frames(federation, SITES[1], leaving):
        start(strategy, federation.grid())

    assert survivors(strategy) == [without(SITES[1])]


def test_an_update_that_a_site_sends_twice_is_in_the_sum_once(federation):
    strategy = federation.strategy()

    def twice(frame: Frame):
        uploads = [part for part in frame.parts if part.kind == "upload"]
        return (*frame.parts, *uploads) if uploads else None

    with changed_frames(federation, SITES[1], twice):
        start(strategy, federation.grid())

    (record,) = strategy.rounds
    assert record.total_weight == sum(map(weight_of, record.sites))
    assert set(record.sites) >= set(without(SITES[1]))


def test_a_site_that_changes_the_message_of_its_plan_costs_itself_only(federation):
    values = np.random.default_rng(5)
    strategy = federation.strategy()

    def damaged(frame: Frame):
        if frame.number == 0 or not frame.parts:
            return None
        part = frame.parts[-1]
        head = bytearray(part.head)
        head[int(values.integers(len(head)))] ^= 1 << int(values.integers(8))
        return (*frame.parts[:-1], part._replace(head=bytes(head)))

    with changed_frames(federation, SITES[1], damaged):
        start(strategy, federation.grid(), rounds=2)

    assert [set(sites) >= set(without(SITES[1])) for sites in survivors(strategy)] == [True] * 2


def test_a_site_that_was_not_invited_is_given_nothing_of_a_round(federation):
    spec = replace(SPEC, cohort=SITES[:4])
    strategy = federation.strategy(spec)
    given = []

    def noting(site, number, message):
        if site == SITES[4]:
            given.extend(part.kind for part in told(federation, message).parts if part.blobs)
        return message

    def asking(frame: Frame):
        opened = rounds_opened(federation, SITES[0])
        if frame.number == 0 or not opened:
            return None if frame.number == 0 else ()
        head = About(opened[-1]).to_bytes()
        return [Part(kind, head) for kind in ("want-model", "want-sum", "want-links")]

    federation.to_site = noting
    with changed_frames(federation, SITES[4], asking):
        start(strategy, federation.grid())

    assert given == []


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("hello", ValueError),
        ("key-advert", KeyError),
        ("upload", AttributeError),
        ("survivor-vote", TypeError),
    ],
)
def test_an_answer_that_flower_cannot_read_costs_its_site_the_round_and_not_the_run(
    federation, caplog, stage, error
):
    garbled = []

    def unreadable(site, number, message):
        if site == SITES[1] and stage in says(message) and not garbled:
            garbled.append(stage)
            raise error("unexpected set of children")
        return message

    federation.to_server = unreadable
    strategy = federation.strategy()

    start(strategy, federation.grid(), rounds=2)

    assert survivors(strategy) == [SITES if stage == "survivor-vote" else without(SITES[1]), SITES]
    assert "Flower cannot read its answer" in caplog.text


@pytest.mark.parametrize("kind", UNREADABLE_REPLIES)
def test_objects_that_a_superlink_takes_and_flower_cannot_read_do_not_end_the_run(federation, kind):
    garbled = []

    def unreadable(site, number, message):
        if site == SITES[1] and "upload" in says(message) and not garbled:
            garbled.append(kind)
            return pulled(kind, message)
        return message

    federation.to_server = unreadable
    strategy = federation.strategy()

    start(strategy, federation.grid(), rounds=2)

    assert survivors(strategy) == [without(SITES[1]), SITES]


def test_an_array_of_any_name_is_refused_in_few_words():
    content = to_content(Sealed(b"x", ()))
    (blobs,) = (name for name, record in content.items() if isinstance(record, ArrayRecord))
    content[blobs] = ArrayRecord({"n" * 1_000_000: Array(np.zeros(1))})

    with pytest.raises(DecodeError, match="is no blob of a veilsum frame") as refused:
        from_content(content)

    assert len(str(refused.value)) < 200


def test_what_a_node_says_of_its_error_is_one_line_of_the_log_and_not_too_long(federation, caplog):
    def failing(site, number, message):
        if site != SITES[1]:
            return message
        return error_reply(message, "it failed\nWARNING: the run is over" + "!" * 100_000)

    federation.to_server = failing

    start(federation.strategy(), federation.grid())

    said = [record.getMessage() for record in caplog.records if "it failed" in record.getMessage()]
    assert said
    assert all("\n" not in line and len(line) < 1200 for line in said)


def test_a_keeper_that_was_started_again_is_back_for_the_next_round(federation):
    strategy = federation.strategy()
    restarted = []

    def killed_once(site, number, message):
        if site == SITES[1] and number == 3 and not restarted:
            federation.start(site)
            restarted.append(site)
        return message

    federation.to_site = killed_once

    start(strategy, federation.grid(), rounds=3)

    assert survivors(strategy) == [without(SITES[1]), SITES, SITES]


def test_what_leaves_again_is_listed_again(federation):
    site = SITES[1]
    egress = federation.consortium.site_settings(site, 1).egress
    said = []

    def twice(speaker, number, message):
        if speaker == site:
            said.append(federation.call(site, message))
        return message

    federation.to_site = twice

    start(federation.strategy(), federation.grid())

    federation.stop(site)
    with closing(open_egress(egress, federation.consortium.roster.consortium, site)) as listed:
        sent = {one.kind: one.messages for one in listed.summary().sent}
    assert sent["share-deal"] == sent["masked-update"] == 2


def test_a_path_that_is_no_socket_is_left_as_it_is(tmp_path):
    file = tmp_path / "private" / "model.bin"
    file.parent.mkdir(mode=0o700)
    file.write_bytes(b"precious")

    with pytest.raises(ConfigError, match="no socket"), serving(None, file, Log("keeper")):
        pass

    assert file.read_bytes() == b"precious"


def test_the_socket_of_a_keeper_that_listens_is_not_taken_from_it(tmp_path):
    path = tmp_path / "private" / "keeper.sock"

    with serving(None, path, Log("keeper")):
        with pytest.raises(ConfigError, match="a keeper listens"), serving(None, path, Log("k")):
            pass

        assert path.is_socket()


def test_a_keeper_goes_on_after_a_fault_of_its_own(tmp_path):
    path = tmp_path / "private" / "keeper.sock"

    class Failing:
        def deliver(self, sealed):
            raise MemoryError

    with serving_in_thread(Failing(), path, Log("keeper")):
        for _ in range(2):
            with pytest.raises(ConfigError, match="its log says why"):
                RemoteKeeper(path).deliver(Sealed(b"", ()))


def test_a_keeper_goes_on_after_a_caller_that_announces_more_than_there_is_memory(tmp_path):
    path = tmp_path / "private" / "keeper.sock"
    size = 2**62
    head = Writer().text("deliver").blob(b"").integer(1, 4).integer(size, 8).bytes()

    class Echo:
        def deliver(self, sealed):
            return sealed

    with (
        ThreadPoolExecutor() as pool,
        serving(Echo(), path, Log("keeper"), most_bytes=size) as server,
    ):
        pool.submit(server.serve)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(str(path))
            line.sendall(len(head).to_bytes(8, "little") + head)
            assert line.recv(1) == b""

        answer = pool.submit(RemoteKeeper(path).deliver, Sealed(b"x", ()))

        assert answer.result(timeout=240) == Sealed(b"x", [])


def test_a_keeper_that_nobody_can_reach_any_more_says_so_instead_of_ending_well():
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as deaf:
        server = KeeperServer(None, deaf, Log("keeper"))

        with pytest.raises(OSError, match="Invalid argument"):
            server.serve()


@pytest.mark.parametrize(
    ("name", "why"), [("keeper.sock", "No such file"), ("k" * 200, "path too long")]
)
def test_where_a_site_keeps_its_socket_is_not_in_what_flower_sends(tmp_path, name, why):
    path = tmp_path / "private" / name

    with pytest.raises(ConfigError, match=why) as refused:
        RemoteKeeper(path).deliver(Sealed(b"", ()))

    assert str(path) not in str(refused.value)
    assert f"--socket {path}" in str(refused.value.hint)


def test_what_to_do_about_a_refusal_is_in_the_sites_log(federation, caplog):
    class Refusing:
        def deliver(self, sealed):
            raise ConfigError("it is refused", hint="and this helps")

    federation.keepers[SITES[1]] = Refusing()

    start(federation.strategy(), federation.grid())

    assert "veilsum: it is refused (and this helps)" in caplog.messages
    assert not [r for r in federation.answered[SITES[1]] if "helps" in r.error.reason]


def test_a_site_that_two_nodes_speak_for_takes_part_through_one_of_them(federation):
    grid = federation.grid()
    speaking = set()

    def through(node: int):
        def answer(message: Message) -> Message:
            speaking.add(node)
            return federation.call(SITES[1], message)

        return answer

    first = [node for node in grid.nodes if node == 900 + 13]
    grid.nodes.update({node: through(node) for node in (*first, 5)})
    strategy = federation.strategy()

    start(strategy, grid, rounds=2)

    assert speaking == {*first, 5}
    assert survivors(strategy)[-1] == SITES


def test_a_request_that_is_larger_than_a_site_takes_is_not_read(tmp_path):
    path = tmp_path / "private" / "keeper.sock"
    taken = []

    class Noting:
        def deliver(self, sealed):
            taken.append(sum(map(len, sealed.blobs)))
            return sealed

    with serving(Noting(), path, Log("keeper"), most_bytes=1000) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        RemoteKeeper(path).deliver(Sealed(b"", [bytes(600), bytes(400)]))
        with pytest.raises(ConfigError, match="has hung up, its log says why"):
            RemoteKeeper(path).deliver(Sealed(b"", [bytes(600), bytes(401)]))
        server.close()
        thread.join()

    assert taken == [1000]


def test_what_a_keeper_says_of_its_disk_stays_at_the_site(tmp_path):
    path = tmp_path / "private" / "keeper.sock"

    class Full:
        def deliver(self, sealed):
            raise LedgerError("cannot write /home/lyon/ledger: no space left")

    with serving_in_thread(Full(), path, Log("keeper")), pytest.raises(ConfigError) as refused:
        RemoteKeeper(path).deliver(Sealed(b"", ()))

    assert str(refused.value) == "the site's keeper cannot go on, its log says why"
