"""The weighted mean of float32 updates: three models, and what each framework's server does."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.aggregate import Aggregator
from veilsum.bench import shapes
from veilsum.bench.contenders import OURS, Case, Contender, Part, Work
from veilsum.bench.options import BenchOptions
from veilsum.bench.peers import flower, nvflare, openfl, vectors
from veilsum.bench.reference import Reference
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout

Arrays = dict[str, NDArray[Any]]

MODELS: tuple[tuple[str, Callable[[], shapes.Shapes], int], ...] = (
    ("ResNet-50", shapes.resnet50, 12),
    ("BERT-base", shapes.bert_base, 12),
    ("small CNN", shapes.small_cnn, 100),
)


@dataclass(frozen=True)
class MeanPayload:
    """Updates, their weights, and what their mean is.

    Attributes:
        updates: arrays by name.
        weights: numbers of examples.
    """

    updates: Sequence[Arrays]
    weights: Sequence[int]

    @classmethod
    def of(cls, model: shapes.Shapes, sites: int) -> MeanPayload:
        """Updates of a model that differ in every value."""
        weights = [100 + 37 * number for number in range(sites)]
        payload = cls(shapes.updates(model, sites), weights)
        payload.ready("arrays")
        return payload

    def ready(self, form: str) -> None:
        """Makes what a form needs, before the process is forked."""
        _ = self.reference
        if form == "npy":
            _ = self.npy

    @cached_property
    def reference(self) -> Reference:
        """In float64."""
        return Reference.of(self.updates, self.weights)

    @cached_property
    def npy(self) -> list[dict[str, bytes]]:
        """Each array as the bytes of a .npy file, as Flower's arrays travel."""
        return [
            {name: _npy_bytes(array) for name, array in update.items()} for update in self.updates
        ]


def _npy_bytes(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def cases(options: BenchOptions) -> list[Case]:
    """A case for each model, and for each adapter against its own host."""
    found = []
    for title, model, sites in MODELS:
        scaled = shapes.scaled(model(), options.scale)
        count = options.sites or sites
        name = _name(count, title, scaled)
        found.append(_case(name, scaled, count, _ours(), _peers(options)))
    title, model, sites = MODELS[0]
    scaled, count = shapes.scaled(model(), options.scale), options.sites or sites
    for host, ours, peers in _adapters():
        name = f"{_name(count, title, scaled)}, inside {host}"
        found.append(_case(name, scaled, count, (ours,), peers))
    return found


def _name(sites: int, title: str, model: shapes.Shapes) -> str:
    return f"{sites} x {title} ({len(model)} tensors, {shapes.size(model) / 1e6:.3g} M values)"


def _case(
    name: str,
    model: shapes.Shapes,
    sites: int,
    ours: tuple[Contender, ...],
    peers: tuple[Contender, ...],
) -> Case:
    size = shapes.size(model)
    return Case(
        "mean",
        name,
        ours,
        peers,
        lambda: MeanPayload.of(model, sites),
        update_bytes=4 * size,
        payload_bytes=4 * size * sites,
        parts={"": Part(4 * size * sites, size * sites)},
    )


def _ours() -> tuple[Contender, ...]:
    return (Contender(OURS, partial(_aggregator, copy=False), threads=True),)


def _aggregator(payload: MeanPayload, threads: int, *, copy: bool) -> Work:
    layout = ModelLayout.from_arrays(payload.updates[0])

    def call() -> Mapping[str, Any]:
        mean = Aggregator(layout, threads=threads)
        for number, (update, weight) in enumerate(
            zip(payload.updates, payload.weights, strict=True)
        ):
            mean.add(update, weight=weight, site=f"site-{number}", copy=copy)
        return mean.finish().arrays

    return Work(call, payload.reference.once_rounded)


def _peers(options: BenchOptions) -> tuple[Contender, ...]:
    copied = Contender(
        "veilsum, updates copied",
        partial(_aggregator, copy=True),
        memory=float(options.sites or 100) + 2,
        threads=True,
    )
    everybody = (copied, *vectors.MEANS, *flower.MEANS, *nvflare.MEANS, *openfl.MEANS)
    return (*everybody, *(_named(peer) for peer in options.own_peers))


def _adapters() -> list[tuple[str, Contender, tuple[Contender, ...]]]:
    """(host, our adapter, the host's own) of the adapters that there are."""
    return [*flower.ADAPTERS, *nvflare.ADAPTERS]


def _named(place: str) -> Contender:
    """The caller's own function: "module:function" of updates and weights, returns the mean.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, _, name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"peer {place!r} cannot be imported: {error}") from error

    def prepare(payload: MeanPayload, threads: int) -> Work:
        return Work(
            lambda: function(payload.updates, payload.weights),
            payload.reference.rounded_on_the_way,
        )

    return Contender(place, prepare, memory=2.0 + 2.0, threads=True)
