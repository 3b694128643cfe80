"""From what a caller gives as a rule to pre-steps and a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veilsum import _native
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.rules.averages import Mean, NormClipping, NormFilter
from veilsum.rules.base import Outcome, PreStep, Rows, Rule
from veilsum.rules.combinations import CenteredClipping, GeometricMedian
from veilsum.rules.coordinates import CoordinateMedian, Meamed, TrimmedMean
from veilsum.rules.selections import Bulyan, Krum, MultiKrum

_BY_NAME: dict[str, type[Rule]] = {
    "mean": Mean,
    "median": CoordinateMedian,
    "trimmed_mean": TrimmedMean,
    "meamed": Meamed,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
    "geometric_median": GeometricMedian,
    "centered_clipping": CenteredClipping,
    "norm_clipping": NormClipping,
    "norm_filter": NormFilter,
}


@dataclass(frozen=True, slots=True)
class Chain:
    """Pre-steps and the rule behind them."""

    pre: tuple[PreStep, ...]
    rule: Rule

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean of the updates as they are."""
        return not self.pre and isinstance(self.rule, Mean)

    def apply(self, snapshot: _native.UpdateSnapshot, layout: ModelLayout) -> Outcome:
        """The result over the updates of one moment.

        Raises:
            ConfigError: there are too few updates, or weights or gains mean nothing to the rule.
        """
        self._check_weights(snapshot)
        rows = Rows.of(snapshot, layout)
        for step in self.pre:
            rows = step.apply(rows)
        self.rule.check(rows.count)
        return self.rule.apply(rows)

    def _check_weights(self, snapshot: _native.UpdateSnapshot) -> None:
        if any(gain != 1 for gain in snapshot.gains):
            raise ConfigError(f"{self.rule} takes no gains", hint="add updates without gain=")
        if self.rule.weighted and not self.pre:
            return
        if len(set(snapshot.weights)) > 1:
            least, most = min(snapshot.weights), max(snapshot.weights)
            step = self.pre[0] if self.pre else self.rule
            raise ConfigError(
                f"{step} counts every update the same, but weights are {least} to {most}",
                hint="add every update with the same weight",
            )


def choose_rule(given: str | Rule | Sequence[PreStep | Rule]) -> Chain:
    """A rule, its name, or pre-steps followed by a rule.

    Raises:
        ConfigError: it is none of these, or a name whose rule has settings to be chosen.
    """
    if isinstance(given, str):
        return Chain((), _named(given))
    if isinstance(given, Rule):
        return Chain((), given)
    steps = list(given) if isinstance(given, Sequence) else [given]
    last = steps.pop() if steps else None
    if not isinstance(last, Rule):
        raise ConfigError(
            f"a rule cannot be {last!r}", hint="give a rule of veilsum.rules, or the name of one"
        )
    for step in steps:
        if not isinstance(step, PreStep):
            raise ConfigError(f"{step!r} is not a pre-step", hint="only the last step is a rule")
    return Chain(tuple(step for step in steps if isinstance(step, PreStep)), last)


def named_rule(name: str, settings: Mapping[str, Any]) -> Rule:
    """A rule by its name, with settings as a configuration file gives them.

    Args:
        name: "mean", "trimmed_mean" and so on.
        settings: name -> value, those of the rule's class; the rest have their defaults.

    Raises:
        ConfigError: there is no such rule, or it does not take these settings.
    """
    kind = _kind(name)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [field.name for field in fields]
    unknown = [setting for setting in settings if setting not in known]
    missing = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.name not in settings
    ]
    if unknown or missing:
        what = f"does not take {unknown[0]!r}" if unknown else f"needs {missing[0]!r}"
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigError(f"rule {name!r} {what}", hint=f"{takes} (docs/rules.md)")
    return kind(**settings)


def _kind(name: str) -> type[Rule]:
    kind = _BY_NAME.get(name)
    if kind is None:
        raise ConfigError(f"unknown rule {name!r}", hint=f"known: {', '.join(_BY_NAME)}")
    return kind


def _named(name: str) -> Rule:
    kind = _kind(name)
    needed = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING
    ]
    if needed or kind is NormFilter:
        settings = ", ".join(f"{setting}=..." for setting in needed or ["max_norm"])
        raise ConfigError(
            f"rule {name!r} needs settings",
            hint=f"give rule=veilsum.rules.{kind.__name__}({settings})",
        )
    return kind()
