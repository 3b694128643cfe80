"""What nvcc made of each kernel, held to tests/machine_code.json: a kernel that spills, or loads in
smaller pieces, or takes more instructions, is a change that somebody has to mean."""

from __future__ import annotations

from pathlib import Path

import pytest

import machine_code
from machine_code import FlowGraph, Instruction, Row, main_loop, read_code
from veilsum import _native

TABLE = machine_code.read_table()


@pytest.fixture(scope="session")
def found() -> dict[str, Row]:
    built, _, reason = _native.cuda_status()
    if not built:
        pytest.skip(reason)
    if not (machine_code.tool_folder() / "cuobjdump").exists():
        pytest.skip("nvidia-cuda-cuobjdump is not installed")
    return machine_code.table_of(Path(_native.__file__))


def test_the_table_has_every_kernel(found: dict[str, Row]) -> None:
    assert list(found) == list(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_no_kernel_uses_local_memory(found: dict[str, Row], name: str) -> None:
    row = found[name]

    assert (row["stack_bytes"], row["local_accesses"]) == (
        TABLE[name]["stack_bytes"],
        TABLE[name]["local_accesses"],
    )


@pytest.mark.parametrize("name", TABLE)
def test_a_product_is_rounded_before_it_is_added(found: dict[str, Row], name: str) -> None:
    assert found[name]["fused_multiplies"] == TABLE[name]["fused_multiplies"]


@pytest.mark.parametrize("name", TABLE)
def test_the_main_loop_loads_as_it_was_designed_to(found: dict[str, Row], name: str) -> None:
    assert found[name]["loop_loads"] == TABLE[name]["loop_loads"]


@pytest.mark.parametrize("name", TABLE)
def test_a_kernel_costs_no_more_than_the_table_says(found: dict[str, Row], name: str) -> None:
    assert found[name]["loop_instructions"] <= TABLE[name]["loop_instructions"]
    assert found[name]["registers"] <= TABLE[name]["registers"]


# --- of the table itself ---------------------------------------------------------------------

# Products of two floats are exact in a double, so the sum is rounded once, fused or not; and a
# division that rounds correctly is made of fused multiplies.
# Square roots are, too.
FUSED = (
    "gram_kernel<float>",
    "ring_kernel",
    "rotated_ring_kernel",
    "step_kernel<FedAda",
    "step_kernel<FedYogi",
)

# Their columns lie in shared memory or, where that is too small, in device memory.
GENERIC = ("kept_kernel", "sorted_median_kernel")


@pytest.mark.parametrize("name", TABLE)
def test_nothing_in_the_table_is_out_of_bounds(name: str) -> None:
    row = TABLE[name]

    assert row["stack_bytes"] == 0
    assert row["local_accesses"] == 0
    assert row["fused_multiplies"] == 0 or name.startswith(FUSED)
    assert row["registers"] <= 255


@pytest.mark.parametrize("name", TABLE)
def test_loads_are_told_that_memory_is_global(name: str) -> None:
    generic = [load for load in TABLE[name]["loop_loads"] if load.split(".")[0] == "LD"]

    assert not generic or name.startswith(GENERIC)


# Registers of a processor among so many blocks of 256 threads.
BLOCKS = {"ChaCha": 4, "Aes": 2}


@pytest.mark.parametrize(
    "name", [name for name in TABLE if name.startswith(("mask_kernel", "encode_kernel"))]
)
def test_kernels_of_masks_leave_room_for_their_blocks(name: str) -> None:
    generator = name.split("<")[1].split(",")[0]

    assert TABLE[name]["registers"] <= 65_536 // (256 * BLOCKS[generator])


# --- of the reading ----------------------------------------------------------------------------

LISTING = """
    Function : kernel
        /*0000*/                   LDC R1, c[0x0][0x28] ;    /* 0x00000a00ff017b82 */
        /*0010*/                   ISETP.GE.AND P0, PT, R0, UR4, PT ;
        /*0020*/               @P0 EXIT ;
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.64 R8, desc[UR4][R2.64] ;
        /*0050*/              @!P1 BRA 0x40 ;
        /*0060*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0070*/               @P1 BRA 0xa0 ;
        /*0080*/               @P2 BRA 0x60 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   DADD R4, R4, R8 ;
        /*00b0*/                   BRA 0x80 ;
"""


# Every shuffle has such a detour, which comes back into the middle of the loop.
PARTED = """
    Function : kernel
        /*0000*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0010*/                   BRA.DIV UR4, 0x50 ;
        /*0020*/                   SHFL.IDX PT, R5, R4, R6, 0x1f ;
        /*0030*/               @P1 BRA 0x0 ;
        /*0040*/                   EXIT ;
        /*0050*/                   WARPSYNC.COLLECTIVE R7, 0x60 ;
        /*0060*/                   SHFL.IDX PT, R5, R4, R6, 0x1f ;
        /*0070*/                   BRA 0x30 ;
"""


@pytest.fixture
def listing() -> tuple[Instruction, ...]:
    [(name, code)] = read_code(LISTING)
    assert name == "kernel"
    return code


def test_a_detour_behind_the_end_belongs_to_its_loop_and_makes_none(
    listing: tuple[Instruction, ...],
) -> None:
    graph = FlowGraph.of(listing)

    loops = sorted(
        sorted(graph.blocks[block][0].address for block in loop) for loop in graph.loops()
    )

    assert loops == [[0x40], [0x60, 0x80, 0xA0]]


def test_the_main_loop_is_the_one_that_loads_most(listing: tuple[Instruction, ...]) -> None:
    assert [one.name for one in main_loop(listing)] == ["LDG.E.128", "BRA", "BRA", "DADD", "BRA"]


def test_the_way_of_a_warp_that_has_parted_counts_for_nothing() -> None:
    [(_, code)] = read_code(PARTED)

    assert [one.name for one in main_loop(code)] == ["LDG.E", "BRA.DIV", "SHFL.IDX", "BRA"]


def test_a_kernel_without_a_loop_counts_as_a_whole(listing: tuple[Instruction, ...]) -> None:
    assert main_loop(listing[:3]) == listing[:3]


def test_a_constant_made_by_a_fused_multiply_is_none() -> None:
    assert not Instruction(0, False, "HFMA2.MMA", "R1, -RZ, RZ, 0, 1").fused
    assert Instruction(0, False, "DFMA", "R2, R4, R6, R8").fused
