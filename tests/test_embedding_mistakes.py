"""What somebody who embeds the sum gives wrongly at first is an error that says what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from veilsum import Aggregator, ModelLayout, VeilsumError

VALUE = 0.28125  # of no update may a digit stand in an error
UPDATE: dict[str, Any] = {"w": torch.full((3, 4), VALUE), "n": torch.zeros(2, dtype=torch.int64)}
LAYOUT = ModelLayout.from_arrays(UPDATE)


def add(update: Any = UPDATE, *, weight: Any = 1, site: Any = "rome", **options: Any) -> None:
    Aggregator(LAYOUT).add(update, weight=weight, site=site, **options)


@pytest.mark.parametrize(
    ("mistake", "message", "hint"),
    [
        (lambda: add(weight=0.5), "weight 0.5, which is not a whole number", "scale the weights"),
        (lambda: add(site=3), "a site's name must be a str, got int", "str(...)"),
        (lambda: add(gain="1"), "gain must be a number, got str", "None"),
        (lambda: add({"w": UPDATE["w"]}), r"1 \('n'\) missing, none unknown", "from the tensors"),
        (lambda: add(torch.nn.Linear(2, 2)), "an update cannot be a Linear", "arrays by name"),
        (
            lambda: add({**UPDATE, "w": np.ma.masked_less(np.full((3, 4), VALUE, "f4"), 1)}),
            "'w' is a masked array",
            "fill it first",
        ),
        (
            lambda: ModelLayout.from_arrays({"m": torch.ones(2, dtype=torch.bool)}),
            "'m' of dtype torch.bool",
            "convert the tensor to one of f16",
        ),
        (
            lambda: ModelLayout.from_arrays(torch.nn.Linear(2, 2)),  # type: ignore[arg-type]
            "arrays by name, not of a Linear",
            "state_dict()",
        ),
        (
            lambda: Aggregator(UPDATE),  # type: ignore[arg-type]
            "for a ModelLayout, not for a dict",
            "ModelLayout.from_arrays",
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_mistake_is_named_with_its_remedy(
    mistake: Callable[[], object], message: str, hint: str
) -> None:
    with pytest.raises(VeilsumError, match=message) as refused:
        mistake()

    assert str(VALUE) not in str(refused.value)
    assert hint in str(refused.value.hint)


def strided() -> torch.Tensor:
    return torch.full((4, 3), VALUE).T


@pytest.mark.parametrize(
    "tensor",
    [
        strided(),
        torch.nn.Parameter(torch.full((3, 4), VALUE)),
        (strided().requires_grad_() * 1),
        torch.full((1, 4), VALUE).expand(3, 4),
        torch.full((3, 4), -1j * VALUE).conj().imag,
    ],
    ids=["strided", "parameter", "strided with a gradient", "expanded", "lazily negated"],
)
def test_every_kind_of_tensor_is_read_as_its_values(tensor: torch.Tensor) -> None:
    aggregator = Aggregator(LAYOUT)

    # In another order than the layout's, too.
    aggregator.add({"n": UPDATE["n"], "w": tensor}, weight=1, site="rome")

    np.testing.assert_array_equal(aggregator.finish().arrays["w"], np.full((3, 4), VALUE, "f4"))
