"""The gRPC contract: documented field by field, and its stubs are those of the .proto files."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from veilsum.proto.v1 import federation_pb2, operator_pb2

PROTO = Path(federation_pb2.__file__).parent
SOURCES = sorted(PROTO.glob("*.proto"))

_FIELD = re.compile(r"^\s*(?:repeated |optional )?[\w.<>, ]+ (\w+) = \d+;(.*)$")
_BLOCK = re.compile(r"^\s*(?:message|service|rpc) (\w+)")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_field_says_what_it_is(source: Path) -> None:
    fields = [match for line in _lines(source) if (match := _FIELD.match(line))]
    assert len(fields) > 30
    bare = [match[1] for match in fields if not re.match(r"\s*// \S", match[2])]
    assert bare == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_message_service_and_call_has_a_comment_above_it(source: Path) -> None:
    lines = _lines(source)
    bare = [
        match[1]
        for above, line in itertools.pairwise(lines)
        if (match := _BLOCK.match(line)) and not above.lstrip().startswith("//")
    ]
    assert bare == []


def test_the_services_and_their_calls_are_the_published_ones() -> None:
    federation = federation_pb2.DESCRIPTOR.services_by_name["Federation"]
    operator = operator_pb2.DESCRIPTOR.services_by_name["Operator"]
    assert federation.full_name == "veilsum.v1.Federation"
    assert operator.full_name == "veilsum.v1.Operator"
    assert [call.name for call in federation.methods] == [
        "Join",
        "FetchModel",
        "FetchSum",
        "FetchState",
        "FetchLinks",
        "FetchAudit",
        "PushUpdate",
        "PushStatus",
    ]
    assert [call.name for call in operator.methods] == [
        "SubmitRun",
        "GetRun",
        "ListRuns",
        "WatchRun",
        "AbortRun",
        "PruneRuns",
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None,
    reason="grpcio-tools is not installed; .ci/generate_proto makes the stubs elsewhere",
)
def test_the_committed_stubs_are_those_of_the_proto_files(tmp_path: Path) -> None:
    root = PROTO.parents[2]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    files = [str(source.relative_to(root)) for source in SOURCES]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", *outputs, *files]
    subprocess.run(command, check=True, cwd=root)
    for made in sorted(tmp_path.rglob("*_pb2*")):
        assert made.read_bytes() == (root / made.relative_to(tmp_path)).read_bytes()


def _lines(source: Path) -> list[str]:
    return source.read_text().splitlines()
