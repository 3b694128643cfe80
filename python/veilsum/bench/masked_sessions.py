"""The sessions of one masked round, all in one process, with what each of them costs.

Every message is signed, encoded, sent and checked; nothing goes over a network.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from veilsum import control, secagg
from veilsum._native import Secret
from veilsum.bench.timing import Timer, elapsed
from veilsum.errors import RoundAborted
from veilsum.model import ModelLayout
from veilsum.secagg.keys import SECRET_BYTES


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self, timer: Timer = time.process_time) -> None:
        self._timer = timer
        self.spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Counts what is done inside."""
        began = self._timer()
        try:
            yield
        finally:
            self.spent[what] += elapsed(began, self._timer)

    def watch(self, owner: type, name: str, what: str) -> None:
        """Counts the time in a method as well."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            with self.on(what):
                return method(*args, **options)

        setattr(owner, name, timed)


class Round:
    """The sessions of one round, and a post office that counts bytes and keeps no message."""

    def __init__(
        self,
        updates: Mapping[str, secagg.Contribution],
        coordinates: int,
        *,
        generator: control.MaskGenerator,
        weight_cap: int,
        dropouts: int = 0,
        timer: Timer = time.process_time,
    ) -> None:
        """Makes keys and sessions.

        Args:
            updates: site -> what it contributes, one tensor "w" with weights of at most
                weight_cap; asked for when a site needs it.
            dropouts: so many sites are lost before their upload.
        """
        names = tuple(updates)
        sites = len(names)
        consortium = secagg.make_consortium(names)
        layout = ModelLayout.from_arrays({"w": np.zeros(coordinates, np.float32)})
        self.plan = secagg.Plan.for_round(
            roster=consortium.roster,
            cohort=names,
            spec=control.RunSpec("bench", mask_generator=generator, weight_cap=weight_cap),
            run_id="bench",
            round_number=1,
            attempt=0,
            layout=layout,
            model_hash=bytes(32),
            previous_result=bytes(32),
            nonce=bytes(32),
        )
        self.updates = updates
        self.dropouts = {names[number * sites // dropouts] for number in range(dropouts)}
        self.coordinator = secagg.CoordinatorSession(
            self.plan,
            signing_key=consortium.coordinator_key,
            audit_seed=bytes(Secret.from_os(SECRET_BYTES)),
        )
        self.sites = {
            site: secagg.SiteSession(
                site=site,
                signing_key=consortium.site_keys[site],
                roster=consortium.roster,
                policy=secagg.LocalPolicy(),
                entropy=Secret.from_os,
                ledger=secagg.Ledger.in_memory(Secret.from_os),
            )
            for site in names
        }
        self.clock = Clock(timer)  # of the coordinator
        self.of_site = {site: Clock(timer) for site in names}
        self.bytes: dict[str, dict[str, int]] = {site: defaultdict(int) for site in names}
        self.locked = 0

    def run(self) -> secagg.SecureResult:
        """The whole round; its result.

        Raises:
            RoundAborted: a session did not go on.
        """
        with self.clock.on("opening"):
            waiting = deque(self.coordinator.open())
        while True:
            effect = waiting.popleft()
            match effect:
                case secagg.SendTo(site, message):
                    self.locked = max(self.locked, locked_bytes())
                    self.bytes[site]["control down"] += len(message)
                    phase = self.sites[site].phase
                    with self.of_site[site].on(phase):
                        answers = self.sites[site].handle(message)
                    for answer in answers:
                        waiting.extend(self._answer(site, answer))
                case secagg.Excluded(site, reason) if site not in self.dropouts:
                    raise RoundAborted(f"{site} {reason}")
                case secagg.Aborted(reason):
                    raise RoundAborted(reason)
                case secagg.Completed(result):
                    return result

    def _answer(self, site: str, effect: secagg.SiteEffect) -> list[secagg.CoordinatorEffect]:
        match effect:
            case secagg.Send(message):
                self.bytes[site]["control up"] += len(message)
                with self.clock.on(self.coordinator.phase):
                    return self.coordinator.handle(site, message)
            case secagg.NeedUpdate():
                if site in self.dropouts:
                    return self.coordinator.lost(site, "is gone")
                return self._upload(site)
            case secagg.Withdraw(_, reason):
                raise RoundAborted(f"{site} withdrew: {reason}")
        return []

    def _upload(self, site: str) -> list[secagg.CoordinatorEffect]:
        given = self.updates[site]
        rounding = given.rounding or Secret.from_os(SECRET_BYTES)
        with self.of_site[site].on("masking"):
            (upload,) = self.sites[site].contribute(
                given.update, weight=given.weight, metrics={}, rounding=rounding
            )
        assert isinstance(upload, secagg.UploadInput)
        self.bytes[site]["update up"] += len(upload.header) + sum(map(len, upload.chunks))
        with self.clock.on("inputs"):
            return self.coordinator.accept_input(
                site, upload.header, upload.update_id, upload.chunks
            )


def locked_bytes() -> int:
    """Of this process, at this moment."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmLck:")[2].split()[0])
