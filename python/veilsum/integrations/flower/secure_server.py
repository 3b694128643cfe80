"""Carries out what the coordinator's core asks for, over the messages of a Flower grid.

Each node has one message under way at most. Replies are pulled one by one, and a masked update is
in the sum before the next one is asked for.
"""

from __future__ import annotations

import heapq
import logging
import secrets
from collections import deque
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from veilsum.control import (
    Decline,
    Goodbye,
    Progress,
    ProtocolMessage,
    RoundOpened,
    RunStatus,
    ToCoordinator,
    Welcome,
)
from veilsum.coordinator import effects as to_do
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.events import (
    DeadlinePassed,
    Event,
    Proceed,
    RunSubmitted,
    SiteJoined,
    SiteLeft,
    SiteSent,
    UpdateArrived,
)
from veilsum.errors import DecodeError, PeerError, VeilsumError
from veilsum.integrations.flower import secure_parts as parts
from veilsum.integrations.flower.one_by_one import UNREADABLE
from veilsum.integrations.flower.polling import Clock, Polling
from veilsum.integrations.flower.secure_nodes import Node
from veilsum.integrations.flower.secure_parts import About
from veilsum.integrations.flower.secure_served import Served
from veilsum.integrations.flower.secure_wire import (
    NONCE_BYTES,
    TO_COORDINATOR,
    TO_SITE,
    Frame,
    Hello,
    Part,
    Sealed,
    claimed_site,
    from_content,
    seal,
    to_content,
    unseal,
)
from veilsum.roster import Roster
from veilsum.transport import wire, wire_data

_LOG = logging.getLogger("flwr")

_MOST_SAID = 1000  # characters of what is told of a node's answer that cannot be used

# No call takes so long unless Flower waits, in pull_messages(), for what a node is still sending.
_BLOCKED_SECONDS = 1.0
_BEFORE_TRAINING = ("keys", "shares")
"""Phases in which nobody is to train: a site trains while its message waits for an answer, and the
others would miss what it has to say before."""

Kept = to_do.SaveRound | to_do.SaveReceipt | to_do.SaveEvidence
"""Effects that whoever started the run wants to see."""


class FlowerCoordinator:
    """One masked run over a grid.

    Args:
        reply_seconds: after which Flower gives up on a message.
        kept: called with what is to be kept of a round.
    """

    def __init__(
        self,
        grid: Grid,
        core: Coordinator,
        roster: Roster,
        key: Ed25519PrivateKey,
        clock: Clock,
        reply_seconds: float,
        kept: Callable[[Kept], None],
    ) -> None:
        self._grid = grid
        self._core = core
        self._roster = roster
        self._key = key
        self._clock = clock
        self._polling = Polling(clock)
        self._reply_seconds = reply_seconds
        self._kept = kept
        self._nodes: dict[int, Node] = {}
        self._served = Served()
        self._due: list[tuple[float, int, DeadlinePassed]] = []
        self._deadlines = 0
        self._events: deque[Event] = deque()
        self._run_id = ""

    def run(self, submitted: RunSubmitted) -> RunStatus:
        """Runs it to its end.

        Raises:
            ConfigError: the run cannot be.
        """
        self._run_id = submitted.run_id
        self._tell(submitted)
        was = self._where
        while self._status.state in ("waiting", "running"):
            self._find_nodes()
            if was != self._where:
                was = self._where
                for node in self._nodes.values():
                    node.resting = False
            moved = self._exchange()
            if self._pass_deadlines() or moved:
                self._polling.happened()
            else:
                self._polling.pause(until=self._due[0][0] if self._due else None)
        self._say_goodbye()
        return self._status

    @property
    def _status(self) -> RunStatus:
        return self._core.status(self._run_id)

    # --- events of the core -----------------------------------------------------------

    def _tell(self, event: Event) -> None:
        """Hands over an event and carries out what follows, in order."""
        self._events.append(event)
        while self._events:
            effects = self._core.handle(self._events.popleft(), now=self._clock.now())
            for effect in effects:
                self._carry_out(effect)

    def _carry_out(self, effect: to_do.Effect) -> None:
        match effect:
            case to_do.SendToSite(site, message):
                if isinstance(message, RoundOpened):
                    self._served.invite(message.round, site)
                self._say(site, Part(parts.MESSAGE, wire.encode_to_site(message)))
            case to_do.AnswerUpload(round_id, site, accepted, reason):
                about = About(round_id, accepted, reason)
                self._say(site, Part(parts.UPLOADED, about.to_bytes()))
            case to_do.SetDeadline(round_id, phase, seconds):
                self._deadlines += 1
                due = self._clock.now() + seconds
                event = DeadlinePassed(round_id, phase)
                heapq.heappush(self._due, (due, self._deadlines, event))
            case to_do.PublishModel():
                self._served.publish(effect)
            case to_do.PublishSum():
                self._served.publish_sum(effect)
            case to_do.SaveLink():
                self._served.link(effect)
            case to_do.SaveRound():
                self._served.saved(effect)
                self._kept(effect)
            case to_do.SaveReceipt() | to_do.SaveEvidence():
                self._kept(effect)
            case to_do.GoOn(run_id):
                self._events.append(Proceed(run_id))
            case to_do.Announce(event):
                _LOG.debug("veilsum: %s", event)
            case _:
                pass  # what is only for a coordinator with a disk, or for uploads in pieces

    def _pass_deadlines(self) -> bool:
        """Whether a phase has ended because its time was over. Who has not answered by then is
        lost, and is asked anew once its answer has come."""
        passed = False
        while self._due and self._due[0][0] <= self._clock.now():
            before = self._where
            self._tell(heapq.heappop(self._due)[2])
            if self._where != before:
                passed = True
                for node in self._nodes.values():
                    if node.message_id is not None:
                        node.late = True
                        self._lose(node, "did not answer in time")
        return passed

    @property
    def _where(self) -> tuple[object, ...]:
        status = self._status
        return status.state, status.current_round, status.phase, len(status.rounds)

    # --- nodes ------------------------------------------------------------------------

    def _find_nodes(self) -> None:
        found = set(self._grid.get_node_ids())
        for node_id in found - self._nodes.keys():
            self._nodes[node_id] = Node(node_id)
        for node_id in self._nodes.keys() - found:
            self._lose(self._nodes.pop(node_id), "its node has left the federation")

    def _exchange(self) -> bool:
        """Sends what there is to say and takes what has come; whether there was anything."""
        moved = False
        for node in list(self._nodes.values()):
            if node.message_id is None:
                moved |= self._push(node)
            if node.message_id is not None:
                began = self._clock.now()
                if self._pull(node):
                    moved = True
                    self._put_off_deadlines(self._clock.now() - began)
        return moved

    def _put_off_deadlines(self, seconds: float) -> None:
        """One node that sends slowly keeps everybody from being heard; that time is not theirs."""
        if seconds > _BLOCKED_SECONDS:
            self._due = [(due + seconds, number, event) for due, number, event in self._due]

    def _speaks(self, site: str) -> bool:
        return any(node.site == site for node in self._nodes.values())

    def _say(self, site: str, part: Part) -> None:
        """To a site that is there."""
        for node in self._nodes.values():
            if node.site == site:
                node.outbox.append(part)

    def _lose(self, node: Node, reason: str) -> None:
        site = node.lose()
        if site:
            _LOG.warning("veilsum: site %s is lost: %s", site, reason)
            self._tell(SiteLeft(site, reason))

    # --- messages ---------------------------------------------------------------------

    def _push(self, node: Node) -> bool:
        if node.resting or (node.yielded and self._speaks(node.yielded)):
            return False
        if not node.site:
            node.nonce = secrets.token_bytes(NONCE_BYTES)
            frame = Frame(node.nonce, 0, (Part("hello", self._roster.hash),))
        else:
            said = self._said(node)
            if not said:
                return False
            node.number += 1
            frame = Frame(node.session, node.number, said)
        message = Message(
            to_content(seal(TO_SITE, frame, self._key)),
            dst_node_id=node.node_id,
            message_type=MessageType.TRAIN,
            ttl=self._reply_seconds,
        )
        names = list(self._grid.push_messages([message]))
        if not names or not names[0]:
            self._set_aside(node, "Flower takes no message for its node")
            return True
        node.message_id = names[0]
        return True

    def _said(self, node: Node) -> tuple[Part, ...]:
        said, node.outbox = node.outbox, []
        if self._status.phase in _BEFORE_TRAINING:
            return tuple(said)
        if node.wants_model is not None:
            model = self._served.model(node.wants_model, node.site)
            node.wants_model = None
            if model is not None:
                said.append(model)
        if node.wants_turn is not None:
            said.append(Part(parts.TURN, About(node.wants_turn).to_bytes()))
            node.wants_turn = None
        return tuple(said)

    def _pull(self, node: Node) -> bool:
        assert node.message_id is not None
        try:
            replies = list(self._grid.pull_messages([node.message_id]))
        except UNREADABLE as error:
            # One site's bytes, which Flower could not read: they cost that site its round.
            node.answered()
            self._set_aside(node, "Flower cannot read its answer", repr(error))
            return True
        if not replies:
            return False
        late = node.answered()
        reply = replies.pop()
        if reply.has_error():
            self._set_aside(node, "its node answered with an error", repr(reply.error.reason))
        elif not late:
            try:
                self._on_reply(node, reply)
            except VeilsumError as error:
                self._set_aside(node, f"its answer cannot be used: {error}", error.hint or "")
        return True

    def _set_aside(self, node: Node, reason: str, detail: str = "") -> None:
        """Nobody asks it again before the next phase. `detail` is for the log only."""
        node.resting = True
        reason = reason[:_MOST_SAID]
        about = f"{reason} ({detail[:_MOST_SAID]})" if detail else reason
        _LOG.warning("veilsum: node %s: %s", node.node_id, about)
        self._lose(node, reason)

    def _on_reply(self, node: Node, reply: Message) -> None:
        sealed = from_content(reply.content)
        del reply
        if not node.site:
            self._on_hello(node, claimed_site(sealed), unseal_hello=sealed)
            return
        frame = unseal(TO_COORDINATOR, sealed, self._roster.signing_key(node.site))
        if (frame.session, frame.number) != (node.session, node.number):
            raise DecodeError(f"the answer to frame {node.number} is one to another frame")
        for part in frame.parts:
            if not node.site:
                return  # it said goodbye: nothing counts after that
            self._on_part(node, part)

    def _on_hello(self, node: Node, site: str, *, unseal_hello: Sealed) -> None:
        if site not in self._roster.sites:
            raise DecodeError(
                f"{site!r} is not in the roster",
                hint="give every member the same bytes of one roster file",
            )
        frame = unseal(TO_COORDINATOR, unseal_hello, self._roster.signing_key(site))
        hello = Hello.from_bytes(frame.parts[0].head)
        if frame.session != node.nonce or hello.site != site:
            raise DecodeError("a hello answers another one than this node was sent")
        if hello.roster_hash != self._roster.hash:
            raise DecodeError(
                f"site {site!r} has another roster than the coordinator",
                hint="give every member the same bytes of one roster file",
            )
        for other in self._nodes.values():
            if other.site == site:
                other.yielded = site
                self._lose(other, "its site speaks through another node")
        node.site, node.session, node.number, node.yielded = site, hello.session, 0, ""
        welcome = Welcome(self._roster.consortium, self._roster.hash)
        node.outbox = [Part(parts.MESSAGE, wire.encode_to_site(welcome))]
        self._tell(SiteJoined(site, hello.instance))

    def _on_part(self, node: Node, part: Part) -> None:
        match part.kind:
            case parts.MESSAGE:
                self._on_message(node, wire.decode_to_coordinator(part.head))
            case parts.WANT_MODEL:
                node.wants_model = About.from_bytes(part.head).round
            case parts.WANT_TURN:
                node.wants_turn = About.from_bytes(part.head).round
            case parts.WANT_SUM:
                about = About.from_bytes(part.head)
                node.serve(self._served.sum(about.round, node.site, state=about.flag))
            case parts.WANT_LINKS:
                about = About.from_bytes(part.head)
                node.serve(self._served.links(about.round, node.site))
            case parts.UPLOAD:
                self._on_upload(node, part)
            case _:
                raise DecodeError(f"a frame of site {node.site!r} has a part {part.kind!r}")

    def _on_message(self, node: Node, message: ToCoordinator) -> None:
        if isinstance(message, ProtocolMessage | Decline | Progress):
            self._tell(SiteSent(node.site, message))
        elif isinstance(message, Goodbye):
            self._lose(node, "it said goodbye")

    def _on_upload(self, node: Node, part: Part) -> None:
        """Checks a masked update where it lies, and has it summed."""
        header, _ = wire_data.decode_update_header(part.head)
        try:
            receiver = self._core.upload_check(node.site, header)
            for chunk in part.blobs:
                receiver.add(chunk)
            receiver.finish()
        except (DecodeError, PeerError) as error:
            about = About(header.round, reason=str(error))
            node.outbox.append(Part(parts.UPLOADED, about.to_bytes()))
            return
        self._tell(UpdateArrived(node.site, header, part.blobs))

    def _say_goodbye(self) -> None:
        """Tells the sites that the run is over; those that do not answer soon need not know."""
        self._polling.happened()
        until = self._clock.now() + self._status.spec.deadlines.unmask_s
        for node in self._nodes.values():
            if node.site and node.message_id is None:
                self._push(node)
        while self._clock.now() < until:
            waits = [node for node in self._nodes.values() if node.site and node.message_id]
            if not waits:
                return
            came = [self._pull(node) for node in waits]
            if any(came):
                self._polling.happened()
            else:
                self._polling.pause(until)
