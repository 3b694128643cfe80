"""Runs one NVFLARE job in the simulator, in a process of its own: python nvflare_job.py '<json>'.

The simulator starts processes and threads and stays in the process that called it.

Keys of the JSON, all but the first optional:
    workspace: directory for everything that the simulator writes.
    workflow: "fed_avg" (FedAvgRecipe of PyTorch, a model of torch.nn) or "scatter_and_gather"
        (components of NVFLARE alone, so that the job carries no code).
    aggregator: arguments of VeilsumAggregator.
    difference: sites send differences.
    quantize: a method of support.nvflare_quantizer's filter.
    encode: arguments of EncodeFilter.
    offload: NVFLARE keeps tensors on disk until the aggregator takes them.
    allow: entries of the simulator's class_allow_list beside NVFLARE's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.client.config import ExchangeFormat, TransferType
from nvflare.recipe import SimEnv

from veilsum.integrations.nvflare import EncodeFilter, VeilsumAggregator

SITES, ROUNDS = 3, 2
# Both start the same everywhere. ModelQuantizer refuses integer tensors, which the first one has.
MODEL = {"class_path": "torch.nn.BatchNorm1d", "args": {"num_features": 6}}
FLOATS = {"class_path": "torch.nn.LayerNorm", "args": {"normalized_shape": [5000]}}


def fed_avg(wanted: dict[str, Any]) -> Any:
    from nvflare.app_opt.pt.recipes import FedAvgRecipe

    tensors = wanted.get("offload", False)
    recipe = FedAvgRecipe(
        name="job",
        model=FLOATS if "quantize" in wanted else MODEL,
        min_clients=SITES,
        num_rounds=ROUNDS,
        train_script=str(Path(__file__).with_name("nvflare_site.py")),
        aggregator=VeilsumAggregator(**wanted.get("aggregator", {})),
        params_transfer_type=TransferType.DIFF if wanted.get("difference") else TransferType.FULL,
        server_expected_format=ExchangeFormat.PYTORCH if tensors else ExchangeFormat.NUMPY,
        enable_tensor_disk_offload=tensors,
    )
    if "quantize" in wanted:
        from support.nvflare_quantizer import Quantizer

        recipe.add_client_output_filter(Quantizer(wanted["quantize"]), tasks=["train"])
    if "encode" in wanted:
        recipe.add_client_output_filter(EncodeFilter(**wanted["encode"]), tasks=["train"])
    return recipe


def scatter_and_gather(wanted: dict[str, Any]) -> Any:
    from nvflare.app_common.np.np_model_persistor import NPModelPersistor
    from nvflare.app_common.np.np_trainer import NPTrainer
    from nvflare.app_common.shareablegenerators.full_model_shareable_generator import (
        FullModelShareableGenerator,
    )
    from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
    from nvflare.job_config.api import FedJob

    job = FedJob(name="job", min_clients=SITES)
    job.set_app_packages(["veilsum"])  # installed at the server: the job carries no copy of it
    job.to_server(NPModelPersistor(model=[[1.0, 2.5], [-3.0, 4.0]]), id="persistor")
    job.to_server(FullModelShareableGenerator(), id="shareable_generator")
    job.to_server(VeilsumAggregator(**wanted.get("aggregator", {})), id="aggregator")
    job.to_server(ScatterAndGather(min_clients=SITES, num_rounds=ROUNDS, persistor_id="persistor"))
    for site in range(1, SITES + 1):
        job.to(NPTrainer(delta=0.1 * site), f"site-{site}", tasks=["train"])
    return job


def main(wanted: dict[str, Any]) -> None:
    workspace = Path(wanted["workspace"])
    if "allow" in wanted:
        local = workspace / "job" / "local"
        local.mkdir(parents=True)
        allowed = [*DEFAULT_CLASS_ALLOW_LIST, *wanted["allow"]]
        (local / "resources.json").write_text(
            json.dumps({"format_version": 2, "class_allow_list": allowed})
        )
    clients = [f"site-{site}" for site in range(1, SITES + 1)]
    env = SimEnv(clients=clients, workspace_root=str(workspace))
    if wanted.get("workflow") == "scatter_and_gather":
        env.deploy(scatter_and_gather(wanted))
    else:
        fed_avg(wanted).execute(env)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
