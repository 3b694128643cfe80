"""A blocking client for operators: submit, look at, watch and stop runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from veilsum.control import RunEvent, RunSpec, RunStatus
from veilsum.errors import ConfigError, VeilsumError
from veilsum.pki.identity import Identity
from veilsum.transport import wire_requests, wire_runs
from veilsum.transport.backoff import Backoff
from veilsum.transport.callers import INSECURE_IDENTITY
from veilsum.transport.operator_service import OPERATOR
from veilsum.transport.process import KEEPALIVE_OPTIONS
from veilsum.transport.settings import MESSAGE_LIMIT, OperatorSettings, tls_files
from veilsum.transport.tls import load_tls_identity

_T = TypeVar("_T")

_SECONDS = 60.0
_LONGEST_RECONNECT_MS = 5_000

# How a call ends whose connection broke, and one that was too slow for what it watches.
_PASSING = (
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
_ENVELOPE_BYTES = 64 << 10  # what a submission holds beside the model


class CoordinatorUnreachable(VeilsumError):  # noqa: N818  not the caller's mistake
    """Nobody answers at the coordinator's address, or not with a certificate of ours."""


class OperatorClient:
    """One connection to a coordinator. Use `with`, or close() it.

    Methods raise:
        ConfigError: the coordinator refuses the request, and says why.
        CoordinatorUnreachable: nobody answers.

    Raises:
        ConfigError: a certificate file cannot be used.
    """

    def __init__(self, settings: OperatorSettings) -> None:
        self._address = settings.coordinator
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", MESSAGE_LIMIT),
            ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MS),
            *KEEPALIVE_OPTIONS,
        ]
        self._metadata: tuple[tuple[str, str], ...] = ()
        files = tls_files(settings)
        if files is None:
            identity = Identity(settings.consortium, "operator", settings.name)
            self._metadata = ((INSECURE_IDENTITY, identity.uri),)
            self._channel = grpc.insecure_channel(self._address, options=options)
            return
        tls = load_tls_identity(*files, "operator")
        self._channel = grpc.secure_channel(
            self._address, tls.channel_credentials(), options=options
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and what still watches over it."""
        self._channel.close()

    def submit(self, spec: RunSpec, model: bytes | str) -> RunStatus:
        """Starts a run.

        Args:
            model: the initial model as the bytes of a safetensors file, or the name of such a
                file in the coordinator's models folder.
        """
        by_name = isinstance(model, str)
        if not by_name and len(model) > MESSAGE_LIMIT - _ENVELOPE_BYTES:
            raise ConfigError(
                f"the model has {len(model)} bytes, too many for one message",
                hint="put the file into the coordinator's models folder and give its name",
            )
        submission = wire_runs.Submission(
            spec,
            safetensors=None if isinstance(model, str) else model,
            model_file=model if isinstance(model, str) else None,
        )
        return self._call(
            "SubmitRun", wire_runs.encode_submission(submission), wire_runs.run_from_bytes
        )

    def get(self, run_id: str) -> RunStatus:
        """One run with its rounds."""
        return self._call("GetRun", wire_runs.encode_run_request(run_id), wire_runs.run_from_bytes)

    def runs(self) -> tuple[RunStatus, ...]:
        """All runs, newest first, without their rounds."""
        return self._call("ListRuns", wire_runs.encode_list_request(), wire_runs.decode_runs)

    def abort(self, run_id: str, reason: str = "") -> RunStatus:
        """Stops a run; one that is over stays as it is."""
        return self._call(
            "AbortRun", wire_runs.encode_abort(run_id, reason), wire_runs.run_from_bytes
        )

    def prune(self, pruning: wire_requests.Pruning) -> tuple[wire_requests.PrunedRun, ...]:
        """Forgets runs that are over; says which."""
        request = wire_requests.encode_pruning(pruning)
        return self._call("PruneRuns", request, wire_requests.decode_pruned)

    def follow(
        self,
        run_id: str,
        *,
        after: int = 0,
        patience_s: float,
        lost: Callable[[VeilsumError], None],
    ) -> Iterator[RunEvent]:
        """As watch, also when the connection breaks or the coordinator is started again: goes on
        after the last event, so that none is lost or comes twice.

        Args:
            patience_s: how long to try without an answer.
            lost: told why there was none, each time.
        """
        backoff = Backoff()
        since: float | None = None
        while True:
            try:
                for event in self.watch(run_id, after=after):
                    since = None
                    backoff.reset()
                    after = max(after, event.number)
                    yield event
                return
            except CoordinatorUnreachable as error:
                now = time.monotonic()
                since = now if since is None else since
                if now - since >= patience_s:
                    raise
                lost(error)
                time.sleep(min(backoff.delay(), since + patience_s - now))

    def watch(self, run_id: str, *, after: int = 0) -> Iterator[RunEvent]:
        """What has happened so far, then what happens, until the run ends.

        Args:
            after: number of the last event that is known already.
        """
        stream = self._channel.unary_stream(f"/{OPERATOR}/WatchRun")
        call = stream(wire_requests.encode_watch(run_id, after), metadata=self._metadata)
        try:
            for data in call:
                yield wire_runs.event_from_bytes(data)
        except grpc.RpcError as error:
            raise self._translated(error) from error
        finally:
            call.cancel()

    def _call(self, method: str, request: bytes, decode: Callable[[bytes], _T]) -> _T:
        unary = self._channel.unary_unary(f"/{OPERATOR}/{method}")
        try:
            return decode(unary(request, metadata=self._metadata, timeout=_SECONDS))
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def _translated(self, error: Any) -> VeilsumError:
        text, _, hint = (error.details() or "").partition("\nhint: ")
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return CoordinatorUnreachable(
                f"cannot reach the coordinator at {self._address}: {text}",
                hint="is it running, and is its certificate of the same consortium?",
            )
        if error.code() in _PASSING:
            return CoordinatorUnreachable(
                f"the coordinator at {self._address} broke off: {text}", hint=hint or None
            )
        if error.code() is grpc.StatusCode.INTERNAL:
            return VeilsumError(text, hint=hint or None)
        return ConfigError(text, hint=hint or None)
