"""A site of the example: least squares on data of its own. Nothing here knows of veilsum."""

from __future__ import annotations

import numpy as np
import nvflare.client as flare

TRUTH = np.linspace(-1, 1, 8)


def data_of(site: str) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(sum(site.encode()))
    inputs = random.normal(size=(int(random.integers(50, 400)), 8))
    return inputs, inputs @ TRUTH + 0.1 * random.normal(size=len(inputs))


def main() -> None:
    flare.init()
    inputs, targets = data_of(flare.get_site_name())
    while flare.is_running():
        received = flare.receive()
        weights = np.asarray(received.params["numpy_key"], np.float32)
        for _ in range(20):
            gradient = inputs.T @ (inputs @ weights - targets) / len(targets)
            weights = (weights - 0.1 * gradient).astype(np.float32)
        loss = float(np.mean((inputs @ weights - targets) ** 2))
        flare.send(
            flare.FLModel(
                params={"numpy_key": weights},
                metrics={"loss": loss},
                meta={"NUM_STEPS_CURRENT_ROUND": len(targets)},  # the site's weight
            )
        )


if __name__ == "__main__":
    main()
