"""A site of an NVFLARE job: NVFLARE runs this file as its training script.

What it "trains" is a function of the site, the round and the model, so that a test can do the same
in its own process.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def trained(model: Arrays, site: int, number: int) -> Arrays:
    """The model after a site's training in a round: floats move at random, counters by steps."""
    return {name: _trained(name, values, site, number) for name, values in model.items()}


def steps_of(site: int) -> int:
    return 7 * site + 3


def accuracy_of(site: int, number: int) -> float:
    return 0.1 * site + 0.01 * number


def _trained(name: str, values: np.ndarray, site: int, number: int) -> np.ndarray:
    if values.dtype.kind in "iu":
        return (values + values.dtype.type(steps_of(site))).astype(values.dtype)
    random = np.random.default_rng([site, number, zlib.crc32(name.encode())])
    change = 0.1 * random.normal(size=values.shape)
    return (values + change.astype(values.dtype)).astype(values.dtype)


def run() -> None:
    import nvflare.client as flare

    flare.init()
    site = int(flare.get_site_name().removeprefix("site-"))
    while flare.is_running():
        received = flare.receive()
        if received is None:
            return
        model = {name: np.asarray(values) for name, values in received.params.items()}
        new: dict[str, Any] = trained(model, site, received.current_round)
        if any(hasattr(values, "numpy") for values in received.params.values()):
            import torch

            new = {name: torch.from_numpy(np.array(values)) for name, values in new.items()}
        flare.send(
            flare.FLModel(
                params=new,
                metrics={"accuracy": accuracy_of(site, received.current_round)},
                meta={"NUM_STEPS_CURRENT_ROUND": steps_of(site)},
            )
        )


if __name__ == "__main__":
    run()
