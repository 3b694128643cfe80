"""What a site does about results: it makes the server's step itself, and keeps what it leads to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from numpy.typing import NDArray

from veilsum.difference import check_fits
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout, result_digest
from veilsum.secagg.policy import Provenance
from veilsum.secagg.result_messages import SIGNATURE_ONLY
from veilsum.site.contribution import ModelTerms
from veilsum.site.effects import FetchSum, Note, SiteEffect
from veilsum.site.events import ModelFetched, SumFetched
from veilsum.site.following import HeldModel, SumReceiver, WrongResult, next_model
from veilsum.site.phases import Part

Seen: TypeAlias = Callable[[Part, int], list[SiteEffect]]
Wrong: TypeAlias = Callable[[Part, str], list[SiteEffect]]


class ModelKeeper:
    """Holds one model, the last one: that of the current round, or the one it led to.

    Beside it what the server's optimizer remembers: for FedAdam, twice its size. While a step is
    made there are two of both, and the words of the sum.

    Args:
        provenance: as of LocalPolicy. "off": nothing is held, made or checked.
        seen: what follows a result that is right as far as a level says.
        wrong: what follows one that is not.
        threads: to decode and step with.
    """

    def __init__(self, provenance: Provenance, seen: Seen, wrong: Wrong, *, threads: int) -> None:
        self._seen, self._wrong = seen, wrong
        self._follows = provenance == "recompute"
        self._threads = threads
        self._held: HeldModel | None = None
        self._fetch: FetchSum | None = None

    def model_of(self, terms: ModelTerms) -> HeldModel | None:
        """The model of a plan, if this site holds it: then nobody need hand it out."""
        held = self._held
        if held is None or terms.state_hash is None or held.layout.to_bytes() != terms.layout:
            return None
        if held.model_hash != terms.model_hash:
            return None
        if held.state_hash != terms.state_hash:  # another run goes on from the same model
            self._held = held = replace(held, state=None, state_hash=terms.state_hash)
        return held

    def fetched(
        self, terms: ModelTerms, layout: ModelLayout, arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        """The model of a masked round's plan was handed out, and is the planned one."""
        if self._follows and terms.state_hash is not None:
            self._held = HeldModel(layout, arrays, terms.model_hash, None, terms.state_hash)

    def on_result(self, part: Part) -> list[SiteEffect]:
        """What follows from a message after which a result may be ready."""
        contribution = part.contribution
        if contribution.result is None or self._fetch is not None:
            return []
        if not self._follows:
            return self._seen(part, SIGNATURE_ONLY)
        held = self.model_of(part.terms)
        if held is None or contribution.plan is None:
            note = Note("the round's result was not checked: this site does not have its model yet")
            return [note, *self._seen(part, SIGNATURE_ONLY)]
        receiver = SumReceiver(
            contribution.plan.ring, contribution.result.result.roots, threads=self._threads
        )
        self._fetch = FetchSum(part.round, receiver, state=not held.complete)
        return [self._fetch]

    @property
    def asked_for(self) -> list[SiteEffect]:
        """What is on its way."""
        return [] if self._fetch is None else [self._fetch]

    def on_sum(self, part: Part, event: SumFetched) -> list[SiteEffect] | None:
        """Makes the step.

        Returns:
            None if it leads to the result's model, which this site now holds; what to do instead
            otherwise.
        """
        ready, plan, fetch = part.contribution.result, part.contribution.plan, self._fetch
        held, self._fetch = self.model_of(part.terms), None
        if ready is None or plan is None or fetch is None or held is None:
            return []
        try:
            summed = fetch.receiver.finish()
            model = held if event.state is None else held.with_state(event.state)
        except (ConfigError, DecodeError) as error:
            return self.not_checked(part, str(error))
        try:
            self._held = next_model(
                plan, model, summed, ready.result, ready.survivors, threads=self._threads
            )
        except WrongResult as wrong:
            return self._wrong(part, str(wrong))
        return None

    def not_checked(self, part: Part, reason: str) -> list[SiteEffect]:
        """The sum could not be had. That proves nothing against anyone: the site acknowledges
        what it has seen, and depends on others for whether the next model is the right one."""
        self._fetch = None
        if part.contribution.result is None:
            return []
        note = Note(f"warning: the round's result was not checked: {reason}")
        return [note, *self._seen(part, SIGNATURE_ONLY)]

    def left(self) -> None:
        """The round is over for this site. The model stays: the next round may begin with it."""
        self._fetch = None


def check_model(fetched: ModelFetched, terms: ModelTerms) -> None:
    """The coordinator may hand out any bytes; only the planned model is trained from.

    Raises:
        ConfigError: what came is another model.
    """
    if fetched.layout.to_bytes() != terms.layout:
        raise ConfigError("the model handed out has another layout than the plan")
    check_fits(fetched.layout, fetched.arrays, "the model handed out")
    if bytes.fromhex(result_digest(fetched.layout, fetched.arrays)) != terms.model_hash:
        raise ConfigError("the model handed out is not the one of the plan (hash differs)")
