"""The server: one line is not Flower's."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedexample.task import initial_model
from veilsum.integrations.flower import FedAvg  # was: from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    sites = int(context.run_config["min-sites"])
    strategy = FedAvg(min_train_nodes=sites, min_available_nodes=sites, fraction_evaluate=0.0)
    strategy.start(
        grid,
        initial_arrays=ArrayRecord({name: Array(a) for name, a in initial_model().items()}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
