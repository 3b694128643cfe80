"""Updates that are not plain arrays in memory: quantized, encoded, or still on disk."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from veilsum import Aggregator, ConfigError, ModelLayout, decode, encode

pytest.importorskip("nvflare", reason="nvflare is not installed (extra `nvflare`)")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `test`)")

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import (
    InTimeAccumulateWeightedAggregator,
)
from nvflare.app_common.decomposers import common_decomposers
from nvflare.app_opt.pt.lazy_tensor_dict import LazyTensorDict
from nvflare.fuel.utils import fobs

from support.nvflare_quantizer import quantized, restored
from support.nvflare_results import assert_rounded_once, begin, end_runs, mean, result
from veilsum.integrations.nvflare import EncodeFilter, VeilsumAggregator

RANDOM = np.random.default_rng(5)
SITES = ("site-1", "site-2", "site-3")
STEPS = {"site-1": 10, "site-2": 17, "site-3": 24}
MODEL = {"w": np.zeros((70, 90), np.float32), "b": np.zeros(5, np.float32)}
CHANGES = {
    site: {
        name: (0.03 * RANDOM.normal(size=values.shape)).astype(np.float32)
        for name, values in MODEL.items()
    }
    for site in SITES
}
ALGORITHM = MetaKey.PROCESSED_ALGORITHM
METHODS = ("float16", "blockwise8", "float4", "normfloat4")
CODECS = ("f32", "f16", "bf16", "int8", "int4", "nf4", "fp4", "fp8_e4m3", "topk", "eden4")


@pytest.fixture(autouse=True)
def runs_end() -> Iterator[None]:
    yield
    end_runs()


def summed(params: dict[str, Any], metas: dict[str, Any] | None = None, **settings: Any) -> DXO:
    """The round's result for each site's params and meta."""
    aggregator = VeilsumAggregator(**settings)
    fl_ctx = begin(aggregator, MODEL)
    for site in SITES:
        meta = {} if metas is None else metas[site]
        sent = result(site, params[site], steps=STEPS[site], kind="WEIGHT_DIFF", **meta)
        assert aggregator.accept(sent, fl_ctx), aggregator.rounds
    return from_shareable(aggregator.aggregate(fl_ctx))


def digest_in_process(updates: dict[str, Any]) -> str:
    total = Aggregator(ModelLayout.from_arrays(MODEL))
    for site in SITES:
        total.add(updates[site], weight=STEPS[site], site=site)
    return total.finish().digest


@pytest.mark.parametrize("in_torch", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_what_model_quantizer_makes_is_summed_without_a_dequantizer(
    method: str, in_torch: bool
) -> None:
    sent = {
        site: {name: torch.from_numpy(v) if in_torch else v for name, v in CHANGES[site].items()}
        for site in SITES
    }
    payloads = {site: quantized(sent[site], method) for site in SITES}

    dxo = summed(
        {site: payloads[site][0] for site in SITES}, {site: payloads[site][1] for site in SITES}
    )

    by_bitsandbytes = {site: restored(*payloads[site], method) for site in SITES}
    assert_rounded_once(dxo.data, mean(by_bitsandbytes, STEPS))
    assert dxo.meta["veilsum.digest"] == digest_in_process(by_bitsandbytes)


def test_sites_may_quantize_by_different_methods() -> None:
    methods = dict(zip(SITES, ("float16", "blockwise8", "normfloat4"), strict=True))
    payloads = {site: quantized(CHANGES[site], methods[site]) for site in SITES}

    dxo = summed(
        {site: payloads[site][0] for site in SITES}, {site: payloads[site][1] for site in SITES}
    )

    by_bitsandbytes = {site: restored(*payloads[site], methods[site]) for site in SITES}
    assert dxo.meta["veilsum.digest"] == digest_in_process(by_bitsandbytes)


def lazy(params: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The params as NVFLARE's disk offload hands them over."""
    directory.mkdir()
    places = {}
    for name, values in params.items():
        path = str(directory / f"{name}.safetensors")
        save_file({"t": torch.as_tensor(values)}, path)
        places[name] = (path, "t")
    on_disk = LazyTensorDict(places, str(directory))
    return {name: on_disk.make_lazy_ref(name) for name in params}


def test_tensors_on_disk_are_read_and_give_the_same_digest(tmp_path: Path) -> None:
    dxo = summed({site: lazy(CHANGES[site], tmp_path / site) for site in SITES})

    assert dxo.meta["veilsum.digest"] == digest_in_process(CHANGES)


class CountedReference:
    """A reference that knows how many of its kind are in memory."""

    alive = 0
    most = 0

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def materialize(self) -> np.ndarray:
        gc.collect()
        loaded = _Loaded(self._values)
        return loaded.view()


class _Loaded(np.ndarray):
    def __new__(cls, values: np.ndarray) -> _Loaded:
        loaded = np.array(values).view(cls)
        CountedReference.alive += 1
        CountedReference.most = max(CountedReference.most, CountedReference.alive)
        loaded.counted = True
        return loaded

    def __del__(self) -> None:
        if getattr(self, "counted", False):
            CountedReference.alive -= 1


def test_of_the_tensors_on_disk_two_are_never_in_memory_together() -> None:
    model = {f"layer.{number}": np.zeros(64, np.float32) for number in range(20)}
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, model)
    references = {name: CountedReference(values) for name, values in model.items()}

    accepted = aggregator.accept(result("site-1", references), fl_ctx)

    assert accepted
    assert CountedReference.most <= 2  # the next one is loaded before the last name of one goes


@pytest.mark.parametrize("codec", CODECS)
def test_encoded_updates_survive_the_wire_and_are_decoded_as_they_are_summed(codec: str) -> None:
    flare_decomposers.register()
    common_decomposers.register()
    options = {"options": {"density": 0.1}} if codec == "topk" else {}
    sent = {}
    for site in SITES:
        task_filter = EncodeFilter(codec, **options)
        plain = DXO(DataKind.WEIGHT_DIFF, dict(CHANGES[site]), {"NUM_STEPS_CURRENT_ROUND": 1})
        sent[site] = task_filter.process(plain.to_shareable(), FLContext())

    arrived = {site: from_shareable(fobs.loads(fobs.dumps(sent[site]))) for site in SITES}
    dxo = summed(
        {site: arrived[site].data for site in SITES},
        {site: {ALGORITHM: arrived[site].meta[ALGORITHM]} for site in SITES},
    )

    updates = {site: arrived[site].data["update"].tobytes() for site in SITES}
    assert dxo.meta["veilsum.digest"] == digest_in_process(updates)
    # A decoded value is rounded to float32; in the sum, code times scale is not (numerics.md).
    decoded = {site: decode(update) for site, update in updates.items()}
    assert_rounded_once(dxo.data, mean(decoded, STEPS), atol=2.0**-25 * 0.2)


def test_an_encoded_update_and_a_plain_one_are_summed_together() -> None:
    update = encode(CHANGES["site-1"], "int8")
    params = {
        **CHANGES,
        "site-1": {"update": np.frombuffer(update.to_bytes(), "V1")},
    }
    metas = {site: {} for site in SITES} | {"site-1": {"PROCESSED_ALGORITHM": "veilsum.int8"}}

    dxo = summed(params, metas)

    assert dxo.meta["veilsum.digest"] == digest_in_process({**CHANGES, "site-1": update})


def test_stochastic_rounding_is_drawn_anew_for_each_update() -> None:
    task_filter = EncodeFilter("int8", stochastic=True)

    first, second = (
        task_filter.process_dxo(
            DXO(DataKind.WEIGHT_DIFF, dict(CHANGES["site-1"])), None, FLContext()
        )
        for _ in range(2)
    )

    assert not np.array_equal(first.data["update"], second.data["update"])


def test_a_whole_model_is_not_encoded_unless_the_job_says_so() -> None:
    dxo = DXO(DataKind.WEIGHTS, dict(CHANGES["site-1"]))

    with pytest.raises(ConfigError, match="whole model") as refusal:
        EncodeFilter("int8").process_dxo(dxo, None, FLContext())
    encoded = EncodeFilter("f32", models=True).process_dxo(dxo, None, FLContext())

    assert "TransferType.DIFF" in str(refusal.value.hint)
    assert encoded.data_kind == DataKind.WEIGHTS
    assert list(encoded.data) == ["update"]


def test_an_update_that_another_filter_has_worked_on_is_not_encoded() -> None:
    data, meta = quantized(CHANGES["site-1"], "blockwise8")

    with pytest.raises(ConfigError, match="processed by 'blockwise8' already"):
        EncodeFilter().process_dxo(DXO(DataKind.WEIGHT_DIFF, data, meta), None, FLContext())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"codec": "int9"}, "unknown codec"),
        ({"options": {"blocks": 5}}, "no option 'blocks'"),
        ({"codec": "f16", "stochastic": True}, "does not round at random"),
    ],
)
def test_a_filter_that_cannot_work_is_refused_when_the_job_is_made(
    arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        EncodeFilter(**arguments)


def changed(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("data", "algorithm", "reason"),
    [
        (changed(encode(CHANGES["site-1"], "int8").to_bytes(), 4000), "veilsum.int8", "digest"),
        (encode(CHANGES["site-1"], "int8").to_bytes(), "veilsum.int4", "the update is int8"),
        (encode({"w": MODEL["w"]}, "int8").to_bytes(), "veilsum.int8", "another layout"),
        (b"", "veilsum.int8", "head has at least"),
    ],
)
def test_bytes_that_are_no_such_update_cost_the_site_the_round(
    data: bytes, algorithm: str, reason: str
) -> None:
    aggregator = VeilsumAggregator()
    fl_ctx = begin(aggregator, MODEL)
    sent = {"update": np.frombuffer(data, "V1")}

    bad = aggregator.accept(
        result("site-2", sent, kind="WEIGHT_DIFF", PROCESSED_ALGORITHM=algorithm), fl_ctx
    )
    good = aggregator.accept(result("site-1", CHANGES["site-1"], kind="WEIGHT_DIFF"), fl_ctx)
    aggregator.aggregate(fl_ctx)

    assert (bad, good) == (False, True)
    assert reason in aggregator.rounds[0].refused["site-2"]


def test_nvflares_own_aggregator_fails_over_encoded_updates() -> None:
    host = InTimeAccumulateWeightedAggregator(expected_data_kind=DataKind.WEIGHT_DIFF)
    fl_ctx = begin(VeilsumAggregator(), MODEL)
    host.handle_event(EventType.START_RUN, fl_ctx)
    task_filter = EncodeFilter("int8")
    encoded = task_filter.process(
        result("site-1", CHANGES["site-1"], kind="WEIGHT_DIFF"), FLContext()
    )

    with pytest.raises(TypeError):
        host.accept(encoded, fl_ctx)
