"""Every example runs, and what it prints is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import veilsum

EXAMPLES = Path(__file__).parents[1] / "examples"
LAYOUT = veilsum.ModelLayout.from_arrays({"w": np.zeros((64, 8), np.float32)})


def printed_by(example: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / example)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def code_lines(example: str) -> int:
    """Lines that are neither blank nor comments nor docstrings."""
    source = (EXAMPLES / example).read_text()
    tree = ast.parse(source)
    code = ast.unparse(ast.Module(tree.body[1:], []))
    return sum(1 for line in code.splitlines() if line.strip())


@pytest.mark.parametrize("example", ["in_process_round.py", "numpy_loop.py"])
def test_an_example_runs_and_its_claims_hold(example: str) -> None:
    printed = printed_by(example)

    assert "True" in printed
    assert "False" not in printed


def test_torch_state_dicts_keep_bfloat16_and_whole_counters() -> None:
    printed = printed_by("torch_state_dicts.py")

    # (7 * 120 + 2 * 45 + 19 * 310) / 475 = 14.36
    assert "batches seen [7, 2, 19], on average 14\n" in printed
    assert "torch.bfloat16 head equals the float64 mean, rounded once: True\n" in printed


def test_the_mean_of_both_lora_factors_is_off_and_both_remedies_are_exact() -> None:
    both, frozen, products = printed_by("lora.py").splitlines()

    assert int(re.search(r"off by (\d+)%", both)[1]) > 20  # type: ignore[index]
    assert float(re.search(r"off by (\S+)$", frozen)[1]) < 1e-6  # type: ignore[index]
    assert float(re.search(r"off by (\S+),", products)[1]) < 1e-6  # type: ignore[index]
    assert products.endswith("rank 8")  # two sites of rank 4


def test_the_forty_line_server_has_forty_lines() -> None:
    assert code_lines("forty_line_server.py") <= 40


@pytest.fixture
def address() -> Iterator[str]:
    """Where a fresh forty-line server serves."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "forty_line_server.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=240)


def post(address: str, site: str, weight: int, body: bytes) -> int:
    request = urllib.request.Request(f"{address}/updates/{site}?weight={weight}", data=body)
    try:
        with urllib.request.urlopen(request, timeout=240) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def update(value: float, shape: tuple[int, ...] = (64, 8)) -> bytes:
    arrays = {"w": np.full(shape, value, np.float32)}
    return veilsum.encode(arrays, codec="f32").to_bytes()


def test_the_forty_line_server_averages_what_is_posted(address: str) -> None:
    codes = [post(address, "rome", 100, update(1.0)), post(address, "turin", 300, update(3.0))]

    with urllib.request.urlopen(f"{address}/mean", timeout=240) as answer:
        mean = veilsum.decode(veilsum.EncodedUpdate.from_bytes(answer.read()))
    assert codes == [200, 200]
    np.testing.assert_array_equal(mean["w"], np.full((64, 8), 2.5, np.float32))


@pytest.mark.parametrize(
    ("weight", "body", "code"),
    [
        (0, update(1.0), 400),
        (1, b"not an update", 400),
        (1, update(1.0, shape=(8, 8)), 400),
        (1, bytes(9000), 413),
    ],
    ids=["weight", "bytes", "layout", "size"],
)
def test_the_forty_line_server_refuses_one_bad_update_and_goes_on(
    address: str, weight: int, body: bytes, code: int
) -> None:
    assert post(address, "rome", weight, body) == code
    assert post(address, "rome", 100, update(1.0)) == 200
    assert post(address, "rome", 100, update(1.0)) == 400  # it has one


def test_the_forty_line_server_has_no_mean_before_the_first_update(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(f"{address}/mean", timeout=240)

    refused.value.close()


def test_the_page_on_embedding_shows_code_that_runs(tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "docs" / "embedding.md").read_text()
    code = page.split("## No framework\n")[1].split("```python\n")[1].split("```")[0]
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    doubled = {name: values * 2 for name, values in model.state_dict().items()}
    expected = {name: values * 1.5 for name, values in model.state_dict().items()}
    replies = [("rome", model.state_dict(), 100), ("turin", doubled, 100)]

    exec(
        code.replace("/var/tmp/round-7", str(tmp_path)),
        {"model": model, "replies": replies, "torch": torch},
    )

    for name, values in model.state_dict().items():
        torch.testing.assert_close(values, expected[name].to(values.dtype))
