"""Central differential privacy: clipped updates, exact noise, and what it all costs.

    aggregator = PrivateAggregator(layout, CentralDP(noise_multiplier=1.1, clip=0.5))
    aggregator.add(update, site="lyon")
    result = aggregator.finish()

    accountant = Accountant()
    accountant.add_rounds(noise_multiplier=1.1, rounds=100)
    accountant.epsilon(delta=1e-5)

The coordinator is trusted with the updates; what is protected, against whom and why is in
docs/privacy.md. Accounting needs the extra `privacy` (the package dp-accounting).
"""

from veilsum.privacy.accountant import Accountant, noise_multiplier_for
from veilsum.privacy.aggregator import PrivateAggregator, PrivateResult
from veilsum.privacy.settings import AdaptiveClip, CentralDP

__all__ = [
    "Accountant",
    "AdaptiveClip",
    "CentralDP",
    "PrivateAggregator",
    "PrivateResult",
    "noise_multiplier_for",
]
