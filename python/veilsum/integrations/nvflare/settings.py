"""What a job says about the sum, in plain values, and what that comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nvflare.apis.dxo import DataKind

from veilsum.aggregate import Streaming
from veilsum.errors import ConfigError
from veilsum.integrations.folding import Folding
from veilsum.optimizers import OptimizerSettings, optimizer_settings
from veilsum.rules import named_rule

_KINDS = {DataKind.WEIGHTS: False, DataKind.WEIGHT_DIFF: True}


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Plain values, as aggregator.VeilsumAggregator takes them.

    Raises:
        ConfigError: values that cannot work, alone or together. No device is looked for: whoever
            writes the job may have another one than the server.
    """

    rule: str
    rule_settings: Mapping[str, Any] | None
    optimizer: str | None
    optimizer_settings: Mapping[str, float] | None
    expected_data_kind: str | None
    layout: str
    keep: str
    max_abs: float | None
    max_total_weight: int | None
    backend: str
    threads: int | None

    def __post_init__(self) -> None:
        _one_of("keep", self.keep, ("disk", "memory"))
        _one_of("layout", self.layout, ("model", "first"))
        if self.expected_data_kind is not None:
            _one_of("expected_data_kind", self.expected_data_kind, tuple(_KINDS))
        if self.optimizer is None and self.optimizer_settings:
            raise ConfigError("optimizer_settings are given, and no optimizer")
        if self.optimizer is not None and self.layout == "first":
            raise ConfigError(
                "an optimizer steps the whole model, so layout='first' has no meaning with it"
            )
        self.folding("cpu")

    @classmethod
    def of(cls, component: object) -> JobSettings:
        """Of a component with an attribute for each."""
        return cls(**{field.name: getattr(component, field.name) for field in fields(cls)})

    @property
    def is_difference(self) -> bool | None:
        """Whether contributions are expected to be differences; None if not said."""
        return (
            None if self.expected_data_kind is None else _KINDS[DataKind(self.expected_data_kind)]
        )

    def folding(self, backend: str | None = None) -> Folding:
        """The settings of the sum.

        Args:
            backend: instead of the job's.
        """
        streaming = self._streaming()
        return Folding(
            rule=named_rule(self.rule, self.rule_settings or {}),
            optimizer=self._optimizer(),
            backend=backend or self.backend,
            threads=self.threads,
            streaming=streaming,
            in_memory=self.keep == "memory" and streaming is None,
        )

    def _optimizer(self) -> OptimizerSettings | None:
        if self.optimizer is None:
            return None
        return optimizer_settings(self.optimizer, **(self.optimizer_settings or {}))

    def _streaming(self) -> Streaming | None:
        if self.max_abs is None and self.max_total_weight is None:
            return None
        if self.max_abs is None or self.max_total_weight is None:
            raise ConfigError(
                "a sum on arrival needs both bounds, max_abs and max_total_weight",
                hint="give both, or neither to keep updates until the round ends",
            )
        return Streaming(self.max_abs, self.max_total_weight)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
