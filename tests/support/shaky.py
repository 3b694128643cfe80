"""A federation in one process, one of whose sites has a connection that breaks where a test says.

Every message, either way, and everything that is fetched or uploaded is a *crossing*. At the one
that the test names the connection breaks, before the crossing, which is then lost, or behind it.
Whatever else was under way is lost as well. When nobody has anything left to do the site is back
in the same process, and is sent what the coordinator's outbox holds, as transport.links does it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

from support.federation import Federation
from veilsum.control import ProtocolMessage, RoundId, ToSite, Welcome
from veilsum.coordinator import effects as to_do
from veilsum.secagg.messages import kind_of_message
from veilsum.site import effects as site_to_do
from veilsum.site.events import CoordinatorSent, SiteEvent, UploadDone
from veilsum.transport.outbox import Outbox

When = Literal["before", "behind"]


class ShakyFederation(Federation):
    """See the top of this file.

    Args:
        victim: whose connection breaks.
        cut: number of the crossing at which it does, from 1; 0: never.
        when: "before": the crossing is lost; "behind": it is the last thing that arrives.
        back: what the coordinator makes of the messages that the site is sent when it is back.

    Attributes:
        crossings: how many there were.
        said: what the victim sent, by round and kind, repeats and lost messages included.
        pushed: its uploads.
        trained: seeds of its trainings.
        said_before, said_since: kinds of what it sent before it came back, and since then.
    """

    def __init__(
        self,
        *args: Any,
        victim: str,
        cut: int = 0,
        when: When = "before",
        back: Callable[[list[ToSite]], list[ToSite]] = lambda messages: messages,
        **kwargs: Any,
    ) -> None:
        self.victim = victim
        self.crossings = 0
        self.breaks = 0
        self.said: defaultdict[tuple[RoundId, str], list[bytes]] = defaultdict(list)
        self.pushed: list[site_to_do.Upload] = []
        self.trained: list[int] = []
        self.said_before: set[str] = set()
        self.said_since: set[str] = set()
        self._cut, self._when, self._back = cut, when, back
        self._outbox = Outbox()
        self._counted: set[RoundId] = set()
        super().__init__(*args, **kwargs)

    @property
    def acknowledged(self) -> list[RoundId]:
        """Rounds whose result the victim has checked and acknowledged."""
        return [round_id for round_id, kind in self.said if kind == "result-ack"]

    # --- the connection -------------------------------------------------------------

    def _cross(self, pass_: Callable[[], None]) -> None:
        """Lets something pass, unless the connection is or gets broken."""
        if not self.sites[self.victim].connected:
            return
        self.crossings += 1
        here = self.crossings == self._cut
        if here and self._when == "before":
            self._break()
            return
        pass_()
        if here:
            self._break()

    def _break(self) -> None:
        self.breaks += 1
        self.sites[self.victim].connected = False

    def step(self) -> bool:
        if not self._queue and self.breaks and not self.sites[self.victim].connected:
            self._come_back()
            return True
        return super().step()

    def _come_back(self) -> None:
        self.said_before, self.said_since = self.said_since, set()
        self.sites[self.victim].connected = True
        welcome = Welcome("test", self.roster.hash, self._outbox.round)
        for message in self._back([welcome, *self._outbox.messages]):
            self._queue.append(lambda message=message: self._deliver(self.victim, message))

    # --- what crosses it ------------------------------------------------------------

    def _carry_out(self, effect: to_do.Effect) -> None:
        match effect:
            case to_do.SendToSite(self.victim, message):
                self._outbox.file(message)
            case to_do.AnswerUpload(round_id, self.victim, accepted):
                if accepted:
                    self._counted.add(round_id)
                # The call's answer, which crosses the connection too.
                self._cross(lambda: super(ShakyFederation, self)._carry_out(effect))
                return
        super()._carry_out(effect)

    def _deliver(self, site: str, message: ToSite) -> None:
        if site != self.victim:
            super()._deliver(site, message)
            return
        self._cross(lambda: self._tell_site(site, CoordinatorSent(message)))

    def _carry_out_for(self, site: str, effect: site_to_do.SiteEffect) -> None:
        if site != self.victim:
            super()._carry_out_for(site, effect)
            return
        carry_out = super()._carry_out_for
        match effect:
            case site_to_do.Train(round_id, arrays, task):  # whether connected or not
                self.trained.append(task.seed)
                self._train(site, round_id, arrays, task)
            case site_to_do.Note() | site_to_do.StopTraining() | site_to_do.KeepEvidence():
                carry_out(site, effect)
            case site_to_do.SendToCoordinator(ProtocolMessage(round_id, payload)):
                self.said[round_id, kind_of_message(payload)].append(payload)
                self.said_since.add(kind_of_message(payload))
                self._cross(lambda: carry_out(site, effect))
            case site_to_do.Upload(header):
                self.pushed.append(effect)
                self.said_since.add("upload")
                if header.round in self._counted:  # the transport knows that it has it
                    self._cross(lambda: self._tell_site(site, UploadDone(header.round)))
                else:
                    self._cross(lambda: carry_out(site, effect))
            case _:
                self._cross(lambda: carry_out(site, effect))

    def _tell_site(self, site: str, event: SiteEvent) -> None:
        if site == self.victim and isinstance(event, UploadDone):
            # Behind the answer everything else that the core's step led to is under way already.
            self._queue.append(lambda: super(ShakyFederation, self)._tell_site(site, event))
            return
        super()._tell_site(site, event)

    def _fetch_sum(self, site: str, effect: site_to_do.FetchSum) -> None:
        effect.receiver.restart()  # as transport.fetching does
        super()._fetch_sum(site, effect)
