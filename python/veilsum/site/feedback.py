"""What a codec lost of a site's updates, kept from one round of a run to the next."""

from __future__ import annotations

from veilsum.codecs.error_feedback import Residual
from veilsum.control import PlainPlan
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout


class Feedback:
    """The residual of the latest run that asked for one; in memory only."""

    def __init__(self) -> None:
        self._run_id = ""
        self._residual: Residual | None = None

    def residual_for(self, run_id: str, plan: PlainPlan) -> Residual | None:
        """Where a round's losses go, or None if its plan has no error feedback.

        Raises:
            ConfigError: the model has another layout than in an earlier round of the run.
        """
        if not plan.error_feedback:
            return None
        layout = ModelLayout.from_bytes(plan.layout)
        if self._residual is None or self._run_id != run_id:
            self._run_id, self._residual = run_id, Residual(layout)
        if self._residual.layout != layout:
            raise ConfigError("the run's model has another layout than in an earlier round")
        return self._residual

    def forget(self, run_id: str) -> None:
        """A run has ended."""
        if self._run_id == run_id:
            self._residual = None
