"""veilsum's exact sum as an aggregation function of OpenFL 1.9 (docs/embedding.md).

In the plan, at the task whose results it is to average:

    aggregation_type:
      template: veilsum.integrations.openfl.VeilsumAverage
      settings: {rule: mean}
"""

from __future__ import annotations

from abc import ABCMeta
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openfl.interface.aggregation_functions.core import AggregationFunction
from openfl.utilities import LocalTensor, SingletonABCMeta

from veilsum.aggregate import Aggregator
from veilsum.errors import ConfigError
from veilsum.integrations.openfl_weights import whole_weights
from veilsum.model import ModelLayout
from veilsum.rules import Rule, named_rule


class _OnePerTask(SingletonABCMeta):  # type: ignore[misc]  # OpenFL has no types
    """OpenFL's metaclass returns a class's first instance whatever is asked for later: a second
    task of the plan would get the settings of the first."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  of a metaclass
        return ABCMeta.__call__(cls, *args, **kwargs)


class VeilsumAverage(AggregationFunction, metaclass=_OnePerTask):  # type: ignore[misc]
    """Averages each tensor of a task exactly, or applies a rule of veilsum.rules to it.

    The result does not depend on the order of the collaborators, threads or instruction set, and
    is rounded once to the tensor's dtype. Integer tensors stay integers.
    """

    def __init__(
        self,
        rule: str = "mean",
        *,
        rule_settings: Mapping[str, Any] | None = None,
        equal_weights: bool = False,
        threads: int | None = None,
    ) -> None:
        """Settings as a plan gives them.

        Args:
            rule: "mean", or a rule that looks at each coordinate alone: "median",
                "trimmed_mean", "meamed". OpenFL shows one tensor at a time, and rules that
                measure whole updates would judge each tensor by itself.
            rule_settings: of the rule: {"trim": 1} of "trimmed_mean", for example.
            equal_weights: count every collaborator the same, whatever its number of samples,
                as rules other than "mean" do always.
            threads: as of Aggregator.

        Raises:
            ConfigError: there is no such rule, it takes other settings, or it cannot be applied
                to one tensor at a time.
        """
        super().__init__()
        self._rule = named_rule(rule, rule_settings or {})
        if not self._rule.per_coordinate:
            raise ConfigError(
                f"rule {rule!r} compares whole updates, and OpenFL shows one tensor at a time",
                hint='use "mean", "median", "trimmed_mean" or "meamed"',
            )
        self._equal_weights = equal_weights or not self._rule.weighted
        self._threads = threads

    def call(
        self,
        local_tensors: Sequence[LocalTensor],
        db_iterator: object,
        tensor_name: str,
        fl_round: int,
        tags: Sequence[str],
    ) -> NDArray[Any]:
        """The aggregate of one tensor over all collaborators of the round.

        Args:
            local_tensors: (col_name, tensor, weight) of each; tensors of one shape and dtype,
                weights in float64. A weight of 0 takes part in no mean.
            db_iterator, fl_round, tags: not looked at.
            tensor_name: for errors.

        Returns:
            An array of the tensors' shape and dtype.

        Raises:
            PeerError: a collaborator's tensor has another shape or dtype than the others' or
                holds a value that is not finite, or its weight is none. The round does not go
                on: the collaborator cannot be left out of tensors that were averaged before.
            ConfigError: a collaborator is there twice, the tensors cannot be averaged, or the
                weights are not in proportions of whole numbers (openfl_weights).
        """
        _require_different(tensor_name, local_tensors)
        tensors = {local.col_name: np.asarray(local.tensor) for local in local_tensors}
        weights = self._weights(local_tensors)
        return _aggregate(tensor_name, tensors, weights, self._rule, self._threads)

    def _weights(self, local_tensors: Sequence[LocalTensor]) -> dict[str, int]:
        if self._equal_weights:
            return {local.col_name: 1 for local in local_tensors}
        return whole_weights({local.col_name: local.weight for local in local_tensors})


def _require_different(name: str, local_tensors: Sequence[LocalTensor]) -> None:
    """Raises:
    ConfigError: two tensors are of one collaborator; one of them would count for both.
    """
    tensors_of = Counter(local.col_name for local in local_tensors)
    for site, count in tensors_of.items():
        if count > 1:
            raise ConfigError(
                f"there are {count} tensors {name!r} of collaborator {site!r} in one round",
                hint="give each collaborator a name of its own in the plan (cols.yaml)",
            )


def _aggregate(
    name: str,
    tensors: Mapping[str, NDArray[Any]],
    weights: Mapping[str, int],
    rule: Rule,
    threads: int | None,
) -> NDArray[Any]:
    counted = [site for site, weight in weights.items() if weight]
    if not counted:
        raise ConfigError(f"no collaborator has samples behind tensor {name!r}")
    layout = ModelLayout.from_arrays({name: tensors[counted[0]]})
    aggregator = Aggregator(layout, rule=rule, threads=threads)
    for site in counted:
        # OpenFL's store keeps the tensors until the round is over, so none need be copied.
        aggregator.add({name: tensors[site]}, weight=weights[site], site=site, copy=False)
    return aggregator.finish().arrays[name]
