"""Configuration files: what is refused, how it is said, and what becomes of the rest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from veilsum.cli.config import load_coordinator, load_run, load_site
from veilsum.cli.exits import SettingsError
from veilsum.control import Deadlines, OptimizerSpec, RunSpec, TaskSettings
from veilsum.secagg import LocalPolicy
from veilsum.site.bounds import TaskBounds
from veilsum.transport.limits import LimitSettings
from veilsum.transport.settings import CoordinatorSettings, LogSettings, SiteSettings

SITE = """
site = "lyon"
coordinator = "hub.example.org:7443"
roster = "roster.json"
roster_hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
signing_key = "keys/signing.key"
ca = "/etc/veilsum/ca.pem"
tls_certificate = "keys/tls.pem"
tls_key = "keys/tls.key"
trainer = "hospital.train:make"
"""


def write(folder: Path, text: str, name: str = "site.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = load_site(write(tmp_path, SITE))

    assert settings.roster == tmp_path / "roster.json"
    assert settings.tls_key == tmp_path / "keys/tls.key"
    assert settings.ca == Path("/etc/veilsum/ca.pem")


def test_a_log_file_in_a_table_is_relative_to_the_file_too(tmp_path: Path) -> None:
    settings = load_site(write(tmp_path, SITE + '[log]\nformat = "json"\nfile = "site.log"\n'))

    assert settings.log == LogSettings(format="json", file=tmp_path / "site.log")


def test_defaults_are_those_of_the_settings_themselves(tmp_path: Path) -> None:
    settings = load_site(write(tmp_path, SITE))

    given = {"site", "coordinator", "roster", "roster_hash", "signing_key", "trainer"}
    given |= {"ca", "tls_certificate", "tls_key"}
    # Only whoever embeds a site can have one that remembers nothing.
    assert settings.ledger == tmp_path / f"ledger-{settings.site}"
    assert settings.egress == tmp_path / f"egress-{settings.site}.vsx"
    given |= {"ledger", "egress"}
    for field in dataclasses.fields(SiteSettings):
        if field.name not in given:
            default = (
                field.default
                if field.default is not dataclasses.MISSING
                else field.default_factory()  # type: ignore[misc]
            )
            assert getattr(settings, field.name) == default


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('trainr = "x:y"\n', "unknown key 'trainr'; the nearest known key is 'trainer'"),
        ("[bounds]\nmax_epoch = 3\n", "unknown key 'max_epoch' in [bounds]; the nearest known key "
         "is 'max_epochs'"),
        ("[policy]\nmin_site = 3\n", "in [policy]; the nearest known key is 'min_sites'"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one(
    tmp_path: Path, text: str, message: str
) -> None:
    file = write(tmp_path, SITE + text)

    with pytest.raises(SettingsError) as caught:
        load_site(file)

    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("known keys")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SITE.replace('site = "lyon"', ""), "key 'site' is missing"),
        (SITE.replace('"lyon"', "7"), "site: input should be a valid string, got 7"),
        (SITE + 'threads = "2"\n', "threads: input should be a valid integer, got '2'"),
        (SITE + "threads = -1\n", "threads must be 0 to 1024, got -1"),
        (SITE + "[bounds]\nmax_epochs = 1.5\n", "bounds.max_epochs: input should be a valid"),
        (SITE + "bounds = 3\n", "bounds: input should be an object, got 3"),
        (SITE + "insecure = true\n", "insecure is possible on a loopback address only"),
        (SITE.replace("make", ""), "trainer must be 'package.module:factory'"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    file = write(tmp_path, text)

    with pytest.raises(SettingsError) as caught:
        load_site(file)

    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_a_secret_in_a_file_is_never_repeated_in_an_error(tmp_path: Path) -> None:
    for value in ('"abc123"', "123456"):
        file = write(tmp_path, f"{SITE}rounding_seed = {value}\n")

        with pytest.raises(SettingsError) as caught:
            load_site(file)

        assert "rounding_seed" in str(caught.value)
        # The folder's own name may hold some digits too.
        assert "123" not in str(caught.value).replace(str(file), "")


def test_a_missing_file_and_a_file_that_is_not_toml_are_errors_with_its_name(
    tmp_path: Path,
) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*none\.toml"):
        load_coordinator(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="is not TOML"):
        load_coordinator(write(tmp_path, "state_dir = \n"))


def test_trainer_settings_are_passed_on_as_they_are(tmp_path: Path) -> None:
    table = "[trainer_settings]\nfolder = 'data'\ndates = [2024-01-01]\n"

    settings = load_site(write(tmp_path, f"{SITE}{table}[trainer_settings.more]\na = 1\n"))

    assert settings.trainer_settings["folder"] == "data"
    assert settings.trainer_settings["more"] == {"a": 1}
    assert settings.trainer_settings["dates"][0].year == 2024


def test_insecure_on_the_command_line_is_the_key_of_that_name(tmp_path: Path) -> None:
    text = 'state_dir = "s"\nroster = "r"\nsigning_key = "k"\n'
    file = write(tmp_path, text)

    assert load_coordinator(file, insecure=True) == CoordinatorSettings(
        state_dir=tmp_path / "s", roster=tmp_path / "r", signing_key=tmp_path / "k", insecure=True
    )
    with pytest.raises(SettingsError, match="ca, tls_certificate and tls_key are all needed"):
        load_coordinator(file)


def test_a_run_file_becomes_a_run_spec_and_a_model(tmp_path: Path) -> None:
    text = (
        'task_id = "nodules"\nmodel = "m.safetensors"\nclip = 2\ncohort = ["a", "b", "c"]\n'
        'metrics = ["auc"]\n[task]\nepochs = 3\n[deadlines]\nkeys_s = 5\n'
        '[server_optimizer]\nname = "fedadam"\nbeta1 = 0.5\n'
    )

    run = load_run(write(tmp_path, text, "run.toml"))

    assert run.model == tmp_path / "m.safetensors"
    assert run.model_file is None
    assert run.spec == RunSpec(
        task_id="nodules",
        clip=2.0,
        cohort=("a", "b", "c"),
        metrics=("auc",),
        task=TaskSettings(epochs=3),
        deadlines=Deadlines(keys_s=5.0),
        server_optimizer=OptimizerSpec("fedadam", beta1=0.5),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('task_id = "t"\n', "a run starts from one model"),
        ('task_id = "t"\nmodel = "a"\nmodel_file = "b"\n', "a run starts from one model"),
        ('task_id = "t"\nmodel = "a"\nmin_sites = 2\n', "a masked run needs min_sites of 3"),
        (
            'task_id = "t"\nmodel = "a"\n[server_optimizer]\nname = "adam"\n',
            "unknown optimizer 'adam'",
        ),
        (
            'task_id = "t"\nmodel = "a"\n[server_optimizer]\nmomentum = 0.9\n',
            "optimizer 'fedavg' has no parameter 'momentum'",
        ),
        ('task_id = "t"\nmodel = "a"\nmodl = "b"\n', "the nearest known key is 'model'"),
        ('task_id = "t"\nmodel = "a"\n[task]\nepoch = 1\n', "the nearest known key is 'epochs'"),
    ],
)
def test_a_run_file_that_cannot_work_is_refused_before_anything_is_sent(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_run(write(tmp_path, text, "run.toml"))

    assert message in str(caught.value)


def test_every_key_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    kinds = (CoordinatorSettings, SiteSettings, TaskBounds, LocalPolicy, LogSettings)
    kinds += (RunSpec, TaskSettings, Deadlines, OptimizerSpec, LimitSettings)
    keys = {field.name for kind in kinds for field in dataclasses.fields(kind)}

    assert {key for key in keys if f"`{key}`" not in page and f"[{key}]" not in page} == set()
