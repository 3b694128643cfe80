"""State dicts of torch, averaged in one process: bfloat16 weights and BatchNorm's counter too."""

from __future__ import annotations

import torch
from torch import nn

import veilsum

SAMPLES = {"rome": 120, "turin": 45, "milan": 310}


def make_model() -> nn.Module:
    torch.manual_seed(1)
    head = nn.Linear(8, 2).to(torch.bfloat16)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), head)


def train(site: str) -> dict[str, torch.Tensor]:
    """Stands for training: batches through BatchNorm, and a step away from the weights."""
    model = make_model()
    generator = torch.Generator().manual_seed(SAMPLES[site])
    for _ in range(SAMPLES[site] // 16):
        model[:2](torch.randn(16, 1, 8, 8, generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.state_dict(keep_vars=True)  # parameters that require a gradient are fine


def main() -> None:
    updates = {site: train(site) for site in SAMPLES}

    layout = veilsum.ModelLayout.from_arrays(make_model().state_dict())
    aggregator = veilsum.Aggregator(layout)
    for site, update in updates.items():
        aggregator.add(update, weight=SAMPLES[site], site=site)
    result = aggregator.finish()

    # Results are NumPy arrays: bfloat16 as the float32 that holds it. torch copies them back.
    model = make_model()
    model.load_state_dict({name: torch.from_numpy(a) for name, a in result.arrays.items()})

    counters = [int(update["1.num_batches_tracked"]) for update in updates.values()]
    print(f"batches seen {counters}, on average {int(model[1].num_batches_tracked)}")
    head = torch.stack([update["3.weight"].double() for update in updates.values()])
    weights = torch.tensor(list(SAMPLES.values()), dtype=torch.float64)
    mean = (head * weights[:, None, None]).sum(0) / weights.sum()
    same = torch.equal(model[3].weight, mean.to(torch.bfloat16))
    print(f"{model[3].weight.dtype} head equals the float64 mean, rounded once: {same}")
    print(f"digest {result.digest}")


if __name__ == "__main__":
    main()
