"""Real NVFLARE jobs of 3 sites and 2 rounds, in NVFLARE's simulator, against a replay of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import veilsum
from veilsum import Aggregator, ModelLayout, encode

pytest.importorskip("nvflare", reason="nvflare is not installed (extra `nvflare`)")

from support.nvflare_quantizer import quantized, restored
from support.nvflare_results import assert_rounded_once, mean
from support.nvflare_site import accuracy_of, steps_of, trained

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "support" / "nvflare_job.py"
SITES, ROUNDS = 3, 2
ENTRY = "veilsum.integrations.nvflare."

Arrays = dict[str, Any]


def run_job(workspace: Path, **wanted: Any) -> tuple[int, str]:
    """Exit status and output of the simulator."""
    # The package under test, wherever it is installed.
    path = os.pathsep.join([str(Path(veilsum.__file__).parents[1]), str(ROOT / "tests")])
    finished = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps({"workspace": str(workspace), **wanted})],
        env=os.environ | {"PYTHONPATH": path},
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    return finished.returncode, finished.stdout + finished.stderr


def digests_in(output: str) -> list[str]:
    """What the aggregator logged of each round."""
    return re.findall(r"round \d: 3 results summed, 0 refused, digest ([0-9a-f]{64})", output)


def final_model(workspace: Path) -> dict[str, np.ndarray]:
    path = workspace / "job" / "server" / "simulate_job" / "app_server" / "FL_global_model.pt"
    saved = torch.load(path, weights_only=False)
    return {name: values.numpy() for name, values in saved["model"].items()}


def initial(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in module.state_dict().items()}


def replayed(
    model: dict[str, np.ndarray], update_of: Callable[[Arrays, Arrays], Any], *, difference: bool
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Digests of the rounds and the last model, of sums in this process.

    Args:
        update_of: what arrives of a trained model, given the received one too.
    """
    digests = []
    for number in range(ROUNDS):
        total = Aggregator(ModelLayout.from_arrays(model))
        for site in range(1, SITES + 1):
            update = update_of(trained(model, site, number), model)
            total.add(update, weight=steps_of(site), site=f"site-{site}")
        result = total.finish()
        digests.append(result.digest)
        step = result.arrays
        model = {n: model[n] + step[n] for n in model} if difference else step
    return digests, model


def subtracted(new: Arrays, old: Arrays) -> Arrays:
    return {name: new[name] - old[name] for name in new}


def assert_is_the_last_mean(final: dict[str, np.ndarray], model: dict[str, np.ndarray]) -> None:
    """Of models that are sent whole, against NumPy alone."""
    for number in range(ROUNDS):
        updates = {f"site-{s}": trained(model, s, number) for s in range(1, SITES + 1)}
        exact = mean(updates, {f"site-{s}": steps_of(s) for s in range(1, SITES + 1)})
        model = {
            name: np.rint(values).astype(model[name].dtype)
            if model[name].dtype.kind == "i"
            else values.astype(model[name].dtype)
            for name, values in exact.items()
        }
    assert list(final) == list(model)
    for name, values in model.items():
        assert final[name].dtype == values.dtype
        np.testing.assert_allclose(final[name], values, rtol=2.0**-22, atol=2.0**-24)


def test_a_fed_avg_job_with_one_changed_line_ends_with_the_exact_mean(tmp_path: Path) -> None:
    start = initial(torch.nn.BatchNorm1d(6))

    status, output = run_job(tmp_path)

    assert status == 0, output[-4000:]
    final = final_model(tmp_path)
    expected, model = replayed(start, lambda new, _: new, difference=False)
    assert digests_in(output) == expected
    assert {name: values.tolist() for name, values in final.items()} == {
        name: values.tolist() for name, values in model.items()
    }
    assert_is_the_last_mean(final, start)
    steps = [steps_of(site) for site in range(1, SITES + 1)]
    accuracy = np.average([accuracy_of(site, 1) for site in range(1, SITES + 1)], weights=steps)
    metrics = tmp_path / "job" / "server" / "simulate_job" / "metrics" / "round_metrics.jsonl"
    assert f"{accuracy:.6f}"[:7] in metrics.read_text()


def test_a_job_without_code_of_its_own_is_refused_without_the_allow_list_entry(
    tmp_path: Path,
) -> None:
    status, output = run_job(tmp_path, workflow="scatter_and_gather")

    assert status != 0
    assert (
        "component not authorized: Component "
        "'veilsum.integrations.nvflare.aggregator.VeilsumAggregator' at config path "
        "'components.#3' is not in allow_list"
    ) in output
    assert digests_in(output) == []


@pytest.mark.slow
def test_a_scatter_and_gather_job_runs_with_the_entry(tmp_path: Path) -> None:
    status, output = run_job(tmp_path, workflow="scatter_and_gather", allow=[ENTRY])

    assert status == 0, output[-4000:]
    saved = np.load(tmp_path / "job" / "server" / "simulate_job" / "models" / "server.npy")
    model = {"numpy_key": np.array([[1.0, 2.5], [-3.0, 4.0]], np.float32)}
    digests = []
    for _ in range(ROUNDS):
        total = Aggregator(ModelLayout.from_arrays(model))
        for site in range(1, SITES + 1):
            update = {"numpy_key": model["numpy_key"] + 0.1 * site}
            total.add(update, weight=1, site=f"site-{site}")
        result = total.finish()
        model = result.arrays
        digests.append(result.digest)
    assert digests_in(output) == digests
    assert np.array_equal(saved, model["numpy_key"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["blockwise8", "normfloat4"])
def test_a_job_with_quantized_updates_sums_what_bitsandbytes_reads(
    tmp_path: Path, method: str
) -> None:
    def arrives(new: Arrays, old: Arrays) -> Arrays:
        return restored(*quantized(subtracted(new, old), method), method)

    status, output = run_job(tmp_path, difference=True, quantize=method)

    assert status == 0, output[-4000:]
    expected, model = replayed(initial(torch.nn.LayerNorm([5000])), arrives, difference=True)
    assert digests_in(output) == expected
    assert_rounded_once(final_model(tmp_path), model)


@pytest.mark.slow
def test_a_job_with_encoded_updates_sums_them_as_the_engine_does(tmp_path: Path) -> None:
    status, output = run_job(tmp_path, difference=True, encode={"codec": "int8"})

    assert status == 0, output[-4000:]
    expected, model = replayed(
        initial(torch.nn.BatchNorm1d(6)),
        lambda new, old: encode(subtracted(new, old), "int8"),
        difference=True,
    )
    assert digests_in(output) == expected
    assert_rounded_once(final_model(tmp_path), model)


@pytest.mark.slow
def test_a_job_with_tensors_on_disk_has_the_digests_of_one_with_tensors_in_memory(
    tmp_path: Path,
) -> None:
    status, output = run_job(tmp_path, offload=True)

    assert status == 0, output[-4000:]
    expected, _ = replayed(initial(torch.nn.BatchNorm1d(6)), lambda new, _: new, difference=False)
    assert digests_in(output) == expected
