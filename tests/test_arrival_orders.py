"""One digest for a set of updates: any order, thread count, instruction set and discipline."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.codec_options import required_options
from veilsum import Aggregator, ModelLayout, Streaming, _native, encode, rules
from veilsum.codecs.families import FAMILIES

LARGEST = 64.0
LAYOUT = ModelLayout(
    _native.Layout([("a", "f32", (4200,)), ("h", "f16", (70,)), ("n", "i64", (6,))])
)
# One site for each family of codecs, and one that sends arrays.
CODEC_OF = {f"site-{codec}": codec for codec in (family.names[-1] for family in FAMILIES)}
CODEC_OF["site-arrays"] = ""
SITES = list(CODEC_OF)
WEIGHTS = {site: 1 + 7919 * number**3 for number, site in enumerate(SITES)}
DECLARED = Streaming(max_abs=2 * LARGEST, max_total_weight=sum(WEIGHTS.values()))
ISAS = _native.supported_isas()


def update_of(site: str) -> Any:
    rng = np.random.default_rng(SITES.index(site))

    def floats(count: int, dtype: Any) -> Any:
        values = rng.uniform(-1, 1, count) * 2.0 ** rng.integers(-20, 6, count)
        return values.astype(dtype)

    arrays = {
        "a": floats(4200, np.float32),
        "h": floats(70, np.float16),
        "n": rng.integers(-(2**62), 2**62, 6),
    }
    codec = CODEC_OF[site]
    if not codec:
        return arrays
    options = required_options(codec, LARGEST)
    return encode(arrays, codec, layout=LAYOUT, seed=5, chunk_coordinates=4096, **options)


UPDATES = {site: update_of(site) for site in SITES}


def digest(order: list[str], comes_back: str | None, **options: Any) -> str:
    """Of a mean to which one site is added, taken out and added again."""
    mean = Aggregator(LAYOUT, **options)
    for site in order:
        mean.add(UPDATES[site], weight=WEIGHTS[site], site=site)
        if site == comes_back:
            mean.remove(site)
    if comes_back is not None:
        mean.add(UPDATES[comes_back], weight=WEIGHTS[comes_back], site=comes_back)
    return mean.finish().digest


def digests(isa: str, count: int, discipline: str, folder: Path, threads: int) -> set[str]:
    """Of so many random orders."""
    _native.use_isa(isa)
    options: dict[str, Any] = {"threads": threads}
    if discipline == "spool":
        options["spool"] = folder
    elif discipline == "streaming":
        options["streaming"] = DECLARED
    shuffle = random.Random(20_26)
    found = set()
    for _ in range(count):
        order = shuffle.sample(SITES, len(SITES))
        comes_back = None if discipline == "streaming" else shuffle.choice([None, *SITES])
        found.add(digest(order, comes_back, **options))
    return found


def expected(discipline: str) -> str:
    _native.use_isa("base")
    streaming = DECLARED if discipline == "streaming" else None
    return digest(SITES, None, threads=1, streaming=streaming)


def check(count: int, isa: str, threads: int, discipline: str, folder: Path) -> None:
    assert digests(isa, count, discipline, folder, threads) == {expected(discipline)}


RULES: dict[str, Any] = {"median": "median", "krum": rules.Krum(byzantine=1)}


def digest_of_rule(order: list[str], rule: str, threads: int) -> str:
    aggregator = Aggregator(LAYOUT, threads=threads)
    for site in order:
        aggregator.add(UPDATES[site], weight=1, site=site)
    return aggregator.finish(rule=RULES[rule]).digest


def check_rule(count: int, isa: str, rule: str, threads: int) -> None:
    _native.use_isa("base")
    first = digest_of_rule(SITES, rule, 1)
    _native.use_isa(isa)
    shuffle = random.Random(20_27)
    orders = [shuffle.sample(SITES, len(SITES)) for _ in range(count)]
    assert {digest_of_rule(order, rule, threads) for order in orders} == {first}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_twenty_orders_of_arrival_have_one_median_and_one_choice_of_krum(
    isa: str, threads: int, rule: str
) -> None:
    check_rule(20, isa, rule, threads)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("isa", ISAS)
def test_a_thousand_orders_of_arrival_have_one_median_and_one_choice_of_krum(
    isa: str, rule: str
) -> None:
    check_rule(1000, isa, rule, 2)


DISCIPLINES = ("memory", "spool", "streaming")


@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_twenty_orders_of_arrival_have_one_digest(
    isa: str, threads: int, discipline: str, tmp_path: Path
) -> None:
    check(20, isa, threads, discipline, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_a_thousand_orders_of_arrival_have_one_digest(
    isa: str, threads: int, discipline: str, tmp_path: Path
) -> None:
    check(1000, isa, threads, discipline, tmp_path)
