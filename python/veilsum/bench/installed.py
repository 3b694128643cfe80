"""Which peers this Python has, in which version, and how the others come here."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """A distribution whose code is timed beside ours.

    Attributes:
        distribution: its name on the package index.
        name: as people call it.
        install: the command that installs it.
    """

    distribution: str
    name: str
    install: str

    @property
    def version(self) -> str | None:
        """None if it is not installed."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


HOSTS = {
    host.distribution: host
    for host in (
        Host("numpy", "NumPy", "pip install numpy"),
        Host("torch", "torch", "pip install 'veilsum[torch]'"),
        Host("flwr", "Flower", "pip install 'veilsum[flower]'"),
        Host("nvflare", "NVFLARE", "pip install 'veilsum[nvflare]'"),
        Host("openfl", "OpenFL", "pip install 'veilsum[openfl]', in an environment of its own"),
        Host("bitsandbytes", "bitsandbytes", "pip install bitsandbytes"),
    )
}
PEERS = tuple(HOSTS)
"""What --peer knows."""
