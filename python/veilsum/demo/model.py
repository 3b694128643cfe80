"""The demo's model: a small convolutional network that looks at a nodule's shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from veilsum.demo.data import Nodules, Rows
from veilsum.errors import ConfigError
from veilsum.site.torch_trainer import Examples, load_arrays, module_arrays
from veilsum.site.trainer import Arrays

_CHANNELS = (16, 32, 32)
_GROUPS = 4
_HIDDEN = 32
_DROPOUT = 0.2
# Mean and standard deviation of a pixel, over the maps of the data file. Fixed, so that no
# site has to tell its own.
_PIXEL_MEAN = 0.23
_PIXEL_STD = 0.32
_STEPS = 16.0  # of the maps, per unit of thickness


def build_model(seed: int) -> nn.Sequential:
    """A fresh network; the same for the same seed.

    Input (n, 1, 32, 32), output (n,): the log odds of malignancy. Normalized by groups and
    not by batches: batch statistics of one site do not fit another.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        inputs = 1
        for position, outputs in enumerate(_CHANNELS):
            size = 3 if position else 5
            layers += [
                nn.Conv2d(inputs, outputs, size, stride=2, padding=size // 2),
                nn.GroupNorm(_GROUPS, outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        layers += [
            nn.Flatten(),
            nn.Dropout(_DROPOUT),
            nn.Linear(inputs * 4 * 4, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, 1),
            nn.Flatten(0),
        ]
        return nn.Sequential(*layers)


def initial_arrays(seed: int) -> dict[str, NDArray[Any]]:
    """The model that the first round starts from."""
    return module_arrays(build_model(seed))


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross entropy."""
    return nn.functional.binary_cross_entropy_with_logits(outputs, targets)


def examples(nodules: Nodules, rows: Rows) -> Examples:
    """Rows as the network takes them."""
    maps = torch.from_numpy(nodules.maps[rows].astype(np.float32))[:, None]
    return Examples(
        (maps / _STEPS - _PIXEL_MEAN) / _PIXEL_STD, torch.from_numpy(nodules.labels[rows])
    )


def scores(model: Arrays, nodules: Nodules, rows: Rows) -> NDArray[np.float32]:
    """The network's outputs, shape (rows,).

    Raises:
        ConfigError: the arrays are not this network's, or it does not work any more.
    """
    network = build_model(0)
    load_arrays(network, model)
    network.eval()
    with torch.no_grad():
        inputs = examples(nodules, rows).inputs
        outputs: NDArray[np.float32] = network(inputs).numpy()
    if not np.isfinite(outputs).all():
        raise ConfigError("the model's outputs are not finite")
    return outputs


def one_thread() -> None:
    """The network is too small for more threads than one: they would wait for each other."""
    torch.set_num_threads(1)
