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

_CORE = {"errors", "buffering", "control", "roster", "model", "arrays", "_native"}
_SUMS = _CORE | {"codecs", "aggregate", "optimizers", "secagg", "plain", "difference"}

# Layer (a module or a package right under veilsum) -> the layers it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "tasks": {"errors"},
    "buffering": {"errors", "tasks"},
    "records": set(),
    "turnout": {"errors", "tasks"},
    "control": {"errors", "buffering", "optimizers", "records", "tasks", "turnout"},
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
    "integrations": {
        "errors",
        "model",
        "arrays",
        "codecs",
        "aggregate",
        "optimizers",
        "rules",
        "difference",
        # Flower, masked: the tested sides of coordinator and site with another carrier between
        # them, a site's files as a site process has them, and the encodings of their messages.
        "_native",
        "_version",
        "control",
        "coordinator",
        "devices",
        "pki",
        "records",
        "roster",
        "secagg",
        "selftest",
        "site",
        "tasks",
        "transport",
    },
    # It measures whatever there is; hosts are imported by its peers/, in processes of their own.
    "bench": _SUMS | {"devices", "rules", "site", "pki", "transport", "integrations"},
    "cli": _SUMS
    | {"_version", "devices", "site", "pki", "transport", "demo", "selftest", "bench"}
    | {"integrations"},  # a site's keeper beside Flower
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

# Where else the operating system is asked for random bytes, and why not by Secret.from_os: none
# of it is secret. What makes keys of members is the key generation of OpenSSL.
RANDOM_BY_NAME = {
    "integrations/encoding.py": {"secrets.token_bytes"},  # how an update is rounded
    "integrations/flower/secure_fedavg.py": {
        "secrets.token_bytes",
        "secrets.token_hex",
    },  # as below
    "integrations/flower/secure_server.py": {"secrets.token_bytes"},  # nonces of hellos
    "transport/backoff.py": {"secrets.SystemRandom"},  # when to reconnect
    "transport/endpoint.py": {"secrets.token_bytes"},  # which process of a site is calling
    "transport/coordinator_app.py": {"secrets.token_bytes"},  # nonces of plans, audited tiles
    "transport/egress_file.py": {"os.urandom"},  # id of a ledger
    "transport/ledger_file.py": {"os.urandom"},  # id of a ledger
    "transport/operator_service.py": {"secrets.token_hex"},  # names of runs
    "pki/authority.py": {"ec.generate_private_key", "x509.random_serial_number"},
    "pki/issue.py": {
        "ec.generate_private_key",
        "x509.random_serial_number",
        "Ed25519PrivateKey.generate",
    },
    "secagg/rehearsal.py": {"Ed25519PrivateKey.generate"},  # members that exist in a test only
}
RANDOM_CALL = re.compile(
    r"^(os\.(urandom|getrandom)|secrets\.(token_|rand|choice|System)|uuid\.|random\.|np\.random|numpy\.random"
    r"|x509\.random_serial_number|.*\.generate(_private_key)?$)"
)
# Modules whose functions are called by their module's name only, so that the calls are found.
RANDOM_MODULES = {"os": {"urandom", "getrandom"}, "secrets": None, "uuid": None, "random": None}

# In C++ and CUDA there is one source of random bytes, and one place that asks it.
NATIVE_GENERATORS = re.compile(
    r"\b(s?rand(om)?(_r)?|drand48|lrand48)\s*\(|\bmt19937|\bminstd|\brandom_device|\brdrand|_rdrand"
    r"|\brdseed|_rdseed|curand|arc4random|getentropy|RAND_bytes|/dev/u?random|<random>|SYS_getrandom"
)
ASKS_THE_SYSTEM = "csrc/base/secret.cpp"

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


def random_calls(parsed: ast.Module) -> set[str]:
    """What a file says that draws random bytes or makes keys, and imports that would hide it."""
    found = set()
    for node in ast.walk(parsed):
        if isinstance(node, ast.Attribute) and RANDOM_CALL.match(name := ast.unparse(node)):
            found.add(name)
        if isinstance(node, ast.ImportFrom) and node.module in RANDOM_MODULES:
            hidden = RANDOM_MODULES[node.module]
            for alias in node.names:
                if hidden is None or alias.name in hidden:
                    found.add(f"from {node.module} import {alias.name}")
        if isinstance(node, ast.Import):
            found |= {
                f"import {alias.name} as {alias.asname}"
                for alias in node.names
                if alias.name in RANDOM_MODULES and alias.asname
            }
    return found


@every_source
def test_random_bytes_come_from_the_system_and_where_they_are_drawn_is_written_down(
    path: Path,
) -> None:
    drawn = random_calls(tree(path))
    if layer_of(path) in {"demo", "bench"}:  # their data and models protect nobody
        drawn -= {name for name in drawn if name.startswith("np.random")}

    assert drawn == RANDOM_BY_NAME.get(label(path), set())


@pytest.mark.parametrize(
    "code",
    [
        "import os\nkey = os.urandom(32)",
        "from os import urandom",
        "import os as system\nsystem.urandom(32)",
        "import secrets\nsecrets.token_bytes(32)",
        "from secrets import token_bytes",
        "import uuid\nuuid.uuid4()",
        "import random\nrandom.getrandbits(8)",
        "import numpy as np\nnp.random.default_rng()",
        "key = X25519PrivateKey.generate()",
    ],
)
def test_each_way_to_draw_random_bytes_is_noticed(code: str) -> None:
    assert random_calls(ast.parse(code))


def test_the_table_of_random_bytes_names_files_that_exist() -> None:
    assert set(RANDOM_BY_NAME) <= {label(path) for path in sources()}


NATIVE_SOURCES = [
    path
    for folder in ("csrc", "cuda")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file()
]


def native_generators(text: str, *, may_ask_the_system: bool) -> list[str]:
    found = [match.group() for match in NATIVE_GENERATORS.finditer(text)]
    asks = re.findall(r"\bgetrandom\b", text)
    return found if may_ask_the_system else found + asks


def test_native_code_draws_from_the_system_in_one_place_and_has_no_other_generator() -> None:
    for path in NATIVE_SOURCES:
        name = str(path.relative_to(ROOT))
        asks = name == ASKS_THE_SYSTEM
        assert native_generators(path.read_text(), may_ask_the_system=asks) == [], name
    assert "::getrandom(" in (ROOT / ASKS_THE_SYSTEM).read_text()


@pytest.mark.parametrize(
    "code",
    [
        "int x = rand();",
        "srand(1)",
        "std::mt19937_64 engine;",
        "std::random_device device;",
        "_rdrand64_step(&x)",
        "curand_init(1, 2, 3, &state)",
        'open("/dev/urandom")',
        "#include <random>",
        "::getrandom(data, size, 0)",
        "arc4random_buf(data, size)",
    ],
)
def test_each_native_generator_is_noticed(code: str) -> None:
    assert native_generators(code, may_ask_the_system=False)


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
