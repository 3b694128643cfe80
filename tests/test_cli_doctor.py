"""`veilsum doctor` tests every kernel table, and notices a wrong one."""

from __future__ import annotations

import json

import pytest

import veilsum
from veilsum import _native, selftest
from veilsum.cli import main


def test_doctor_passes_on_every_instruction_set_of_this_machine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.exit_code(["doctor", "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["passed"] is True
    assert facts["version"] == veilsum.__version__
    tested = {(check["name"], check["on"]) for check in facts["checks"]}
    for isa in _native.supported_isas():
        assert {(name, isa) for name in ("masks", "shares", "codecs", "exact mean")} <= tested
    on = {place for name, place in tested if name == "AES masks"}
    bitsliced = {f"{isa}, bitsliced" for isa in _native.supported_isas()}
    assert on == bitsliced | set(_native.supported_aes()[1:])
    assert facts["aes"] == list(_native.supported_aes())
    assert facts["cuda"]["devices"] or facts["cuda"]["reason"]


def test_doctor_leaves_the_default_instruction_set() -> None:
    before = (_native.active_isa(), _native.active_aes())

    selftest.cpu_checks()

    assert (_native.active_isa(), _native.active_aes()) == before


def test_for_people_doctor_prints_one_line_per_self_test(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.exit_code(["doctor"]) == 0

    shown = capsys.readouterr().out
    isas, aes = _native.supported_isas(), _native.supported_aes()
    assert shown.count(" ok") == 6 * len(isas) + len(isas) + len(aes) - 1
    assert veilsum.backends()[0].detail in shown


@pytest.mark.parametrize(
    ("constant", "wrong", "name"),
    [
        ("CHACHA20", {22: ((0, 0, 0, 0), "")}, "masks"),
        ("AES256CTR", {22: ((0, 0, 0, 0), "")}, "AES masks"),
        ("SHARES", ("00" * 32,) * 5, "shares"),
        ("ENCODED", {"int8": (0.0, 0.0, "0" * 16)}, "codecs"),
        ("ROTATED", {64: ("0" * 16, "bd274128f05742c9")}, "rotation"),
        ("ROTATED", {64: ("05096317aea7ebb6", "0" * 16)}, "rotation"),
        ("KEPT", (1, 2), "subsample"),
        ("_is_nearest", lambda value, exact: False, "exact mean"),
    ],
)
def test_a_kernel_that_gives_another_answer_is_found_and_the_exit_code_is_1(
    constant: str,
    wrong: object,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(selftest, constant, wrong)

    assert main.exit_code(["doctor", "--json"]) == 1

    shown = capsys.readouterr()
    failed = {check["name"] for check in json.loads(shown.out)["checks"] if not check["passed"]}
    assert failed == {name}
    assert shown.err.startswith("error: ")
    assert "\nhint: " in shown.err


def test_doctor_tests_an_emulated_device_when_it_is_asked_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.exit_code(["doctor", "--json", "--emulated"]) == 0

    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {c["name"] for c in checks if c["on"] == "emu:0"} == {
        "masks",
        "AES masks",
        "ring sums",
        "masked uploads",
    }


def test_a_device_that_is_lost_fails_its_self_tests() -> None:
    _native.use_emulator(lost_at_call=1)

    checks = [check for check in selftest.device_checks(emulated=True) if check.on == "emu:0"]

    assert len(checks) == 4
    assert all("the device is lost" in check.problem for check in checks)


def test_a_device_that_masks_other_words_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "UPLOADS", {(22, 0, "chacha20"): "0" * 16})

    failed = [check.name for check in selftest.device_checks(emulated=True) if not check.passed]

    assert failed == ["masked uploads"]
