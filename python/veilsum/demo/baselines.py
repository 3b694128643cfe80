"""What federation is compared with: each site alone, and all data in one place.

Same network, same start, same optimizer, and as many passes over the data as a site makes in
the whole run. Small data are soon learned by heart, so these models are measured as often as
there are rounds and the best counts, chosen in hindsight on the unseen patients: that favours
them. Of the federated model the last counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

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
    """The best models of the two ways of training that do without federation.

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


@dataclass(frozen=True)
class Comparison:
    """Trains models without federation.

    Attributes:
        start: the model to begin with.
        task: how a site trains in one round of the run; its seed counts up with the rounds.
        rounds: of the run.
        report: called with who is training and the fraction that is done.
    """

    nodules: Nodules
    sites: Sequence[Hospital]
    start: Arrays
    task: TaskSettings
    rounds: int
    report: Callable[[str, float], None]

    def baselines(self) -> Baselines:
        """Trains every site alone, then all together."""
        alone = {site.name: self._best(site.name, site.train) for site in self.sites}
        everything = np.concatenate([site.train for site in self.sites])
        return Baselines(alone, self._best("all in one place", everything))

    def _best(self, who: str, rows: Rows) -> Scorecard:
        trainer = torch_trainer(network.examples(self.nodules, rows))
        model = self.start
        cards = []
        for number in range(self.rounds):
            task = replace(self.task, seed=self.task.seed + number)
            model = trainer.fit(model, task, lambda fraction: None).arrays
            cards.append(scorecard(model, self.nodules, self.sites))
            self.report(who, (number + 1) / self.rounds)
        return max(cards, key=lambda card: card.on_all)
