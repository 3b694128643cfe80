"""encode_mod: updates travel encoded, and are decoded while the server sums."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from veilsum import ConfigError, EncodedUpdate, ModelLayout, decode, encode

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as host
from flwr.serverapp.exception import AggregationError

from support.flower_grid import (
    LocalGrid,
    error_reply,
    over_the_wire,
    record_of,
    train_reply,
)
from veilsum.integrations.flower import FedAvg, encode_mod
from veilsum.integrations.flower.arrays import read_arrays, to_record

pytestmark = pytest.mark.usefixtures("flower_task")

WEIGHTS = {1: 10, 2: 250, 3: 33}
MODEL = {
    "weight": np.random.default_rng(0).normal(size=(60, 50)).astype(np.float32),
    "bias": np.full(60, 3.0, np.float32),
    "num_batches_tracked": np.array(7, np.int64),
}


def trained(node: int) -> dict[str, np.ndarray]:
    """A little away from the model."""
    random = np.random.default_rng(node)
    return {
        "weight": MODEL["weight"] + random.normal(scale=0.01, size=(60, 50)).astype(np.float32),
        "bias": MODEL["bias"] + random.normal(scale=0.01, size=60).astype(np.float32),
        "num_batches_tracked": MODEL["num_batches_tracked"] + np.array(node),
    }


def train(message: Message, context: Context) -> Message:
    node = message.metadata.dst_node_id
    return train_reply(message, trained(node), WEIGHTS[node])


class Client:
    """A node whose app has a mod, and which keeps its state from message to message."""

    def __init__(self, mod, app=train) -> None:
        self.mod, self.app = mod, app
        self.context = Context(
            run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}
        )
        self.sent: list[ArrayRecord] = []

    def __call__(self, message: Message) -> Message:
        reply = self.mod(over_the_wire(message), self.context, self.app)
        if reply.has_content():
            self.sent.extend(reply.content.array_records.values())
        return reply


def run(mod, strategy, rounds=1):
    clients = {node: Client(mod) for node in WEIGHTS}
    result = strategy.start(LocalGrid(clients), record_of(MODEL), num_rounds=rounds)
    return clients, result


def evaluation_free(**settings) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, **settings)


def mean_of(updates) -> dict[str, np.ndarray]:
    """In double precision."""
    return {
        name: np.average([update[name].astype(float) for update in updates.values()], 0,
                         list(WEIGHTS.values()))
        for name in MODEL
    }  # fmt: skip


def test_an_update_travels_as_one_array_of_the_codecs_stype():
    clients, _ = run(encode_mod("int8"), evaluation_free())

    (array,) = clients[2].sent[0].values()
    update = EncodedUpdate.from_bytes(array.data)
    assert (array.stype, array.dtype, array.shape) == ("veilsum.int8", "uint8", (len(array.data),))
    assert update.layout == ModelLayout.from_arrays(MODEL)
    assert len(array.data) < 0.35 * sum(values.nbytes for values in MODEL.values())


def test_models_are_encoded_by_default_and_the_mean_is_that_of_what_was_sent():
    _, result = run(encode_mod("int8"), evaluation_free())

    expected = mean_of({node: decode(encode(trained(node), "int8")) for node in WEIGHTS})
    found = read_arrays(result.arrays)
    np.testing.assert_allclose(found["weight"], expected["weight"], rtol=1e-6, atol=1e-6)
    assert found["num_batches_tracked"] == np.rint(expected["num_batches_tracked"])
    assert found["num_batches_tracked"].dtype == np.int64


def test_differences_of_the_same_bytes_keep_the_model_far_closer():
    expected = mean_of({node: trained(node) for node in WEIGHTS})

    errors = {}
    for difference in (False, True):
        _, result = run(
            encode_mod("int8", difference=difference), evaluation_free(difference=difference)
        )
        found = read_arrays(result.arrays)
        errors[difference] = np.abs(found["weight"] - expected["weight"]).max()
        assert found["num_batches_tracked"] == np.rint(expected["num_batches_tracked"])

    assert errors[True] < 5e-4
    assert errors[False] > 20 * errors[True]


@pytest.mark.parametrize(("mod", "strategy"), [(False, True), (True, False)])
def test_a_mod_and_a_strategy_that_do_not_fit_fail_with_the_remedy(mod, strategy):
    remedy = "set difference=True" if mod else "let sites encode differences"

    with pytest.raises(AggregationError, match=f"no reply of 3 can be used.*{remedy}"):
        run(encode_mod("int8", difference=mod), evaluation_free(difference=strategy))


def test_flowers_own_strategy_refuses_what_the_mod_sends():
    with pytest.raises(TypeError, match="Unsupported serialization type"):
        run(encode_mod("int8"), host.FedAvg(fraction_evaluate=0.0))


def test_plain_and_encoded_sites_can_take_part_in_one_round():
    grid = LocalGrid({1: Client(encode_mod("f32")), 2: Client(encode_mod("f32")),
                      3: lambda message: train(message, None)})  # fmt: skip

    result = evaluation_free().start(grid, record_of(MODEL), num_rounds=1)

    expected = mean_of({node: trained(node) for node in WEIGHTS})["weight"]
    found = read_arrays(result.arrays)["weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("damage", [
    lambda data: b"",
    lambda data: data[:-1],
    lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
    lambda data: encode({"other": np.ones(3, np.float32)}, "int8").to_bytes(),
    lambda data: encode(trained(2), "f16").to_bytes(),
], ids=["empty", "cut off", "a bit", "another model", "another codec"])  # fmt: skip
def test_a_damaged_payload_costs_its_site_the_round(damage):
    def damaging(message: Message) -> Message:
        reply = encode_mod("int8")(message, Client(None).context, train)
        (array,) = reply.content["arrays"].values()
        array.data = damage(array.data)
        return reply

    grid = LocalGrid({1: Client(encode_mod("int8")), 2: damaging, 3: Client(encode_mod("int8"))})
    strategy = evaluation_free()
    strategy.start(grid, record_of(MODEL), num_rounds=1)

    assert list(strategy.rounds[1].refused) == ["2"]
    assert strategy.rounds[1].sites == ("1", "3")


def test_a_native_payload_is_alone_in_its_record():
    def doubling(message: Message) -> Message:
        reply = encode_mod("int8")(message, Client(None).context, train)
        reply.content["arrays"]["more"] = Array(np.ones(1, np.float32))
        return reply

    grid = LocalGrid({1: Client(encode_mod("int8")), 2: doubling, 3: Client(encode_mod("int8"))})
    strategy = evaluation_free()
    strategy.start(grid, record_of(MODEL), num_rounds=1)

    assert "is one array, the record has 2" in strategy.rounds[1].refused["2"]


def test_stochastic_rounding_is_fresh_for_each_update():
    mod = encode_mod("int8", stochastic=True)
    first, _ = run(mod, evaluation_free())
    second, _ = run(mod, evaluation_free())

    assert first[1].sent != second[1].sent
    nearest = [run(encode_mod("int8"), evaluation_free())[0][1].sent for _ in range(2)]
    assert nearest[0] == nearest[1]


def test_what_a_biased_codec_loses_is_made_up_for_in_later_rounds():
    plain = encode_mod("topk", difference=True, density=0.05)
    feedback = encode_mod("topk", difference=True, density=0.05, error_feedback=True)

    lost = {}
    for name, mod in {"plain": plain, "feedback": feedback}.items():
        client = Client(mod)
        strategy = evaluation_free()
        message = next(iter(strategy.configure_train(
            1, record_of(MODEL), ConfigRecord(), LocalGrid(dict.fromkeys(WEIGHTS, client))
        )))  # fmt: skip
        total = np.zeros(MODEL["weight"].shape)
        for _ in range(30):
            client(message)
            (array,) = client.sent[-1].values()
            total += decode(array.data)["weight"]
        node = message.metadata.dst_node_id
        change = trained(node)["weight"].astype(float) - MODEL["weight"]
        lost[name] = np.linalg.norm(total - 30 * change)

    assert lost["feedback"] < 0.5 * lost["plain"]
    assert list(client.context.state.array_records) == ["veilsum.error-feedback"]


@pytest.mark.parametrize("error_feedback", [False, True])
def test_bfloat16_is_encoded_and_summed_as_such(error_feedback):
    values = {node: trained(node)["weight"].astype(ml_dtypes.bfloat16) for node in WEIGHTS}
    layout = ModelLayout.from_arrays({"w": values[1]})

    def train_bfloat16(message: Message, context: Context) -> Message:
        node = message.metadata.dst_node_id
        return train_reply(message, to_record(layout, {"w": values[node]}), WEIGHTS[node])

    mod = encode_mod("bf16", error_feedback=error_feedback)
    grid = LocalGrid({node: Client(mod, train_bfloat16) for node in WEIGHTS})
    result = evaluation_free().start(grid, to_record(layout, {"w": MODEL["weight"]}), num_rounds=1)

    expected = np.average([v.astype(float) for v in values.values()], 0, list(WEIGHTS.values()))
    patterns = read_arrays(result.arrays)["w"]
    assert np.array_equal(patterns, expected.astype(ml_dtypes.bfloat16).view(np.uint16))
    assert result.arrays["w"].dtype == "bfloat16"


def test_evaluations_and_errors_pass_as_they_are():
    def evaluate(message: Message, context: Context) -> Message:
        content = RecordDict({"metrics": MetricRecord({"num-examples": 5, "loss": 0.5})})
        return Message(content, reply_to=message)

    mod = encode_mod("int8")
    grid = LocalGrid(dict.fromkeys(WEIGHTS, Client(mod, evaluate)))
    result = FedAvg(fraction_train=0.0).start(grid, record_of(MODEL), num_rounds=1)
    failing = Client(mod, lambda message, context: error_reply(message, "no memory"))
    message = next(iter(FedAvg().configure_train(1, record_of(MODEL), ConfigRecord(), grid)))

    assert result.evaluate_metrics_clientapp[1]["loss"] == 0.5
    assert failing(message).error.reason == "no memory"


def test_a_difference_is_to_the_model_as_it_was_received():
    def overwriting(message: Message, context: Context) -> Message:
        reply = train(message, context)
        message.content["arrays"] = ArrayRecord()
        return reply

    clients = {node: Client(encode_mod("f32", difference=True), overwriting) for node in WEIGHTS}
    result = evaluation_free(difference=True).start(
        LocalGrid(clients), record_of(MODEL), num_rounds=1
    )

    expected = mean_of({node: trained(node) for node in WEIGHTS})["weight"]
    found = read_arrays(result.arrays)["weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_client_that_cannot_take_the_difference_says_what_differs():
    def casting(message: Message, context: Context) -> Message:
        return train_reply(message, {"weight": np.zeros((60, 50))}, 1)

    client = Client(encode_mod("int8", difference=True), casting)
    grid = LocalGrid(dict.fromkeys(WEIGHTS, client))
    message = next(iter(FedAvg().configure_train(1, record_of(MODEL), ConfigRecord(), grid)))

    with pytest.raises(ConfigError, match="names, dtypes, shapes or their order differ"):
        client(message)


@pytest.mark.parametrize(("settings", "complaint"), [
    ({"codec": "int9"}, "int9"),
    ({"codec": "int8", "blok": 32}, "no option 'blok'"),
    ({"codec": "nf4", "stochastic": True}, "does not round at random"),
    ({"codec": "int8", "error_feedback": True, "update_id": 3}, "is of one update"),
], ids=str)  # fmt: skip
def test_settings_that_cannot_work_are_refused_when_the_app_is_loaded(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        encode_mod(**settings)
