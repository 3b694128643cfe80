"""How the process of a ClientApp reaches its site's keeper: a Unix socket of the same user."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from typing_extensions import Buffer

from veilsum.errors import ConfigError, DecodeError, DeviceError, LedgerError, VeilsumError
from veilsum.integrations.flower.secure_keeper import (
    Keeper,
    Trained,
    Training,
    open_keeper,
)
from veilsum.integrations.flower.secure_parts import About
from veilsum.integrations.flower.secure_wire import Part, Sealed
from veilsum.pki.files import make_private_folder
from veilsum.secagg.wire import Reader, Writer
from veilsum.tasks import TaskSettings
from veilsum.transport.logs import Log, start_logging
from veilsum.transport.process import harden_process, versions
from veilsum.transport.settings import SiteSettings

_SILENT_SECONDS = 60.0  # of a caller that stopped in the middle of its request
_MOST_PATH_BYTES = 100
_MOST_BLOBS = 2**20
_MOST_BYTES = 2**40
# Of one frame: a model, a sum of 8 bytes for a parameter of 2, and an optimizer's state of five.
_MODELS_AT_ONCE = 10
_MOST_BESIDE = 2**27
_MOST_TEXT_BYTES = 2**16
_MOST_HEAD_BYTES = 2**23
_MOST_METRICS = 256


class _Said(NamedTuple):
    """One request or answer on the socket."""

    what: str
    head: bytes
    blobs: Sequence[Buffer]


class RemoteKeeper:
    """The keeper behind a socket; see secure_keeper.Keeper.

    Raises from its calls:
        ConfigError: no keeper of this user listens there.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)

    def deliver(self, sealed: Sealed) -> Sealed | Training:
        """As of Keeper."""
        return self._ask(_Said("deliver", sealed.envelope, sealed.blobs))

    def trained(self, result: Trained) -> Sealed:
        """As of Keeper."""
        answer = self._ask(_write_trained(result))
        if isinstance(answer, Training):
            raise DecodeError("the site's keeper asks for training that it was just given")
        return answer

    def _ask(self, said: _Said) -> Sealed | Training:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            try:
                line.connect(self._path)
                _require_own(line)
            except OSError as error:
                # Flower sends the text of an app's error in clear, and no hint of ours.
                start = f"start it: veilsum flower-site --config site.toml --socket {self._path}"
                raise ConfigError(
                    f"the site's keeper does not answer: {error.strerror or error}", hint=start
                ) from error
            try:
                _send(line, said)
                answer = _receive(line)
            except (OSError, DecodeError) as error:
                raise ConfigError(
                    "the site's keeper has hung up, its log says why",
                    hint="it has stopped, or the message is larger than max_model_bytes lets it be",
                ) from error
        match answer.what:
            case "sealed":
                return Sealed(answer.head, answer.blobs)
            case "train":
                return _read_training(answer)
            case "refused":
                reader = Reader(answer.head)
                text = reader.text(_MOST_TEXT_BYTES, "refusal")
                raise ConfigError(text, hint=reader.text(_MOST_TEXT_BYTES, "hint") or None)
            case _:
                raise DecodeError(f"the site's keeper answers {answer.what!r}")


class KeeperServer:
    """Serves a keeper at a socket. serving() makes one."""

    def __init__(
        self, keeper: Keeper, listener: socket.socket, log: Log, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._keeper = keeper
        self._listener = listener
        self._log = log
        self._most_bytes = most_bytes
        self._closed = False

    def serve(self) -> None:
        """Until close(): one caller at a time, as the keeper works.

        Raises:
            OSError: nobody can be accepted any more.
        """
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                raise
            with line:
                line.settimeout(_SILENT_SECONDS)
                self._serve_one(line)

    def close(self) -> None:
        """Ends serve(), after the request that it is at."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve_one(self, line: socket.socket) -> None:
        try:
            _require_own(line)
            said = _receive(line, self._most_bytes)
            _send(line, self._answer(said))
        except (OSError, DecodeError, ConfigError) as error:
            self._log.warning("a caller was lost", reason=_why(error))
        except Exception:  # noqa: BLE001  nor must a caller that asks for more than there is memory
            self._log.exception("a caller was lost")

    def _answer(self, said: _Said) -> _Said:
        try:
            match said.what:
                case "deliver":
                    return _write_answer(self._keeper.deliver(Sealed(said.head, said.blobs)))
                case "trained":
                    return _write_answer(self._keeper.trained(_read_trained(said)))
                case _:
                    raise DecodeError(f"the site's keeper knows no request {said.what!r}")
        except (LedgerError, DeviceError) as error:
            # Flower sends the text of an app's error in clear: what it says of this site's disk
            # and devices stays here.
            self._log.warning("refused", reason=_why(error))
            text = "the site's keeper cannot go on, its log says why"
            return _Said("refused", Writer().text(text).text("").bytes(), ())
        except VeilsumError as error:
            self._log.warning("refused", reason=_why(error))
            hint = error.hint or ""
            return _Said("refused", Writer().text(str(error)).text(hint).bytes(), ())
        except Exception:  # noqa: BLE001  a fault of our own must not take the keeper from all rounds
            self._log.exception("a request failed")
            text = "the site's keeper failed, its log says why"
            return _Said("refused", Writer().text(text).text("").bytes(), ())


@contextmanager
def serving(
    keeper: Keeper, path: Path, log: Log, most_bytes: int = _MOST_BYTES
) -> Iterator[KeeperServer]:
    """Listens at a socket that only this user can reach, in a folder of mode 0700.

    Args:
        most_bytes: of a request. What a request brings of a message, nobody has verified yet.

    Raises:
        ConfigError: there can be none at that path.
    """
    if len(os.fsencode(path)) > _MOST_PATH_BYTES:
        raise ConfigError(
            f"the socket's path {path} has more than {_MOST_PATH_BYTES} bytes",
            hint="choose a shorter one",
        )
    make_private_folder(path.parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_room(path)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {path}: {error.strerror}") from error
    except ConfigError:
        listener.close()
        raise
    server = KeeperServer(keeper, listener, log, most_bytes)
    try:
        yield server
    finally:
        server.close()
        path.unlink(missing_ok=True)


def _make_room(path: Path) -> None:
    """Removes what a keeper that was killed has left there.

    Raises:
        ConfigError: it is no socket, or a keeper listens at it, of another site most likely.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} is there already, and no socket", hint="choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            if line.connect_ex(str(path)) == 0:
                raise ConfigError(
                    f"a keeper listens at {path} already", hint="give each site a path of its own"
                )
        path.unlink()


def run_keeper(settings: SiteSettings, path: Path, ready: Callable[[], None]) -> None:
    """Keeps a site until SIGINT or SIGTERM.

    Args:
        ready: called once ClientApps can connect.

    Raises:
        ConfigError, LedgerError, DeviceError: as open_keeper; or there can be no such socket.
    """
    harden_process()
    start_logging(settings.log)
    log = Log("keeper", site=settings.site)
    most = _MOST_BESIDE + _MODELS_AT_ONCE * settings.max_model_bytes
    with open_keeper(settings) as keeper, serving(keeper, path, log, most) as server:
        for order in (signal.SIGINT, signal.SIGTERM):
            signal.signal(order, lambda *_: server.close())
        log.info("starting", socket=str(path), **versions())
        ready()
        server.serve()
    log.info("stopped")


@contextmanager
def serving_in_thread(keeper: Keeper, path: Path, log: Log) -> Iterator[None]:
    """serving(), until the block ends."""
    with serving(keeper, path, log) as server:
        thread = threading.Thread(target=server.serve, name="keeper")
        thread.start()
        try:
            yield
        finally:
            server.close()
            thread.join()


def _require_own(line: socket.socket) -> None:
    """Raises:
    ConfigError: another user is at the other end.
    """
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if user != os.getuid():
        raise ConfigError(
            "another user is at the other end of the keeper's socket",
            hint=f"run keeper and SuperNode as one user: this is {os.getuid()}, that is {user}",
        )


def _why(error: Exception) -> str:
    return error.in_a_line if isinstance(error, VeilsumError) else str(error)


def _send(line: socket.socket, said: _Said) -> None:
    head = Writer().text(said.what).blob(said.head).integer(len(said.blobs), 4)
    for blob in said.blobs:
        head.integer(memoryview(blob).nbytes, 8)
    data = head.bytes()
    line.sendall(struct.pack("<Q", len(data)) + data)
    for blob in said.blobs:
        line.sendall(blob)


def _receive(line: socket.socket, most_bytes: int = _MOST_BYTES) -> _Said:
    size = int(struct.unpack("<Q", _exactly(line, 8))[0])
    if size > _MOST_BLOBS * 8 + 2**26:
        raise DecodeError(f"a request at the keeper's socket announces a head of {size} bytes")
    reader = Reader(_exactly(line, size))
    what = reader.text(32, "request")
    head = reader.blob(2**26, "head")
    count = reader.integer(4, "blobs")
    if count > _MOST_BLOBS:
        raise DecodeError(f"a request at the keeper's socket announces {count} blobs")
    sizes = [reader.integer(8, "size") for _ in range(count)]
    if sum(sizes) > most_bytes:
        raise DecodeError(
            f"a request at the keeper's socket announces {sum(sizes)} bytes, at most {most_bytes} "
            "are taken",
            hint="if the model is that large, raise max_model_bytes",
        )
    return _Said(what, head, [_exactly(line, one) for one in sizes])


def _exactly(line: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, found = memoryview(data), 0
    while found < size:
        got = line.recv_into(view[found:])
        if not got:
            raise DecodeError("the other end of the keeper's socket has closed it")
        found += got
    return bytes(data)


def _write_answer(answer: Sealed | Training) -> _Said:
    if isinstance(answer, Sealed):
        return _Said("sealed", answer.envelope, answer.blobs)
    task = answer.task
    head = Writer().blob(About(answer.round).to_bytes())
    head.integer(task.epochs, 4).integer(task.batch_size, 4).real(task.learning_rate)
    head.real(task.proximal).integer(task.seed, 8).blob(answer.model.head)
    return _Said("train", head.bytes(), answer.model.blobs)


def _read_training(said: _Said) -> Training:
    reader = Reader(said.head)
    about = About.from_bytes(reader.blob(_MOST_TEXT_BYTES, "round"))
    task = TaskSettings(
        reader.integer(4, "epochs"),
        reader.integer(4, "batch size"),
        reader.real("learning rate"),
        reader.real("proximal"),
        reader.integer(8, "seed"),
    )
    model = Part("model", reader.blob(_MOST_HEAD_BYTES, "model"), said.blobs)
    return Training(about.round, task, model)


def _write_trained(result: Trained) -> _Said:
    model = result.model
    head = Writer().blob(About(result.round, model is not None).to_bytes())
    if model is None:
        return _Said("trained", head.bytes(), ())
    head.blob(model.head).integer(result.weight, 8)
    metrics = sorted(result.metrics.items())
    head.sequence(metrics, lambda writer, item: writer.text(item[0]).real(item[1]))
    return _Said("trained", head.bytes(), model.blobs)


def _read_trained(said: _Said) -> Trained:
    reader = Reader(said.head)
    about = About.from_bytes(reader.blob(_MOST_TEXT_BYTES, "round"))
    if not about.flag:
        return Trained(about.round)
    model = Part("model", reader.blob(_MOST_HEAD_BYTES, "model"), said.blobs)
    weight = reader.integer(8, "weight")
    metrics = reader.sequence(
        _MOST_METRICS,
        "metrics",
        lambda one: (one.text(_MOST_TEXT_BYTES, "metric"), one.real("value")),
    )
    return Trained(about.round, model, weight, dict(metrics))
