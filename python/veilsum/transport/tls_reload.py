"""A server's certificate, replaced without a restart.

gRPC asks before every handshake whether there is another certificate. It gets one only after
the files were read and understood as at the start; connections that are there stay.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path

import grpc

from veilsum.errors import ConfigError
from veilsum.transport.tls import TlsIdentity, load_tls_identity
from veilsum.transport.watched_files import WatchedFiles


class ServerTls:
    """What a coordinator shows to those who connect.

    Args:
        files: (ca, tls_certificate, tls_key).
        current: what was read from them.
    """

    def __init__(self, files: tuple[Path, Path, Path], current: TlsIdentity) -> None:
        self._files = files
        self._watched = WatchedFiles(files)
        self.current = current
        # gRPC asks from threads of its own.
        self._replaced: queue.SimpleQueue[TlsIdentity] = queue.SimpleQueue()

    @property
    def changed(self) -> Callable[[], bool]:
        """Whether the files are others than at the last call."""
        return self._watched.changed

    def credentials(self) -> grpc.ServerCredentials:
        """For a port that demands a certificate of this consortium from everyone."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self.current), self.newest, require_client_authentication=True
        )

    def reload(self) -> None:
        """Reads the files again; who connects from now on sees what is in them.

        Raises:
            ConfigError: they cannot be used, or are somebody else's; what there was stays.
        """
        found = load_tls_identity(*self._files, "coordinator")
        if found.identity != self.current.identity:
            raise ConfigError(
                f"{self._files[1]} is for {found.identity.uri}, "
                f"this coordinator is {self.current.identity.uri}",
                hint="another identity needs another roster and a restart",
            )
        self.current = found
        self._replaced.put(found)

    def newest(self) -> object | None:
        """What gRPC is to show from now on, if it is not what it was told before. gRPC calls it."""
        newest: TlsIdentity | None = None
        while True:
            try:
                newest = self._replaced.get_nowait()
            except queue.Empty:
                return None if newest is None else _configuration(newest)


def _configuration(tls: TlsIdentity) -> object:
    return grpc.ssl_server_certificate_configuration(
        [(tls.key, tls.certificate)], root_certificates=tls.ca
    )
