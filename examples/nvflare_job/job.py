"""An NVFLARE job whose server sums with veilsum, in NVFLARE's simulator: python job.py [WORKSPACE]

Needs the extra `nvflare`. Writes to ./workspace, or to the directory that is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe import SimEnv

from veilsum.integrations.nvflare import VeilsumAggregator


def main(workspace: str) -> None:
    recipe = NumpyFedAvgRecipe(
        name="least_squares",
        model=[0.0] * 8,
        min_clients=3,
        num_rounds=2,
        train_script=str(Path(__file__).with_name("client.py")),
        aggregator=VeilsumAggregator(expected_data_kind="WEIGHTS"),  # the one line
        key_metric="loss",
        key_metric_mode="min",
    )
    recipe.execute(SimEnv(num_clients=3, workspace_root=workspace))
    saved = Path(workspace, "least_squares", "server", "simulate_job", "models", "server.npy")
    print(f"model: {np.load(saved).round(3)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "workspace")
