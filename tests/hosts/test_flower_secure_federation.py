"""A masked run in a real Flower federation, with a process for each message."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra `flower`)")

from support.consortium import make_consortium
from support.flower_example import APP, ROUNDS, SITES, node_config, reference
from support.flower_processes import Program, federation

NAMES = tuple(f"site-{index}" for index in SITES)


def masked_app(folder: Path, **config: str) -> Path:
    """The example as its masked half, with its settings."""
    shutil.copytree(APP, folder)
    project = folder / "pyproject.toml"
    text = project.read_text()
    text = text.replace("server_app:app", "masked:server_app")
    text = text.replace("client_app:app", "masked:client_app")
    settings = "".join(f'{name} = "{value}"\n' for name, value in config.items())
    project.write_text(text + "minutes-per-stage = 5.0\n" + settings)
    return folder


def site_toml(consortium, site: str) -> Path:
    """Settings of a site's keeper, as pki check-roster leaves them."""
    files = consortium.sites[site]
    file = consortium.folder / f"{site}.toml"
    file.write_text(
        f'site = "{site}"\ncoordinator = "127.0.0.1:1"\ntrainer = "unused:unused"\n'
        f'roster = "{consortium.roster_file}"\nroster_hash = "{consortium.roster.hash.hex()}"\n'
        f'signing_key = "{files.signing_key}"\nca = "{files.ca}"\n'
        f'tls_certificate = "{files.tls_certificate}"\ntls_key = "{files.tls_key}"\nthreads = 1\n'
    )
    return file


@pytest.mark.slow
def test_a_masked_run_over_a_superlink_with_a_process_for_each_message(tmp_path):
    deadline = time.monotonic() + 2400  # nobody waits so long for anything but a deadlock
    consortium = make_consortium(tmp_path / "c", NAMES)
    saved = tmp_path / "model.npz"
    app = masked_app(
        tmp_path / "app",
        roster=str(consortium.roster_file),
        save=str(saved),
        **{"signing-key": str(consortium.hub.signing_key)},
    )
    sockets = [tmp_path / f"k{site}" / "s" for site in SITES]
    configs = [
        {"partition-id": site, "veilsum-keeper": f'"{path}"', **node_config(site)}
        for site, path in zip(SITES, sockets, strict=True)
    ]

    with federation(tmp_path, configs, deadline) as environment, ExitStack() as stack:
        for name, path in zip(NAMES, sockets, strict=True):
            arguments = ("--config", str(site_toml(consortium, name)), "--socket", str(path))
            keeper = Program("python", ("-m", "veilsum", "flower-site", *arguments), environment)
            stack.callback(keeper.stop)
            keeper.wait_for("keeper at", deadline)
        run = Program("flwr", ("run", str(app), "local", "--stream"), environment)
        stack.callback(run.stop)
        run.wait_for("masked run completed", deadline)

    found = np.load(saved)
    for name, expected in reference().items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-3)
    assert f"masked run completed: {ROUNDS} rounds" in "".join(run.lines)
