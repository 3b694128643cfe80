"""The same app in masked rounds: the server sees the sum of the updates, and none of them.

In pyproject.toml: serverapp = "fedexample.masked:server_app", and the like for clientapp.
"""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedexample.client_app import train_here
from fedexample.task import initial_model
from veilsum.control import Deadlines, RunSpec
from veilsum.integrations.flower import SecureFedAvg, secagg_mod

client_app = ClientApp(mods=[secagg_mod()])
client_app.train()(train_here)

server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    minutes = 60.0 * float(config["minutes-per-stage"])
    spec = RunSpec(
        "fedexample",
        clip=8.0,
        weight_cap=300,
        value_bits=24,
        metrics=("accuracy",),
        deadlines=Deadlines(minutes, minutes, minutes, minutes, minutes, minutes, minutes),
    )
    strategy = SecureFedAvg(
        spec, roster=str(config["roster"]), signing_key=str(config["signing-key"])
    )
    result = strategy.start(
        grid,
        initial_arrays=ArrayRecord({name: Array(a) for name, a in initial_model().items()}),
        num_rounds=int(config["num-server-rounds"]),
    )
    assert result.arrays is not None
    np.savez(str(config["save"]), **{name: a.numpy() for name, a in result.arrays.items()})
