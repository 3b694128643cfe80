"""Who may import whom, and what the code never does. The tables are the architecture."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "veilsum"

_CORE = {"errors", "control", "roster", "model", "arrays", "_native"}
_SUMS = _CORE | {"codecs", "aggregate", "optimizers", "secagg", "plain", "difference"}

# Layer (a module or a package right under veilsum) -> the layers it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "tasks": {"errors"},
    "records": set(),
    "control": {"errors", "optimizers", "records", "tasks"},
    "roster": {"errors"},
    "arrays": {"errors", "_native"},
    "model": {"errors", "arrays", "_native"},
    "devices": {"errors", "_native"},
    "codecs": {"errors", "model", "arrays", "devices", "_native"},
    "optimizers": {"errors", "model", "arrays", "devices", "_native"},
    "rules": {"errors", "model", "_native"},
    "aggregate": {
        "errors",
        "model",
        "arrays",
        "codecs",
        "devices",
        "optimizers",
        "rules",
        "_native",
    },
    "privacy": {
        "errors",
        "model",
        "codecs",
        "devices",
        "aggregate",
        "optimizers",
        "_native",
    },
    "secagg": _CORE | {"codecs", "aggregate", "optimizers"},
    "plain": {"errors", "control", "model", "codecs", "_native"},
    "difference": {"errors", "model", "arrays", "aggregate"},
    "coordinator": _SUMS,
    "site": _SUMS,
    "proto": set(),
    "pki": {"errors", "roster"},
    "selftest": {"errors", "_native"},
    "transport": _SUMS | {"_version", "devices", "coordinator", "site", "proto", "pki", "selftest"},
    "demo": _SUMS | {"_version", "coordinator", "site", "pki", "transport"},
    "cli": _SUMS | {"_version", "devices", "site", "pki", "transport", "demo", "selftest"},
    # The two front doors.
    "__init__": {
        "_version",
        "errors",
        "model",
        "devices",
        "codecs",
        "aggregate",
        "optimizers",
        "privacy",
        "rules",
        "secagg",
    },
    "__main__": {"cli"},
}

SANS_IO = {
    "secagg", "coordinator", "site", "aggregate", "codecs", "model", "control", "plain", "rules",
}  # fmt: skip
IO_MODULES = {
    "asyncio", "grpc", "os", "random", "secrets", "socket", "subprocess", "threading", "time",
}  # fmt: skip

# Generators that anyone can predict or repeat. What protects comes from the operating
# system by way of Secret.from_os, and reaches these layers as an argument.
PREDICTABLE = {"random", "numpy.random", "torch"}
HOLDS_SECRETS = {"secagg", "pki", "transport", "coordinator", "site", "privacy"}
# Training draws no secrets.
DRAWS_NO_SECRETS = {"site/torch_trainer.py"}

MAX_FILE_LINES = 420
MAX_FUNCTION_LINES = 60
GENERATED = "_pb2"


def sources() -> Iterator[Path]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if GENERATED not in path.name:
            yield path


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> set[str]:
    """Every module a file names in an import, at any depth; "veilsum.x" for veilsum's own."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{path}: relative imports hide the layer they come from")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def label(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


every_source = pytest.mark.parametrize("path", list(sources()), ids=label)


@every_source
def test_a_layer_imports_only_the_layers_below_it(path: Path) -> None:
    layer = layer_of(path)

    used = {name.split(".")[1] for name in imports(path) if name.startswith("veilsum.")}

    assert used <= MAY_IMPORT[layer] | {layer}


def test_the_table_has_every_layer_and_no_other() -> None:
    assert {layer_of(path) for path in sources()} == set(MAY_IMPORT)


def test_the_table_has_no_cycle() -> None:
    below: set[str] = {"_native"}
    waiting = dict(MAY_IMPORT)
    while waiting:
        ready = {layer for layer, used in waiting.items() if used <= below}
        assert ready, f"cycle among {sorted(waiting)}"
        below |= ready
        waiting = {layer: used for layer, used in waiting.items() if layer not in ready}


@every_source
def test_protocol_code_does_no_io_and_reads_no_clock(path: Path) -> None:
    if layer_of(path) in SANS_IO:
        assert not {name.split(".")[0] for name in imports(path)} & IO_MODULES


@every_source
def test_nothing_secret_comes_from_a_predictable_generator(path: Path) -> None:
    if layer_of(path) in HOLDS_SECRETS and label(path) not in DRAWS_NO_SECRETS:
        allowed_jitter = {"transport"}  # of reconnecting, which protects nothing
        used = {
            generator
            for generator in PREDICTABLE
            for name in imports(path)
            if name == generator or name.startswith(generator + ".")
        }
        calls = {
            ast.unparse(node)
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("np.random")
        }
        if layer_of(path) in allowed_jitter:
            used -= {"random"}
        assert not used | calls


@every_source
def test_asserts_narrow_types_and_never_check_foreign_input(path: Path) -> None:
    """`python -O` removes asserts, so none may stand between a peer's bytes and the sum."""
    checks = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Assert) and not _narrows_a_type(node.test)
    ]

    assert checks == []


def _narrows_a_type(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp):
        return all(map(_narrows_a_type, test.values))
    text = ast.unparse(test)
    is_optional = isinstance(test, ast.Name | ast.Attribute)  # `x` of type X | None
    return is_optional or text.startswith("isinstance(") or text.endswith(" is not None")


@every_source
def test_files_and_functions_stay_small(path: Path) -> None:
    long_functions = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }

    assert long_functions == {}
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


def test_core_and_kernels_never_include_the_cuda_folder() -> None:
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            assert '#include "cuda/' not in path.read_text(), path


def test_nothing_outside_the_bindings_knows_python() -> None:
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file() and "bindings" not in path.parts:
            text = path.read_text()
            assert not {"pybind11", "Python.h"} & set(re.split(r'[\s/"<>]', text)), path


# What kernels may know of the core: arithmetic of one element, and how they are launched.
_OF_KERNELS = ("element/", "device/launch.h", "device/api.h")


def included_by(path: Path) -> list[str]:
    return re.findall(r'#include "([^"]+)"', path.read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "cuda").iterdir()), ids=lambda path: path.name)
def test_kernels_know_nothing_of_the_core_but_elements_and_launches(path: Path) -> None:
    own = {file.name for file in (ROOT / "cuda").iterdir()} | {"emulator.h"}
    for included in included_by(path):
        if included in own or included.startswith(_OF_KERNELS):
            continue
        assert re.fullmatch(r"device/\w+_launchers\.h", included), (path, included)


def test_nothing_below_the_sums_knows_of_devices() -> None:
    for layer in ("base", "element", "kernels", "codec", "update", "optimize"):
        for path in sorted((ROOT / "csrc" / layer).rglob("*")):
            assert not [name for name in included_by(path) if name.startswith("device/")], path


def test_devices_are_reached_through_their_table_alone() -> None:
    """Who could call CUDA or the emulator directly would not be tested by the other."""
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file() and path.parent.name != "bindings":
            assert not re.search(r"\bcuda_runtime|\bcuda[A-Z]\w*\(|vs_emu::", path.read_text()), (
                path
            )
