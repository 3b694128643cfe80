"""The exact weighted mean in a training loop of your own: NumPy arrays, any order, any form."""

from __future__ import annotations

import numpy as np

import veilsum

SITES = {"rome": 120, "turin": 45, "milan": 310}  # and how many samples each has


def train(model: dict[str, np.ndarray], site: str, number: int) -> dict[str, np.ndarray]:
    """Stands for training: some step away from the model."""
    random = np.random.default_rng([number, *site.encode()])
    return {
        name: array - 0.1 * random.normal(loc=array, size=array.shape).astype(np.float32)
        for name, array in model.items()
    }


def averaged(
    layout: veilsum.ModelLayout, updates: dict[str, dict[str, np.ndarray]]
) -> veilsum.AggregateResult:
    aggregator = veilsum.Aggregator(layout)
    for site, update in updates.items():
        aggregator.add(update, weight=SITES[site], site=site)
    return aggregator.finish()


def main() -> None:
    model = {"weight": np.ones((256, 64), np.float32), "bias": np.zeros(64, np.float32)}
    layout = veilsum.ModelLayout.from_arrays(model)
    for number in range(3):
        updates = {site: train(model, site, number) for site in SITES}
        result = averaged(layout, updates)
        model = result.arrays
        print(f"round {number}: {result.total_weight} samples, digest {result.digest[:16]}")

    # The same updates in another order are the same bits. So says the digest.
    backwards = averaged(layout, dict(reversed(updates.items())))
    print("order does not matter:", backwards.digest == result.digest)

    # What plain float64 arithmetic says, rounded once.
    reference = np.average(
        [update["weight"].astype(np.float64) for update in updates.values()],
        axis=0,
        weights=list(SITES.values()),
    )
    print("equals float64:", np.array_equal(model["weight"], reference.astype(np.float32)))

    # An update may also come encoded, and is decoded while it is summed.
    encoded = veilsum.encode(updates["rome"], codec="int8", layout=layout)
    print(f"one update: {layout.size * 4} bytes as float32, {encoded.nbytes} as int8")


if __name__ == "__main__":
    main()
