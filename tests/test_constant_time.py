"""No branch and no address of the code that touches keys depends on them.

Two ways to know: valgrind runs the loops with undefined keys and reports what depends on them;
and the machine code of AES instructions, most of which valgrind cannot run, never moves a
byte from a vector register, where keys are, to a general one, where addresses and flags are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from veilsum import _native

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "cpp" / "constant_time.cpp"
COMPILER = shutil.which("c++")
# Valgrind runs nothing of AVX-512 and none of the wide AES instructions.
LEVELS = [isa for isa in _native.supported_isas() if isa != "v4"]
AES_KERNELS = {"aesni": 1, "vaes256": 2, "vaes512": 4}

# Operands of an instruction that writes to a general register.
GENERAL = re.compile(r".*,\s*%[re]?([a-d][xlh]|[sd]il?|[sb]pl?|\d+[dwb]?)")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None or not Path("/usr/include/valgrind/memcheck.h").exists(),
    reason="valgrind is not installed",
)
needs_x86 = pytest.mark.skipif(
    len(_native.supported_isas()) == 1, reason="AES kernels are for x86-64"
)


def kernel_flags(kind: str) -> list[str]:
    """Those the build compiles this kernel object with."""
    text = (ROOT / "cmake" / "KernelTargets.cmake").read_text()
    found = re.search(rf"set\(VS_FLAGS_{kind}\b([^)]*)\)", text)
    assert found is not None
    flags: list[str] = []
    for flag in found[1].split():
        inherited = re.fullmatch(r"\$\{VS_FLAGS_(\w+)\}", flag)
        flags += kernel_flags(inherited[1]) if inherited else [flag]
    return flags


def compile_with(kind: str, *arguments: str) -> None:
    common = ["-std=c++20", "-O3", "-fno-exceptions", "-fPIC", "-Wno-psabi", f"-I{ROOT / 'csrc'}"]
    exact = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    command = [str(COMPILER), *common, *exact, *kernel_flags(kind), *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def under_valgrind(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["valgrind", "--quiet", "--error-exitcode=9", str(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@needs_compiler
@needs_valgrind
@pytest.mark.parametrize("kind", [*LEVELS, *_native.supported_aes()[1:2]])
def test_no_branch_or_address_depends_on_a_key_a_mask_or_a_share(kind: str, tmp_path: Path) -> None:
    program = tmp_path / "constant_time"
    lanes = "-DVS_AES_BLOCKS=1" if kind == "aesni" else f"-DVS_LANES={8 if kind == 'v3' else 4}"
    compile_with(kind, lanes, str(SOURCE), "-o", str(program))

    done = under_valgrind(program)

    assert (done.returncode, done.stdout) == (0, "done under valgrind\n"), done.stderr
    leaking = under_valgrind(program, "leak")
    assert leaking.returncode == 9
    assert "Use of uninitialised value" in leaking.stderr


def instructions(kind: str, folder: Path) -> list[str]:
    listing = folder / f"{kind}.s"
    source = ROOT / "csrc" / "kernels" / f"kernels_{kind}.cpp"
    compile_with(kind, "-S", str(source), "-o", str(listing))
    lines = [line.split("#")[0].strip() for line in listing.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith((".", "_")) and line[-1] != ":"]


def leaves_vectors(instruction: str) -> bool:
    """Whether bytes of a vector register, or facts about them, reach general registers."""
    name, _, operands = instruction.partition("\t")
    if re.match(r"v?(ptest|movmsk|pmovmsk|u?comis|gather|pgather)|vptestn?m|vpcmp|ko?r?test", name):
        return True
    # The stack counts as well: round keys are kept there where registers run out.
    leaving = "mm" in operands or "%k" in operands or "(%rsp" in operands or "(%rbp" in operands
    return leaving and not name.startswith("lea") and GENERAL.fullmatch(operands) is not None


@needs_compiler
@needs_x86
@pytest.mark.parametrize("kind", AES_KERNELS)
def test_keys_in_vector_registers_never_reach_an_address_or_a_flag(
    kind: str, tmp_path: Path
) -> None:
    code = instructions(kind, tmp_path)

    rounds = [line for line in code if re.match(r"v?aesenc", line)]
    assert len(rounds) >= 8 * 14
    assert [line for line in code if leaves_vectors(line)] == []
    # The schedule is loaded into vectors and nothing else of it is read: every other load is of
    # the arguments. One jump skips an empty range, one closes the loop.
    assert len([line for line in code if re.match(r"j(?!mp)", line)]) <= 3
    assert not [line for line in code if line.startswith("call") and "memset" not in line]


def test_what_leaves_a_vector_register_is_noticed() -> None:
    for bad in (
        "movd\t%xmm0, %eax",
        "vmovq\t%xmm3, %r8",
        "pextrb\t$1, %xmm0, %edx",
        "movq\t8(%rsp), %rdi",
    ):
        assert leaves_vectors(bad)
    assert leaves_vectors("vptest\t%ymm1, %ymm1")
    assert leaves_vectors("vpcmpeqb\t%zmm0, %zmm1, %k1")
    assert leaves_vectors("kmovd\t%k1, %eax")
    for good in (
        "leaq\t8(%rsp), %rdi",
        "movd\t%eax, %xmm0",
        "movups\t%xmm1, (%rdx,%rax)",
        "addq\t$128, %rax",
    ):
        assert not leaves_vectors(good)
