"""Every rule and pre-step, of at least eleven updates, so that a test can walk through them."""

from __future__ import annotations

from typing import Any

from veilsum import rules

EVERY_RULE: dict[str, Any] = {
    "median": rules.CoordinateMedian(),
    "trimmed": rules.TrimmedMean(trim=2),
    "meamed": rules.Meamed(byzantine=2),
    "krum": rules.Krum(byzantine=2),
    "multi-krum": rules.MultiKrum(byzantine=2, select=5),
    "bulyan": rules.Bulyan(byzantine=2),
    "geometric median": rules.GeometricMedian(iterations=5),
    "centred clipping": rules.CenteredClipping(radius=30.0, iterations=3),
    "norm clipping": rules.NormClipping(max_norm=40.0),
    "norm filter": rules.NormFilter(multiplier=1.0),
    "mixed median": [rules.NearestNeighborMixing(byzantine=2), rules.CoordinateMedian()],
    "bucketed krum": [rules.Bucketing(size=2, seed=7), rules.Krum(byzantine=1)],
    "bucketed mixed trimmed": [
        rules.Bucketing(size=2, seed=b"seed"),
        rules.NearestNeighborMixing(byzantine=1),
        rules.TrimmedMean(trim=1),
    ],
    "bucketed meamed": [rules.Bucketing(size=3, seed=1), rules.Meamed(byzantine=1)],
}
