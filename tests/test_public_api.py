"""What `import veilsum` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import veilsum


def test_every_public_name_can_be_used() -> None:
    for name in veilsum.__all__:
        assert getattr(veilsum, name) is not None
        assert name in dir(veilsum)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'aggregat0r'"):
        _ = veilsum.aggregat0r  # type: ignore[attr-defined]


def test_codecs_is_the_function_even_after_its_module_was_imported() -> None:
    code = "import veilsum.codecs, veilsum; from veilsum.codecs import encode; veilsum.codecs()"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_backends_say_what_the_sum_runs_on() -> None:
    (backend,) = veilsum.backends()

    assert backend.name == "cpu"
    assert "threads" in backend.detail


def test_errors_of_settings_and_of_foreign_bytes_are_value_errors() -> None:
    assert issubclass(veilsum.ConfigError, ValueError)
    assert issubclass(veilsum.DecodeError, ValueError)
    assert issubclass(veilsum.PeerError, veilsum.VeilsumError)
