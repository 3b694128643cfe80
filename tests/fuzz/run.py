"""Runs every fuzz target: run.py FOLDER_OF_PROGRAMS [--seconds 60] [--jobs 2] [--only NAME].

There is a target for the chunk parser, one for the layout parser, and one for the decoder of each
family of codecs, taken from the product's own table: a new family is fuzzed without a line here.
Two more take the bits of masked words and the shares of secrets. What is written in Python, the
messages of the protocol and what is checked about them, is fuzzed by atheris, which must be
importable; its targets share one minute, because their inputs are small and few branches deep.

Seeds are made by the code at the start of a run; nothing is kept from one run to the next,
except an input that failed, which is left in the working directory. For hours (--only gives one
target all of the seconds):

    run.py FOLDER_OF_PROGRAMS --seconds 7200 [--only messages]
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import protocol
from support.codec_options import every_codec, required_options, variants
from veilsum import EncodedUpdate, ModelLayout, _native, encode
from veilsum.codecs.families import FAMILIES

# Families whose decoders are nearly the same code share a target and its time.
SHARED = {
    "casts": ("f32", "f16", "bf16"),
    "tables": ("int4", "nf4", "fp4"),
    "fp8": ("fp8_e4m3", "fp8_e5m2"),
}
# What a program may allocate at once, and in all with the sanitizer's own memory: a claim in a
# header must not become an allocation.
MALLOC_LIMIT_MB = 4
RSS_LIMIT_MB = 1024
MAX_LEN = 8192  # of an input, unless a seed is longer: that would be cut


@dataclass(frozen=True)
class Target:
    """A program, its arguments, the first inputs, and its share of the seconds."""

    name: str
    program: str
    arguments: tuple[str, ...]
    seeds: tuple[bytes, ...]
    share: float = 1.0

    def command(self, programs: Path) -> list[str]:
        if self.program.endswith(".py"):
            return [sys.executable, str(Path(__file__).with_name(self.program)), *self.arguments]
        return [str(programs / self.program), *self.arguments]


# --- seeds -------------------------------------------------------------------------------


def updates(codec: str) -> Iterator[EncodedUpdate]:
    """Small updates of 64 coordinates: values of all sizes, zeros, a single one."""
    rng = np.random.default_rng(1)
    spread = rng.normal(size=64) * 2.0 ** rng.integers(-12, 5, 64)
    single = np.eye(1, 64, 17)
    for values in (spread, np.zeros(64), single):
        arrays = {"w": values.reshape(64).astype(np.float32)}
        yield encode(arrays, codec, seed=1, **required_options(codec, 128.0))


def sections(chunk: bytes | memoryview) -> bytes:
    """Scales and codes of a chunk without padding."""
    scales, codes = struct.unpack_from("<II", chunk, 32)
    begin = 64 + -(-scales // 16) * 16
    return bytes(chunk[64 : 64 + scales]) + bytes(chunk[begin : begin + codes])


def codec_seeds(names: tuple[str, ...]) -> Iterator[bytes]:
    full = [variant for name in names for variant in variants(name)]
    for place, codec in enumerate(full):
        # Layout 0; the codec; two bytes that only ring codecs take for their scale.
        scale = bytes([0, 90]) if codec.startswith("ring") else b""
        for update in updates(codec):
            yield bytes([4, place % 256]) + scale + sections(update.body[0])


def chunk_seeds() -> Iterator[bytes]:
    names = every_codec()
    for family in FAMILIES:
        codec = family.names[len(family.names) // 2]
        for update in updates(codec):
            head = bytes([3]) + struct.pack(">H", names.index(codec)) + bytes([0])
            place = struct.pack(">H", 63) + update.form.plan_digest[:8] + bytes([0])
            yield head + place + bytes(update.body[0])


def layout_seeds() -> Iterator[bytes]:
    for tensors in (
        [("w", "f32", (3, 5))],
        [("a.weight", "bf16", ()), ("é", "u64", (0, 7)), ("c", "i8", (1,) * 8)],
    ):
        yield ModelLayout(_native.Layout(tensors)).to_bytes()


def unpack_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(1)
    for bits in range(1, 65):
        for count in (1 + bits % 7, 137):
            head = struct.pack(">BHBB", bits - 1, count, bits % 16, 0)
            yield head + rng.bytes(-(-count * bits // 8))


def shamir_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(1)
    for count in range(7):
        for mode in (0, 1, 2, 4, 6):
            indices = struct.pack(f">{count}H", *rng.choice(np.arange(1, 200), count, False))
            yield bytes([count, mode]) + indices + rng.bytes(32 * count)


# --- targets -------------------------------------------------------------------------------


def codec_target(name: str, names: tuple[str, ...]) -> Target:
    return Target(name, "fuzz_codec", (f"--codecs={','.join(names)}",), tuple(codec_seeds(names)))


def targets() -> Iterator[Target]:
    yield Target("chunk", "fuzz_chunk", (), tuple(chunk_seeds()))
    yield Target("layout", "fuzz_layout", (), tuple(layout_seeds()))
    yield Target("unpack", "fuzz_unpack", (), tuple(unpack_seeds()), share=0.5)
    yield Target("shamir", "fuzz_shamir", (), tuple(shamir_seeds()), share=0.5)
    for kind in protocol.TARGETS:
        seeds = tuple(kind().seeds())
        share = 2 / len(protocol.TARGETS)
        yield Target(kind.name, "fuzz_protocol.py", (kind.name,), seeds, share)
    known = {name for family in FAMILIES for name in family.names}
    shared = {name for group in SHARED.values() for name in group}
    for group, names in SHARED.items():
        present = tuple(name for name in names if name in known)
        if present:
            yield codec_target(group, present)
    for family in FAMILIES:
        names = tuple(name for name in family.names if name not in shared)
        if names:
            yield codec_target(re.sub(r"\d+$", "", names[0]) if len(names) > 1 else names[0], names)


# --- running -------------------------------------------------------------------------------


def run(target: Target, programs: Path, seconds: int) -> str:
    """One line on what was done; SystemExit with the program's words if it failed."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        command = [
            *target.command(programs),
            f"-max_total_time={max(1, round(seconds * target.share))}",
            f"-max_len={max(MAX_LEN, 2 * max(map(len, target.seeds)))}",
            "-timeout=20",
            f"-malloc_limit_mb={MALLOC_LIMIT_MB}",
            f"-rss_limit_mb={RSS_LIMIT_MB}",
            f"-artifact_prefix=fuzz-{target.name}-",
            "-print_final_stats=1",
            corpus,
        ]
        environment = os.environ | {"ASAN_OPTIONS": "quarantine_size_mb=16"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            said = done.stdout[-3000:] + done.stderr[-6000:]
            raise SystemExit(f"fuzz target {target.name} failed:\n{said}")
        runs = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
        coverage = re.findall(r"cov: (\d+)", done.stderr)
        if runs is None or not coverage or int(runs[1]) <= len(target.seeds):
            raise SystemExit(f"fuzz target {target.name} did nothing:\n{done.stderr[-2000:]}")
        return f"fuzz {target.name}: {runs[1]} inputs, {coverage[-1]} edges"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only")
    chosen = parser.parse_args()
    todo = list(targets())
    if chosen.only is not None:  # by itself it has all of the seconds
        todo = [replace(one, share=1.0) for one in todo if one.name == chosen.only]
    if not todo:
        raise SystemExit(f"there is no fuzz target {chosen.only}")
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for line in pool.map(lambda one: run(one, chosen.programs, chosen.seconds), todo):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
