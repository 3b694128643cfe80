"""`veilsum inspect` says what a file is, never what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import veilsum
from veilsum import _native
from veilsum.cli import main
from veilsum.cli.inspect import examine
from veilsum.errors import ConfigError, DecodeError
from veilsum.model import ModelLayout, result_digest
from veilsum.optimizers import FedAdam
from veilsum.optimizers.applying import state_hash
from veilsum.transport.checkpoints import save_model
from veilsum.transport.egress_file import open_egress

SECRET_VALUE = np.float32(1234.5678)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return {"w": np.full((100, 50), SECRET_VALUE), "n": np.arange(3)}


def _ring_chunks(count: int) -> list[bytes]:
    return _native.ring_word_chunks(
        np.arange(count, dtype=np.uint64),
        bits=22,
        group=0,
        keys=[_native.Secret.from_bytes(bytes(range(32)))],
        signs=[1],
        generator="chacha20",
        plan_digest=bytes(range(32)),
        update_id=0xABC,
        chunk_coordinates=4096,
        threads=1,
    )


@pytest.mark.parametrize("count", [1, 4096, 4097, 20_000])
def test_a_spool_of_chunks_is_checked_and_summed_up(tmp_path: Path, count: int) -> None:
    file = tmp_path / "spool"
    chunks = _ring_chunks(count)
    file.write_bytes(b"".join(chunks))

    assert examine(file) == {
        "file": str(file),
        "kind": "chunks",
        "bytes": sum(map(len, chunks)),
        "chunks": len(chunks),
        "codecs": ["ring22"],
        "groups": [0],
        "coordinates": count,
        "masked": True,
        "plan": "0001020304050607",
        "update_id": "0000000000000abc",
    }


@pytest.mark.parametrize("position", [0, 5, 8, 20, 41, 60, 80, -1])
def test_a_damaged_chunk_is_an_error(tmp_path: Path, position: int) -> None:
    file = tmp_path / "spool"
    data = bytearray(b"".join(_ring_chunks(5000)))
    data[position] ^= 0x10
    file.write_bytes(data)

    with pytest.raises((DecodeError, ConfigError)):
        examine(file)


def test_a_cut_off_chunk_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "spool"
    data = b"".join(_ring_chunks(5000))
    for size in (63, 100, len(data) - 1, len(data) - 200):
        file.write_bytes(data[:size])

        with pytest.raises(DecodeError):
            examine(file)


def test_an_update_shows_its_tensors(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    file = tmp_path / "update"
    file.write_bytes(veilsum.encode(arrays, codec="int8").to_bytes())

    facts = examine(file)

    assert facts["kind"] == "update"
    assert facts["codec"] == "int8"
    assert facts["elements"] == 5003
    assert facts["layout_digest"] == veilsum.ModelLayout.from_arrays(arrays).digest.hex()
    assert facts["tensors"] == [
        {"name": "w", "dtype": "f32", "shape": [100, 50]},
        {"name": "n", "dtype": "i64", "shape": [3]},
    ]


def test_a_model_shows_its_tensors(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    file = tmp_path / "model.safetensors"
    save_file(arrays, file)

    facts = examine(file)

    assert facts["kind"] == "safetensors"
    assert {row["name"]: row["shape"] for row in facts["tensors"]} == {"w": [100, 50], "n": [3]}


def test_a_model_and_an_optimizers_state_have_the_hash_that_a_sites_policy_pins(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    layout = ModelLayout.from_arrays(arrays)
    optimizer = FedAdam().start(layout)
    optimizer.step(arrays, arrays)
    model, state, other = tmp_path / "model", tmp_path / "state", tmp_path / "other"
    save_model(model, layout, arrays)
    state.write_bytes(optimizer.to_bytes())
    save_file({"mask": np.ones(3, np.bool_)}, other)

    assert examine(model)["model_hash"] == result_digest(layout, arrays)
    assert examine(state)["state_hash"] == state_hash(optimizer).hex()
    assert not {"model_hash", "state_hash"} & set(examine(other))


def test_values_are_never_shown(
    tmp_path: Path, arrays: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    model, update = tmp_path / "model", tmp_path / "update"
    save_file(arrays, model)
    update.write_bytes(veilsum.encode(arrays, codec="f32").to_bytes())
    for file in (model, update):
        for options in ([], ["--json"]):
            assert main.exit_code(["inspect", str(file), *options]) == 0

    assert "1234" not in capsys.readouterr().out


def test_a_private_key_is_recognised_and_nothing_of_it_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pki = tmp_path / "pki"
    assert main.exit_code(["pki", "init", "study", "--folder", str(pki)]) == 0
    capsys.readouterr()

    assert main.exit_code(["inspect", str(pki / "ca.key")]) == 1

    shown = capsys.readouterr()
    assert shown.out == ""
    assert "holds a private key" in shown.err


def test_a_certificate_shows_whom_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pki = tmp_path / "pki"
    folder = ["--folder", str(pki)]
    assert main.exit_code(["pki", "init", "study", *folder]) == 0
    assert main.exit_code(["pki", "issue", "site", "lyon", *folder]) == 0
    capsys.readouterr()

    assert main.exit_code(["inspect", str(pki / "site-lyon" / "tls.pem"), "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["identity"] == "veilsum://study/site/lyon"
    assert facts["authority"] is False
    assert examine(pki / "ca.pem")["authority"] is True


@pytest.mark.parametrize("data", [b"", b"hello", b"VLC", bytes(100), b"{}", b"VLU1", b"VLC1"])
def test_other_files_are_refused_with_a_reason(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)

    with pytest.raises((ConfigError, DecodeError)):
        examine(file)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        examine(tmp_path / "none")


@pytest.mark.parametrize(
    ("codec", "options", "facts"),
    [
        ("f32", {"update_id": 0xAB}, {"update_id": "00000000000000ab"}),
        ("int8", {"block": 256}, {"codec": "int8/b256", "chunk_coordinates": 65536}),
        ("ring16", {"clip": 2048.0, "steps": 1024}, {"steps_per_unit": 0.5}),
        (
            "ring16",
            {"clip": 131072.0, "steps": 1024, "hadamard": 4096},
            {"steps": 1024, "rotation": 4096, "steps_per_unit": 1 / 128},
        ),
        (
            "ring16",
            {"clip": {"w": 2048.0}, "scales": "tensor"},
            {"rotation": 0, "clips": 1, "clip_block": 0},
        ),
        (
            "int8",
            {"subsample": 0.25, "subsample_seed": 1, "rescale": False},
            {"blocks_kept_of_64": 16, "rescaled": False},
        ),
    ],
)
def test_an_update_says_how_it_was_encoded(
    tmp_path: Path,
    arrays: dict[str, np.ndarray],
    codec: str,
    options: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    file = tmp_path / "update"
    file.write_bytes(veilsum.encode(arrays, codec=codec, **options).to_bytes())

    found = examine(file)

    assert {name: found.get(name) for name in facts} == facts
    assert "steps_per_unit" in found or not codec.startswith("ring") or "clips" in found


# --- egress ledgers -----------------------------------------------------------------------


@pytest.fixture
def egress(tmp_path: Path) -> Path:
    """An egress ledger with three messages of two kinds."""
    path = tmp_path / "egress.vsx"
    file = open_egress(path, "hospitals", "lyon")
    for kind, size in (("hello", 40), ("masked-update", 5000), ("masked-update", 70)):
        file.append(kind, size, bytes(32))
    file.close()
    return path


def test_an_egress_ledger_shows_what_left(egress: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = examine(egress)

    assert facts["kind"] == "egress ledger"
    assert (facts["site"], facts["messages"], facts["sent_bytes"]) == ("lyon", 3, 5110)
    assert facts["head"] == egress.read_bytes()[-32:].hex()
    assert facts["first"] <= facts["last"]
    assert facts["sent"] == [
        {"kind": "hello", "messages": 1, "bytes": 40},
        {"kind": "masked-update", "messages": 2, "bytes": 5070},
    ]
    assert main.exit_code(["inspect", str(egress)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kind", "messages", "bytes"] in lines
    assert ["masked-update", "2", "5.0", "KiB"] in lines


def test_a_broken_egress_ledger_is_an_error_that_names_the_first_wrong_record(
    egress: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = egress.read_bytes()
    egress.write_bytes(data.replace(b"hello", b"hullo"))

    with pytest.raises(DecodeError, match="record 1 of the egress ledger was changed"):
        examine(egress)
    assert main.exit_code(["inspect", str(egress)]) == 1
    assert "record 1" in capsys.readouterr().err


def test_a_cut_egress_ledger_shows_against_a_head_that_was_told(egress: Path) -> None:
    told = examine(egress)["head"]
    whole = egress.read_bytes()
    last = len(whole) - 4 - 4 - (8 + 8 + 4 + len("masked-update") + 8 + 32) - 32

    for end in (last, len(whole) - 1):
        egress.write_bytes(whole[:end])
        facts = examine(egress)
        assert facts["messages"] == 2
        assert facts.get("bytes_of_an_unfinished_record", 0) == end - last
        assert main.exit_code(["inspect", str(egress), "--head", told]) == 1
        assert main.exit_code(["inspect", str(egress), "--head", facts["head"]]) == 0


def test_a_ledger_that_went_on_goes_through_the_heads_it_had(
    egress: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = examine(egress)["head"]
    file = open_egress(egress, "hospitals", "lyon")
    file.append("hello", 40, bytes(32))
    file.close()

    assert main.exit_code(["inspect", str(egress), "--json", "--head", told.upper()]) == 0
    assert json.loads(capsys.readouterr().out)["messages_after_given_head"] == 1


def test_what_is_no_head_and_what_has_none_is_an_error(egress: Path, tmp_path: Path) -> None:
    other = tmp_path / "chunks"
    other.write_bytes(b"".join(_ring_chunks(5)))

    assert main.exit_code(["inspect", str(egress), "--head", "6b1d"]) == 1
    assert main.exit_code(["inspect", str(other), "--head", "00" * 32]) == 1
