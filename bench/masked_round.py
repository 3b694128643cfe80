"""Times a whole masked round with many sites and dropouts, all of its sessions in one process.

    python bench/masked_round.py                          200 sites, 60 dropouts, 10^6 values
    python bench/masked_round.py --sites 50 --dropouts 10 --out bench/results

Every message is signed, encoded, sent and checked; nothing goes over a network. Times are
processor time of one thread, of the coordinator and of one site apart. Dropouts are lost before
their upload, which is when they cost most: one mask per dropout and survivor has to be rebuilt.
The result is held against the sum without masks before anything is reported.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from veilsum import _native, secagg
from veilsum._native import Secret
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.aggregate.tile_audit import TileAudit
from veilsum.bench import machine
from veilsum.bench.masked_sessions import Round
from veilsum.secagg.keys import SECRET_BYTES

WEIGHT = 100
BULK = ("fold", "add_masks", "finish")  # of SecureSum: work that grows with the model
SMALL = ("keys", "shares", "votes", "unmask")  # phases whose work does not
AUDIT = ("fold", "add_masks")  # of TileAudit: part of it


class Updates(Mapping[str, secagg.Contribution]):
    """Site -> its update, made when it is asked for: all of them would not fit into memory."""

    def __init__(self, names: tuple[str, ...], coordinates: int) -> None:
        self._names = names
        self._coordinates = coordinates

    def __getitem__(self, site: str) -> secagg.Contribution:
        number = self._names.index(site)
        values = np.random.default_rng(number).uniform(-1, 1, self._coordinates)
        rounding = Secret.from_bytes(number.to_bytes(SECRET_BYTES, "little"))
        return secagg.Contribution({"w": values.astype(np.float32)}, WEIGHT, {}, rounding)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def expand_rate(plan: secagg.Plan) -> float:
    """Masked coordinates per second of one core with 64 keys: the roof of unmasking."""
    stream = plan.ring.streams[1]
    keys = [Secret.from_os(SECRET_BYTES) for _ in range(64)]
    words = np.zeros(stream.elements, np.uint32)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        _native.add_masks(
            words,
            keys,
            [1] * len(keys),
            generator=plan.mask_generator,
            stream=1,
            first=0,
            bits=stream.bits,
            threads=1,
        )
        seconds.append(time.process_time() - began)
    return len(keys) * stream.elements / min(seconds)


def report(made: Round, result: secagg.SecureResult) -> list[tuple[str, str]]:
    plan, spent = made.plan, made.clock.spent
    bulk = {name: spent.pop(name) for name in BULK}
    audit = {name: spent.pop(f"audit, {name}") for name in AUDIT}
    uploads = spent["inputs"] - bulk["fold"]
    small = sum(spent.values()) - spent["inputs"] - bulk["add_masks"] - bulk["finish"]
    spent["unmask"] -= bulk["add_masks"] + bulk["finish"]
    survivors = [site for site in plan.cohort if site in result.sites]
    masks = len(survivors) * (1 + len(made.dropouts))
    expanding = bulk["add_masks"] - audit["add_masks"]
    rate, roof = masks * plan.ring.streams[1].elements / expanding, expand_rate(plan)
    phases = ", ".join(f"{name} {1e3 * spent[name]:.0f}" for name in SMALL)

    def median(of: Callable[[str], float]) -> float:
        return statistics.median(of(site) for site in survivors)

    def site_small(site: str) -> float:
        return sum(s for name, s in made.of_site[site].spent.items() if name != "masking")

    site_phases = ", ".join(
        f"{name} {1e3 * median(lambda site, name=name: made.of_site[site].spent[name]):.0f}"
        for name in SMALL
    )
    rows = [
        ("coordinator, all", f"{sum(bulk.values()) + uploads + small:.2f} s"),
        ("coordinator, keys, shares and messages", f"{small:.2f} s"),
        ("of these by phase, ms", phases),
        ("coordinator, checks of uploads (CRC, SHA-256)", f"{uploads:.2f} s"),
        ("coordinator, adding uploads", f"{bulk['fold']:.2f} s"),
        (f"coordinator, removing {masks:,} masks", f"{bulk['add_masks']:.2f} s"),
        ("of these, values per second", f"{rate / 1e9:.2f} G, {rate / roof:.0%} of 64 keys alone"),
        ("of adding and removing, 64 tiles a second time", f"{sum(audit.values()):.2f} s"),
        ("coordinator, decoding", f"{bulk['finish']:.2f} s"),
        ("site, keys, shares and messages", f"{median(site_small):.3f} s"),
        ("of these by phase, ms", site_phases),
        (
            "site, encoding and masking",
            f"{median(lambda s: made.of_site[s].spent['masking']):.3f} s",
        ),
    ]
    for kind in ("control up", "control down", "update up"):
        rows.append((f"site, {kind}", f"{int(median(lambda s, k=kind: made.bytes[s][k])):,} bytes"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    rows.append(("locked memory of all sessions, most", f"{made.locked // 1024:,} KiB"))
    rows.append(("memory of the process, most (sites keep their uploads)", f"{peak:,} MiB"))
    return rows


def text(made: Round, options: argparse.Namespace, rows: list[tuple[str, str]]) -> str:
    facts = machine.description()
    lines = [
        f"# A masked round of {options.sites} sites on {facts['cpu']}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, instruction set {facts['isa']}, {facts['compiler']}; "
        f"{options.dropouts} dropouts before their upload, {options.coordinates:,} values, "
        f"{options.generator}, b = {made.plan.ring_bits}, q = t = {made.plan.vote_quorum}. "
        "Processor time of one thread; of sites the median.",
        "",
        "| what | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--dropouts", type=int, default=60)
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    parser.add_argument("--generator", choices=["chacha20", "aes256ctr"], default="chacha20")
    parser.add_argument("--out", type=Path, help="folder for a Markdown table")
    options = parser.parse_args()
    machine.keep_pages()
    names = tuple(f"site-{number:03}" for number in range(options.sites))
    made = Round(
        Updates(names, options.coordinates),
        options.coordinates,
        generator=options.generator,
        weight_cap=WEIGHT,
        dropouts=options.dropouts,
    )
    for name in BULK:
        made.clock.watch(SecureSum, name, name)
    for name in AUDIT:
        made.clock.watch(TileAudit, name, f"audit, {name}")
    result = made.run()
    rows = report(made, result)
    plain = secagg.plain_ring_sum(made.plan, made.updates, result.sites)
    if plain.digest != result.digest:
        raise SystemExit("the masked sum is not the sum")
    page = text(made, options, rows)
    print(page)
    if options.out:
        cpu = re.sub(r"[^a-z0-9]+", "-", machine.cpu_model().lower()).strip("-")
        name = f"{datetime.now(UTC):%Y-%m-%d}-{cpu}-round-{options.generator}.md"
        (options.out / name).write_text(page)


if __name__ == "__main__":
    main()
