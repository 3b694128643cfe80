"""What a site does about a round's result before it acknowledges it: the step, then the sum."""

from __future__ import annotations

from typing import TypeAlias, assert_never

from veilsum import secagg
from veilsum.secagg.result_messages import MODEL_RECOMPUTED
from veilsum.site.auditing import Auditor
from veilsum.site.effects import SiteEffect
from veilsum.site.events import AuditFetched, AuditFetchFailed, SumFetched, SumFetchFailed
from veilsum.site.phases import Part
from veilsum.site.provenance import ModelKeeper

ResultEvent: TypeAlias = SumFetched | SumFetchFailed | AuditFetched | AuditFetchFailed
"""What has come of something that was asked for to check a result."""


class Results:
    """Checks results as the site's policy says. Arguments are those of SiteCore.

    Attributes:
        models: the model that this site holds.
    """

    def __init__(
        self,
        policy: secagg.LocalPolicy,
        entropy: secagg.Entropy,
        ledger: secagg.Ledger | None,
        *,
        threads: int,
    ) -> None:
        self._auditor = Auditor(policy.audit, entropy, ledger, threads=threads)
        follow = self._auditor.begin, self._auditor.wrong
        self.models = ModelKeeper(policy.provenance, *follow, threads=threads)

    def after_message(self, part: Part) -> list[SiteEffect]:
        """What follows from a message after which a result may be ready."""
        return [] if self._auditor.busy else self.models.on_result(part)

    def on_event(self, part: Part, event: ResultEvent) -> list[SiteEffect]:
        """Goes on with what came, or without what did not."""
        match event:
            case SumFetched():
                instead = self.models.on_sum(part, event)
                return self._auditor.begin(part, MODEL_RECOMPUTED) if instead is None else instead
            case SumFetchFailed(_, reason):
                return self.models.not_checked(part, reason)
            case AuditFetched() | AuditFetchFailed():
                return self._auditor.answered(part, event)
            case _:
                assert_never(event)

    @property
    def asked_for(self) -> list[SiteEffect]:
        """What is on its way."""
        return [*self.models.asked_for, *self._auditor.asked_for]

    def left(self) -> None:
        """The round is over for this site."""
        self.models.left()
        self._auditor.left()
