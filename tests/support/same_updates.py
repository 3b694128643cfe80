"""The same updates for every host, and what they come to in fractions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.exact_mean import exact_mean
from veilsum.model import ModelLayout, result_digest

Arrays = dict[str, NDArray[Any]]

WEIGHTS = {1: 1003, 2: 250, 3: 77, 4: 5000, 5: 613}

MODEL: Arrays = {
    "conv.weight": np.zeros((70, 60), np.float32),  # more than one tile of 4096
    "conv.bias": np.zeros(70, np.float32),
    "scale": np.zeros((), np.float32),
    "head": np.zeros(33, np.float16),
    "num_batches_tracked": np.zeros((), np.int64),
}
LAYOUT = ModelLayout.from_arrays(MODEL)

# Each process computes it anew; this one says that they all compute the same.
DIGEST = "26eb2c3484f4c859f74ab40160962fd93bf1ae2ad868c47e19d71cf5e0015056"


def trained(site: int) -> Arrays:
    random = np.random.default_rng(site)
    return {
        "conv.weight": random.normal(size=(70, 60)).astype(np.float32),
        "conv.bias": random.normal(scale=1e-3, size=70).astype(np.float32),
        "scale": np.array(random.normal(), np.float32),
        "head": random.normal(size=33).astype(np.float16),
        "num_batches_tracked": np.array(1000 * site + 1, np.int64),
    }


def reference() -> Arrays:
    """The exact mean, rounded once to each tensor's dtype."""
    updates = [trained(site) for site in WEIGHTS]
    return {
        name: exact_mean([update[name] for update in updates], list(WEIGHTS.values()))
        for name in MODEL
    }


def assert_is_the_mean(found: Arrays) -> None:
    """To the last bit, which its digest says again."""
    for name, expected in reference().items():
        assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape)
        assert found[name].tobytes() == expected.tobytes(), name
    assert result_digest(LAYOUT, found) == DIGEST
