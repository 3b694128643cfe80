"""The exact weighted mean inside another framework: one object, any arrays, any order."""

from __future__ import annotations

import numpy as np

import veilsum


def main() -> None:
    random = np.random.default_rng(1)
    updates = {
        f"site-{number}": {"layer.weight": random.normal(size=(256, 64)).astype(np.float32)}
        for number in range(8)
    }
    layout = veilsum.ModelLayout.from_arrays(updates["site-0"])

    # Arrays as they come: NumPy here; torch, JAX or anything with DLPack as well.
    forwards = veilsum.Aggregator(layout)
    for number, (site, update) in enumerate(updates.items()):
        forwards.add(update, weight=100 + number, site=site)

    # The same set in another order: the same bits, so the same digest.
    backwards = veilsum.Aggregator(layout, threads=1)
    for number, (site, update) in reversed(list(enumerate(updates.items()))):
        backwards.add(update, weight=100 + number, site=site)

    result = forwards.finish()
    print(f"{len(result.sites)} sites, total weight {result.total_weight}")
    print(f"digest {result.digest}")
    print("order does not matter:", result.digest == backwards.finish().digest)

    compressed = veilsum.encode(updates["site-0"], codec="int8")
    print(f"one update: {layout.size * 4} bytes as f32, {compressed.nbytes} as int8")


if __name__ == "__main__":
    main()
