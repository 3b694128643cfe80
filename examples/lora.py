"""LoRA adapters: partial state dicts, and why averaging both factors is not what you want.

A site trains W + B A with small A and B. The mean of the sites' products B A is not the product
of their mean factors. Averaging one factor and freezing the other is exact (FFA-LoRA, Sun et al.
2024, arXiv 2403.12313), and so is averaging the products.
"""

from __future__ import annotations

import torch

import veilsum

IN, OUT, RANK = 32, 16, 4
SAMPLES = {"rome": 100, "turin": 300}


def train(site: str, *, freeze_a: bool) -> dict[str, torch.Tensor]:
    """Stands for training: the adapter only, which is all that leaves the site."""
    shared = torch.randn(RANK, IN, generator=torch.Generator().manual_seed(0))
    own = torch.Generator().manual_seed(SAMPLES[site])
    down = shared if freeze_a else torch.randn(RANK, IN, generator=own)
    return {
        "layer.0.lora_A.weight": down,
        "layer.0.lora_B.weight": torch.randn(OUT, RANK, generator=own),
    }


def mean(updates: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The layout comes from the adapter's own keys: the base model never enters the sum."""
    layout = veilsum.ModelLayout.from_arrays(next(iter(updates.values())))
    aggregator = veilsum.Aggregator(layout)
    for site, update in updates.items():
        aggregator.add(update, weight=SAMPLES[site], site=site)
    return {name: torch.from_numpy(a) for name, a in aggregator.finish().arrays.items()}


def product(adapter: dict[str, torch.Tensor]) -> torch.Tensor:
    return adapter["layer.0.lora_B.weight"] @ adapter["layer.0.lora_A.weight"]


def error(found: torch.Tensor, updates: dict[str, dict[str, torch.Tensor]]) -> float:
    """Distance from the mean of the products, relative to it."""
    total = sum(SAMPLES.values())
    wanted = sum(SAMPLES[s] * product(u).double() for s, u in updates.items()) / total
    return float((found - wanted).norm() / wanted.norm())


def main() -> None:
    both = {site: train(site, freeze_a=False) for site in SAMPLES}
    print(f"mean of A times mean of B:   off by {error(product(mean(both)), both):.0%}")

    frozen = {site: train(site, freeze_a=True) for site in SAMPLES}
    b_only = {s: {k: v for k, v in u.items() if "lora_B" in k} for s, u in frozen.items()}
    adapter = {**frozen["rome"], **mean(b_only)}  # half the bytes, and a plain mean is right
    print(f"A frozen, mean of B:         off by {error(product(adapter), frozen):.0e}")

    products = {site: {"layer.0.delta": product(update)} for site, update in both.items()}
    delta = mean(products)["layer.0.delta"]
    rank = int(torch.linalg.matrix_rank(delta))
    print(f"mean of products:            off by {error(delta, both):.0e}, but of rank {rank}")


if __name__ == "__main__":
    main()
