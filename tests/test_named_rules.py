"""Rules by name, with settings of a configuration file; and which may see a tensor at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.every_rule import EVERY_RULE
from veilsum import Aggregator, ConfigError, ModelLayout, rules


def test_a_rule_can_be_named_with_the_settings_of_a_configuration_file() -> None:
    assert rules.named_rule("mean", {}) == rules.Mean()
    assert rules.named_rule("trimmed_mean", {"trim": 0.2}) == rules.TrimmedMean(trim=0.2)
    assert rules.named_rule("multi_krum", {"byzantine": 1, "select": 3}) == rules.MultiKrum(
        byzantine=1, select=3
    )


@pytest.mark.parametrize(
    ("name", "settings", "message", "hint"),
    [
        ("average", {}, "unknown rule 'average'", "known: mean, median"),
        ("krum", {}, "rule 'krum' needs 'byzantine'", "it takes byzantine"),
        ("median", {"trim": 1}, "rule 'median' does not take 'trim'", "it takes none"),
        ("trimmed_mean", {"trim": -1}, "trim must be a whole number", "None"),
    ],
)
def test_settings_that_a_named_rule_does_not_take_are_refused(
    name: str, settings: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        rules.named_rule(name, settings)

    assert hint in str(refused.value.hint)


SINGLE = {name: rule for name, rule in EVERY_RULE.items() if isinstance(rule, rules.Rule)}


@pytest.mark.parametrize("rule", [rules.Mean(), *SINGLE.values()], ids=["mean", *SINGLE])
def test_a_rule_is_per_coordinate_if_tensors_alone_come_out_as_they_do_together(
    rule: rules.Rule,
) -> None:
    random = np.random.default_rng(3)
    updates = [
        {
            "near": random.normal(size=50).astype(np.float32),
            "far": random.normal(scale=60, size=(2, 30)).astype(np.float32),
        }
        for _ in range(11)
    ]

    together = aggregated(updates, rule)
    alone = {
        name: aggregated([{name: update[name]} for update in updates], rule)[name]
        for name in together
    }

    same = all(np.array_equal(together[name], alone[name]) for name in together)
    assert same == rule.per_coordinate


def aggregated(updates: list[dict[str, Any]], rule: rules.Rule) -> dict[str, Any]:
    aggregator = Aggregator(ModelLayout.from_arrays(updates[0]), rule=rule)
    for i, update in enumerate(updates):
        aggregator.add(update, weight=1, site=f"site {i:02}")
    return aggregator.finish().arrays
