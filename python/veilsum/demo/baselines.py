"""What federation is compared with: each site alone, and all data in one place.

Same network, same start, same optimizer, and as many passes over the data as a site makes in
the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.control import TaskSettings
from veilsum.demo import model as network
from veilsum.demo.data import Hospital, Nodules, Rows
from veilsum.demo.metrics import auc
from veilsum.demo.trainer import torch_trainer
from veilsum.site.trainer import Arrays


@dataclass(frozen=True, slots=True)
class Scorecard:
    """AUC of one model.

    Attributes:
        on_all: on the unseen patients of all sites.
        on_site: on the unseen patients of each site, by name.
    """

    on_all: float
    on_site: dict[str, float]

    @property
    def mean_on_site(self) -> float:
        """Plain mean over the sites."""
        return float(np.mean(list(self.on_site.values())))


@dataclass(frozen=True, slots=True)
class Baselines:
    """The two ways of training that do without federation.

    Attributes:
        alone: the model each site trained on its own data, by name.
        centralized: the model trained on the data of all.
    """

    alone: dict[str, Scorecard]
    centralized: Scorecard

    @property
    def mean_alone_on_all(self) -> float:
        """On the unseen patients of all sites."""
        return float(np.mean([card.on_all for card in self.alone.values()]))

    @property
    def mean_alone_on_own(self) -> float:
        """Each on its own unseen patients."""
        return float(np.mean([card.on_site[site] for site, card in self.alone.items()]))


def scorecard(model: Arrays, nodules: Nodules, sites: Sequence[Hospital]) -> Scorecard:
    """Measures a model on all unseen patients."""
    by_site = {site.name: network.scores(model, nodules, site.test) for site in sites}
    tested = np.concatenate([site.test for site in sites])
    return Scorecard(
        auc(np.concatenate(list(by_site.values())), nodules.labels[tested]),
        {site.name: auc(by_site[site.name], nodules.labels[site.test]) for site in sites},
    )


def train_baselines(
    start: Arrays,
    nodules: Nodules,
    sites: Sequence[Hospital],
    task: TaskSettings,
    report: Callable[[str, float], None],
) -> Baselines:
    """Trains every site alone, then all together.

    Args:
        task: with the epochs of the whole run.
        report: called with who is training and the fraction that is done.
    """
    alone = {}
    for site in sites:
        model = _trained(start, nodules, site.train, task, site.name, report)
        alone[site.name] = scorecard(model, nodules, sites)
    everything = np.concatenate([site.train for site in sites])
    model = _trained(start, nodules, everything, task, "all in one place", report)
    return Baselines(alone, scorecard(model, nodules, sites))


def _trained(
    start: Arrays,
    nodules: Nodules,
    rows: Rows,
    task: TaskSettings,
    who: str,
    report: Callable[[str, float], None],
) -> dict[str, NDArray[Any]]:
    trainer = torch_trainer(network.examples(nodules, rows))
    result = trainer.fit(start, task, lambda fraction: report(who, fraction))
    return dict(result.arrays)
