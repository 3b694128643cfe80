"""The demo's folder: where everything is, and making it empty again for the next demo."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from veilsum.errors import ConfigError

_MARK = ".made-by-veilsum-demo"


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """Paths below `root`."""

    root: Path

    @property
    def authority(self) -> Path:
        """The consortium's certificate authority."""
        return self.root / "authority"

    @property
    def members(self) -> Path:
        """A folder of keys and certificates per member, and the processes' settings."""
        return self.root / "members"

    @property
    def roster(self) -> Path:
        """The roster file."""
        return self.root / "roster.json"

    @property
    def state(self) -> Path:
        """The coordinator's state directory."""
        return self.root / "coordinator-state"

    @property
    def notes(self) -> Path:
        """What the sites write down for the proof."""
        return self.root / "notes"

    @property
    def logs(self) -> Path:
        """A log per process."""
        return self.root / "logs"

    @property
    def report(self) -> Path:
        """The report, for people."""
        return self.root / "report.html"

    @property
    def result(self) -> Path:
        """The result, for machines."""
        return self.root / "result.json"

    @property
    def model(self) -> Path:
        """The federated model."""
        return self.root / "model.safetensors"


def prepare_folder(root: Path) -> DemoFolder:
    """Makes the folder, or empties one that an earlier demo has made.

    Raises:
        ConfigError: it holds something else, or cannot be made.
    """
    folder = DemoFolder(root)
    mark = root / _MARK
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(root.iterdir()) and not mark.is_file():
            raise ConfigError(
                f"the folder {root} is not empty and no demo made it",
                hint="give an empty or new folder with --out",
            )
        mark.touch()
        for part in (folder.authority, folder.members, folder.state, folder.notes, folder.logs):
            if part.exists():
                shutil.rmtree(part)
        for file in (folder.roster, folder.report, folder.result, folder.model):
            file.unlink(missing_ok=True)
        folder.logs.mkdir()
    except OSError as error:
        raise ConfigError(f"cannot use the folder {root}: {error.strerror}") from error
    return folder
