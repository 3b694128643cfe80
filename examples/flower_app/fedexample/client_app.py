"""A site: nothing here is veilsum's."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedexample.task import accuracy, data_of, train

# With veilsum.integrations.flower.encode_mod and ClientApp(mods=[encode_mod("int8",
# difference=True)]), updates travel in a fourth of the bytes. The server then needs
# FedAvg(difference=True).
app = ClientApp()


@app.train()
def train_here(message: Message, context: Context) -> Message:
    site = int(context.node_config["partition-id"])
    config = message.content.config_records["config"]
    # To see what a site that is lost costs: flower-supernode --node-config "fails-in-round=2 ..."
    if config["server-round"] == context.node_config.get("fails-in-round"):
        raise RuntimeError(f"site {site} was told to fail")
    received = message.content.array_records["arrays"]
    model = train({name: array.numpy() for name, array in received.items()}, site)
    metrics = MetricRecord(
        {"num-examples": len(data_of(site)[0]), "accuracy": accuracy(model, site)}
    )
    arrays = ArrayRecord({name: Array(values) for name, values in model.items()})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
