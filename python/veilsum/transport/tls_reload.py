"""A member's certificate, replaced without a restart: on either side, for connections that come.

Files are read and understood as at the start before anybody is shown them; what cannot be used is
not taken, and what there was stays. Connections that are there stay as they are.
"""

from __future__ import annotations

import queue
from pathlib import Path

import grpc

from veilsum.errors import ConfigError
from veilsum.transport.logs import Log
from veilsum.transport.tls import TlsIdentity, load_tls_identity
from veilsum.transport.watched_files import WatchedFiles


class TlsFiles:
    """A member's TLS files.

    Attributes:
        current: what was read from them last and could be used.

    Args:
        files: (ca, tls_certificate, tls_key).
        current: what was read from them.
    """

    def __init__(self, files: tuple[Path, Path, Path], current: TlsIdentity) -> None:
        self._files = files
        self._watched = WatchedFiles(files)
        self.current = current

    def changed(self) -> bool:
        """Whether the files are others than at the last call."""
        return self._watched.changed()

    def reload(self) -> None:
        """Reads the files again.

        Raises:
            ConfigError: they cannot be used, or are somebody else's; what there was stays.
        """
        found = load_tls_identity(*self._files, self.current.identity.role)
        if found.identity != self.current.identity:
            raise ConfigError(
                f"{self._files[1]} is for {found.identity.uri}, "
                f"this is {self.current.identity.uri}",
                hint="another identity needs another roster and a restart",
            )
        self.current = found


class ClientTls(TlsFiles):
    """What a site shows when it dials."""

    def __init__(self, files: tuple[Path, Path, Path], current: TlsIdentity) -> None:
        super().__init__(files, current)
        self._log = Log("site", site=current.identity.name)

    def credentials(self) -> grpc.ChannelCredentials:
        """For the next connection."""
        if self.changed():
            try:
                self.reload()
            except ConfigError as error:
                self._log.warning("certificate not taken, the old one stays", reason=str(error))
            else:
                self._log.info("certificate taken", ends=self.current.ends)
        return self.current.channel_credentials()


class ServerTls(TlsFiles):
    """What a coordinator shows to those who connect."""

    def __init__(self, files: tuple[Path, Path, Path], current: TlsIdentity) -> None:
        super().__init__(files, current)
        # gRPC asks from threads of its own.
        self._replaced: queue.SimpleQueue[TlsIdentity] = queue.SimpleQueue()

    def credentials(self) -> grpc.ServerCredentials:
        """For a port that demands a certificate of this consortium from everyone."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self.current), self.newest, require_client_authentication=True
        )

    def reload(self) -> None:
        """As TlsFiles; who connects from now on sees what was read."""
        super().reload()
        self._replaced.put(self.current)

    def newest(self) -> object | None:
        """What gRPC is to show from now on, if it is not what it was told before. It asks before
        every handshake."""
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
