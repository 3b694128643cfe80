"""Shapes of models that people federate, and updates of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Shapes = dict[str, tuple[int, ...]]
Update = dict[str, NDArray[np.float32]]


def resnet50() -> Shapes:
    """161 tensors, 25.6 million values (He et al. 2016, table 1; as torchvision has it)."""
    shapes: Shapes = {"conv1": (64, 3, 7, 7), "bn1.w": (64,), "bn1.b": (64,)}
    inputs = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convolutions = {
                "1": (width, inputs, 1, 1),
                "2": (width, width, 3, 3),
                "3": (4 * width, width, 1, 1),
            }
            if block == 0:
                convolutions["down"] = (4 * width, inputs, 1, 1)
            for part, shape in convolutions.items():
                shapes[f"{name}.conv{part}"] = shape
                shapes[f"{name}.bn{part}.w"] = shapes[f"{name}.bn{part}.b"] = shape[:1]
            inputs = 4 * width
    shapes["fc.w"], shapes["fc.b"] = (1000, 2048), (1000,)
    return shapes


def small_cnn() -> Shapes:
    """8 tensors, 1.2 million values: two convolutions and two dense layers on 28 x 28 images."""
    return {
        "conv1.w": (32, 1, 3, 3), "conv1.b": (32,),
        "conv2.w": (64, 32, 3, 3), "conv2.b": (64,),
        "fc1.w": (128, 9216), "fc1.b": (128,),
        "fc2.w": (10, 128), "fc2.b": (10,),
    }  # fmt: skip


def bert_base() -> Shapes:
    """199 tensors, 109 million values: BERT-base (Devlin et al. 2019, section 3; uncased)."""
    width, inner = 768, 3072
    shapes: Shapes = {"words": (30522, width), "positions": (512, width), "types": (2, width)}
    shapes |= {"norm.w": (width,), "norm.b": (width,)}
    for layer in range(12):
        for part in ("query", "key", "value", "output"):
            shapes[f"{layer}.{part}.w"] = (width, width)
            shapes[f"{layer}.{part}.b"] = (width,)
        shapes |= {
            f"{layer}.in.w": (inner, width), f"{layer}.in.b": (inner,),
            f"{layer}.out.w": (width, inner), f"{layer}.out.b": (width,),
        }  # fmt: skip
        for norm in ("norm1", "norm2"):
            shapes |= {f"{layer}.{norm}.w": (width,), f"{layer}.{norm}.b": (width,)}
    shapes |= {"pooler.w": (width, width), "pooler.b": (width,)}
    return shapes


def scaled(shapes: Shapes, scale: float) -> Shapes:
    """The same tensors, the longest side of each cut to about `scale` of it."""
    found: Shapes = {}
    for name, shape in shapes.items():
        longest = shape.index(max(shape))
        side = max(1, round(shape[longest] * scale))
        found[name] = (*shape[:longest], side, *shape[longest + 1 :])
    return found


def size(shapes: Shapes) -> int:
    """Values of all tensors."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def updates(shapes: Shapes, count: int) -> list[Update]:
    """Updates that differ; the normal values behind them are drawn once."""
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return [
        {name: values * np.float32(1 + k / count) for name, values in base.items()}
        for k in range(count)
    ]
