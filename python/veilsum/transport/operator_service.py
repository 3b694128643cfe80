"""What operators call: start, look at, watch and stop runs."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc

from veilsum.control import RunSpec, RunStatus
from veilsum.coordinator.core import Coordinator
from veilsum.coordinator.events import RunAbortRequested, RunSubmitted
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout
from veilsum.optimizers.state import OptimizerState
from veilsum.transport import wire_requests, wire_runs
from veilsum.transport.callers import CallRefused
from veilsum.transport.checkpoints import (
    Arrays,
    load_model,
    load_optimizer_state,
    model_from_bytes,
)
from veilsum.transport.forgetting import forgotten
from veilsum.transport.retention import Retention
from veilsum.transport.server import Desk, streaming, unary
from veilsum.transport.storage import Storage
from veilsum.transport.watchers import Watchers

OPERATOR = "veilsum.v1.Operator"

_OVER = ("completed", "aborted")
_NO_ROUND = 1 << 62


class OperatorService:
    """Runs of one coordinator, those of earlier processes included."""

    def __init__(
        self, desk: Desk, storage: Storage, watchers: Watchers, retention: Retention
    ) -> None:
        self._desk = desk
        self._retention = retention
        self._storage = storage
        self._watchers = watchers

    def handlers(self) -> grpc.GenericRpcHandler:
        """For grpc.aio.Server.add_generic_rpc_handlers. Messages are bytes both ways."""
        desk = self._desk
        methods = {
            "SubmitRun": grpc.unary_unary_rpc_method_handler(unary(desk, self._submit)),
            "GetRun": grpc.unary_unary_rpc_method_handler(unary(desk, self._get)),
            "ListRuns": grpc.unary_unary_rpc_method_handler(unary(desk, self._list)),
            "WatchRun": grpc.unary_stream_rpc_method_handler(streaming(desk, self._watch)),
            "AbortRun": grpc.unary_unary_rpc_method_handler(unary(desk, self._abort)),
            "PruneRuns": grpc.unary_unary_rpc_method_handler(unary(desk, self._prune)),
        }
        return grpc.method_handlers_generic_handler(OPERATOR, methods)

    async def _submit(self, request: bytes, context: Any) -> bytes:
        operator = self._desk.gate.caller(context, OPERATOR).name
        submission = wire_runs.decode_submission(request)
        layout, model = await asyncio.to_thread(self._initial_model, submission)
        run_id = _new_run_id()
        try:
            await self._begin(run_id, submission.spec, layout, model)
        except ConfigError:
            # No run names it, so nobody would ever forget it.
            await asyncio.to_thread(self._storage.drop_models, run_id)
            raise
        self._desk.log.info("run submitted", run=run_id, operator=operator)
        return wire_runs.run_to_bytes(await self._run(run_id))

    async def _begin(self, run_id: str, spec: RunSpec, layout: ModelLayout, model: Arrays) -> None:
        # Kept before the run exists: a run whose start cannot be looked up is worth little.
        await asyncio.to_thread(self._storage.save_model, run_id, 0, layout, model)
        state = await asyncio.to_thread(self._optimizer_state, spec.server_optimizer.state_file)
        if state is not None:
            await asyncio.to_thread(self._storage.save_optimizer, run_id, 0, state)
        stored = self._storage.stored_model(run_id, 0, layout)
        await self._desk.runner.submit(RunSubmitted(run_id, spec, layout, stored, state))

    def _initial_model(self, submission: wire_runs.Submission) -> tuple[ModelLayout, Arrays]:
        if submission.safetensors is not None:
            return model_from_bytes(submission.safetensors)
        return load_model(self._storage.submitted_file(submission.model_file or ""))

    def _optimizer_state(self, name: str) -> OptimizerState | None:
        return load_optimizer_state(self._storage.submitted_file(name)) if name else None

    async def _get(self, request: bytes, context: Any) -> bytes:
        self._desk.gate.caller(context, OPERATOR)
        return wire_runs.run_to_bytes(await self._run(wire_runs.decode_run_request(request)))

    async def _list(self, request: bytes, context: Any) -> bytes:
        self._desk.gate.caller(context, OPERATOR)
        live = {run.run_id: run for run in await self._desk.runner.ask(Coordinator.runs)}
        stored = await asyncio.to_thread(self._storage.runs)
        return wire_runs.encode_runs(live.get(run.run_id, run) for run in stored)

    async def _watch(self, request: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        self._desk.gate.caller(context, OPERATOR)
        run_id, after = wire_requests.decode_watch(request)
        over = (await self._status(run_id)).state in _OVER
        async with aclosing(self._watchers.watch(run_id, after=after, over=over)) as events:
            async for event in events:
                yield wire_runs.event_to_bytes(event)

    async def _abort(self, request: bytes, context: Any) -> bytes:
        operator = self._desk.gate.caller(context, OPERATOR).name
        run_id, reason = wire_runs.decode_abort(request)
        status = await self._status(run_id)
        if status.state not in _OVER:
            by = f"aborted by operator {operator}"
            await self._desk.runner.submit(
                RunAbortRequested(run_id, f"{by}: {reason}" if reason else by)
            )
        return wire_runs.run_to_bytes(await self._run(run_id))

    async def _prune(self, request: bytes, context: Any) -> bytes:
        operator = self._desk.gate.caller(context, OPERATOR).name
        pruning = wire_requests.decode_pruning(request)
        if pruning.dry_run:
            return wire_requests.encode_pruned(
                await asyncio.to_thread(self._retention.prune, pruning)
            )
        pruned = await forgotten(self._desk.runner, self._retention.prune, pruning)
        self._desk.log.info("runs pruned", runs=len(pruned), operator=operator)
        return wire_requests.encode_pruned(pruned)

    async def _run(self, run_id: str) -> RunStatus:
        """A run with all its rounds: the core knows those of this process alone."""
        status = await self._status(run_id)
        stored = await asyncio.to_thread(self._storage.run, run_id)
        return status if stored is None else replace(status, rounds=stored.rounds)

    async def _status(self, run_id: str) -> RunStatus:
        try:
            return await self._desk.runner.ask(lambda core: core.status(run_id))
        except ConfigError as error:
            # Not of this process; an earlier one may have kept it.
            stored = await asyncio.to_thread(self._storage.run, run_id, since=_NO_ROUND)
            if stored is None:
                raise CallRefused(grpc.StatusCode.NOT_FOUND, str(error), hint=error.hint) from error
            return stored


def _new_run_id() -> str:
    """Sorts by time for people; the random end keeps two operators apart."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
