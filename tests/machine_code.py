"""What nvcc made of the kernels, read from the built module with cuobjdump.

`python tests/machine_code.py` writes tests/machine_code.json anew from the installed module; a
change of it is a change of the kernels' cost, and is reviewed like one.

The main loop of a kernel is found in its flow graph. A loop is what a branch to a block that
dominates it goes around (a natural loop). Of the loops that load from global memory and hold no
smaller loop that does, the one that loads most bytes a turn is the main one: of an unrolled loop
and its remainder, the unrolled one. A kernel without such a loop counts as a whole.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "machine_code.json"
ARCHITECTURE = "sm_90"

# LD goes wherever its address says: shared memory, or global.
_LOADS = ("LDG", "LD")
_FUSED = ("FFMA", "DFMA", "HFMA2")
_LOCAL = ("LDL", "STL")
_LOAD_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}

# What one turn of the main loop is for, by the kernel's name: of the mean four updates of as many
# coordinates as a thread holds.
TURNS = {
    "FloatCodes": 4 * 4,
    "DoubleCodes": 4 * 2,
    "HalfCodes": 4 * 8,
    "Int8Codes": 4 * 16,
    "UnitNibbles": 4 * 16,
    "Nf4Codes<32u>": 4 * 2,
    "Nf4Codes<64u>": 4 * 4,
    "Fp8Codes": 4 * 8,
    "SignCodes": 4 * 16,
    # One run of a packed tile.
    "FloatRun": 4,
    "HalfRun": 4,
    "Int8Run": 4,
    "NibbleRun": 4,
    "Fp8Run": 4,
    "SignRun": 4,
}


@dataclass(frozen=True)
class Instruction:
    address: int
    guarded: bool  # a predicate decides whether it happens
    name: str  # with its modifiers: LDG.E.128
    operands: str

    @property
    def family(self) -> str:
        return self.name.split(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch goes, else None. Warps that are together do not go where BRA.DIV does."""
        found = re.search(r"(0x[0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if self.family == "BRA" and not self.divergent and found else None

    @property
    def divergent(self) -> bool:
        return self.name.startswith("BRA.DIV")

    @property
    def loaded_bytes(self) -> int:
        if self.family not in _LOADS:
            return 0
        widths = [_LOAD_BYTES[part] for part in self.name.split(".") if part in _LOAD_BYTES]
        return widths[0] if widths else 4

    @property
    def fused(self) -> bool:
        """Whether a product is added unrounded; with RZ it is a way to set a constant."""
        return self.family in _FUSED and "RZ" not in self.operands

    @property
    def falls_through(self) -> bool:
        conditional = self.guarded or self.operands.startswith(("P", "!P", "UP", "!UP"))
        return conditional or self.divergent or self.family not in ("BRA", "EXIT", "RET")


@dataclass(frozen=True)
class Resources:
    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int  # static, of which 1024 are the system's


@dataclass(frozen=True)
class Kernel:
    name: str
    resources: Resources
    code: tuple[Instruction, ...]

    def count(self, *families: str) -> int:
        return sum(one.family in families for one in self.code)


# --- reading ---------------------------------------------------------------------------------


def tool_folder() -> Path:
    """Where the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm put their programs."""
    return Path(sysconfig.get_path("purelib")) / "nvidia/cu13/bin"


def dump(binary: Path, *options: str) -> str:
    folder = tool_folder()
    search = f"{folder}{os.pathsep}{os.environ['PATH']}"  # cuobjdump looks for nvdisasm
    command = ["cuobjdump", "-arch", ARCHITECTURE, *options, str(binary)]
    done = subprocess.run(
        command, env=os.environ | {"PATH": search}, capture_output=True, text=True, check=True
    )
    return done.stdout


def readable(mangled: list[str]) -> dict[str, str]:
    """Names as the source has them, without namespaces and parameters."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout
    return {name: _shorten(line) for name, line in zip(mangled, text.splitlines(), strict=True)}


def _shorten(name: str) -> str:
    name = name.replace("(anonymous namespace)::", "").replace("veilsum::", "")
    name = re.sub(r"_GLOBAL__N__\w+::", "", name)
    name = re.sub(r"\((?:bool|unsigned int|int)\)", "", name)
    return re.sub(r"\(.*", "", name).removeprefix("void ").strip()


def read_resources(text: str) -> Iterator[tuple[str, Resources]]:
    pattern = r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    for name, registers, stack, shared, local in re.findall(pattern, text):
        yield name, Resources(int(registers), int(stack), int(local), int(shared))


def read_code(text: str) -> Iterator[tuple[str, tuple[Instruction, ...]]]:
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\d+\s+)?([A-Z]\S*)\s*([^;]*);")
    for part in text.split("Function : ")[1:]:
        name = part.split(None, 1)[0]
        yield (
            name,
            tuple(
                Instruction(int(address, 16), bool(guard), mnemonic, operands.strip())
                for address, guard, mnemonic, operands in line.findall(part)
                if mnemonic != "NOP"
            ),
        )


def read_kernels(binary: Path) -> list[Kernel]:
    """The kernels of a module, by name."""
    code = dict(read_code(dump(binary, "-sass")))
    resources = {
        name: found for name, found in read_resources(dump(binary, "-res-usage")) if name in code
    }
    names = readable(list(resources))
    kernels = [Kernel(names[name], resources[name], code[name]) for name in resources]
    return sorted(kernels, key=lambda kernel: kernel.name)


# --- loops -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowGraph:
    """Basic blocks by number, in the order of their addresses; block 0 is where a kernel begins."""

    blocks: tuple[tuple[Instruction, ...], ...]
    successors: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, code: tuple[Instruction, ...]) -> FlowGraph:
        starts = {code[0].address} | {one.target for one in code if one.target is not None}
        blocks: list[list[Instruction]] = []
        ended = True
        for one in code:
            if ended or one.address in starts:
                blocks.append([])
            blocks[-1].append(one)
            ended = one.target is not None or not one.falls_through
        number = {block[0].address: at for at, block in enumerate(blocks)}
        successors = []
        for at, block in enumerate(blocks):
            last = block[-1]
            next_blocks = {number[last.target]} if last.target in number else set()
            if last.falls_through and at + 1 < len(blocks):
                next_blocks.add(at + 1)
            successors.append(tuple(sorted(next_blocks)))
        reached = _reached(0, successors)
        kept = [targets if at in reached else () for at, targets in enumerate(successors)]
        return cls(tuple(map(tuple, blocks)), tuple(kept))

    def predecessors(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in self.blocks]
        for block, targets in enumerate(self.successors):
            for target in targets:
                found[target].append(block)
        return found

    def dominators(self) -> list[int]:
        """For each block, a bit for every block that all ways to it lead through."""
        everything = (1 << len(self.blocks)) - 1
        found = [1] + [everything] * (len(self.blocks) - 1)
        before = self.predecessors()
        changed = True
        while changed:
            changed = False
            for block in range(1, len(self.blocks)):
                common = everything
                for one in before[block]:
                    common &= found[one]
                if common | 1 << block != found[block]:
                    found[block] = common | 1 << block
                    changed = True
        return found

    def loops(self) -> list[frozenset[int]]:
        before = self.predecessors()
        dominators = self.dominators()
        bodies: dict[int, set[int]] = {}
        for block, targets in enumerate(self.successors):
            for head in targets:
                if dominators[block] >> head & 1:
                    bodies.setdefault(head, {head}).update(_reached(block, before, stops=(head,)))
        return [frozenset(body) for body in bodies.values()]


def _reached(start: int, edges: Sequence[Iterable[int]], stops: Iterable[int] = ()) -> set[int]:
    """Blocks on the way along edges from `start`, and `stops`, at which ways end."""
    reached = set(stops)
    waiting = [start]
    while waiting:
        one = waiting.pop()
        if one not in reached:
            reached.add(one)
            waiting.extend(edges[one])
    return reached


def main_loop(code: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    graph = FlowGraph.of(code)

    def loaded(body: frozenset[int]) -> int:
        return sum(one.loaded_bytes for block in body for one in graph.blocks[block])

    loading = [body for body in graph.loops() if loaded(body)]
    innermost = [body for body in loading if not any(other < body for other in loading)]
    if not innermost:
        return code
    most = max(innermost, key=loaded)
    return tuple(one for block in sorted(most) for one in graph.blocks[block])


# --- the table ---------------------------------------------------------------------------------

Row = dict[str, Any]


def coordinates_per_turn(name: str) -> int | None:
    return next((count for codes, count in TURNS.items() if f"<{codes}" in name), None)


def row_of(kernel: Kernel) -> Row:
    loop = main_loop(kernel.code)
    loads = Counter(one.name for one in loop if one.loaded_bytes)
    row: Row = {
        "registers": kernel.resources.registers,
        "stack_bytes": kernel.resources.stack_bytes,
        "local_accesses": kernel.count(*_LOCAL),
        "fused_multiplies": sum(one.fused for one in kernel.code),
        "loop_instructions": len(loop),
        "loop_loads": dict(sorted(loads.items())),
    }
    if (coordinates := coordinates_per_turn(kernel.name)) is not None:
        row["instructions_per_coordinate"] = round(len(loop) / coordinates, 1)
    return row


def table_of(binary: Path) -> dict[str, Row]:
    return {kernel.name: row_of(kernel) for kernel in read_kernels(binary)}


def read_table() -> dict[str, Row]:
    table: dict[str, Row] = json.loads(TABLE.read_text())
    return table


def main() -> None:
    from veilsum import _native

    binary = Path(sys.argv[1] if len(sys.argv) > 1 else _native.__file__)
    TABLE.write_text(json.dumps(table_of(binary), indent=1) + "\n")


if __name__ == "__main__":
    main()
