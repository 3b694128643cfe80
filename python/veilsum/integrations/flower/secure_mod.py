"""What turns an ordinary ClientApp into a member of masked rounds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

from veilsum.errors import ConfigError, PeerError, VeilsumError
from veilsum.integrations.flower.arrays import records_of, to_record
from veilsum.integrations.flower.mod import ClientAppCallable, Mod
from veilsum.integrations.flower.replies import read_train_reply
from veilsum.integrations.flower.secure_keeper import Keeper, Trained, Training
from veilsum.integrations.flower.secure_parts import model_part, read_model_part
from veilsum.integrations.flower.secure_socket import RemoteKeeper
from veilsum.integrations.flower.secure_wire import from_content, to_content
from veilsum.integrations.rounds import Model

_LOG = logging.getLogger("flwr")

KEEPER_KEY = "veilsum-keeper"
"""In a SuperNode's --node-config: the path of its keeper's socket."""


def keeper_of_node(context: Context) -> Keeper:
    """The keeper that this SuperNode's configuration names.

    Raises:
        ConfigError: it names none.
    """
    path = context.node_config.get(KEEPER_KEY)
    if not isinstance(path, str):
        raise ConfigError(
            f"this SuperNode's node configuration has no {KEEPER_KEY!r}",
            hint="start `veilsum flower-site --config site.toml --socket PATH` beside the "
            f"SuperNode, and that with --node-config '{KEEPER_KEY}=\"PATH\"'",
        )
    return RemoteKeeper(path)


def secagg_mod(
    keeper: Callable[[Context], Keeper] = keeper_of_node,
    *,
    weighted_by_key: str = "num-examples",
    arrayrecord_key: str = "arrays",
    configrecord_key: str = "config",
    let_through: tuple[str, ...] = (),
) -> Mod:
    """A mod that lets an ordinary training function take part in masked rounds.

        app = ClientApp(mods=[secagg_mod()])

    The function gets a message with the model and, as its config, the signed settings of the task
    (server-round, epochs, batch-size, learning-rate, proximal, seed). Its reply stays at the site;
    what leaves is what the site's keeper has signed.

    Args:
        keeper: finds the site's keeper.
        weighted_by_key, arrayrecord_key, configrecord_key: as in the strategies of Flower.
        let_through: categories of messages ("evaluate", "query") that reach the app as they are and
            whose replies leave in clear. All other messages that are not of a masked round are
            refused: a server that asked for plain training would get the update.

    Raises:
        ConfigError: `let_through` has something else in it.
    """
    known = (MessageType.EVALUATE, MessageType.QUERY)
    if not set(let_through) <= set(known):
        raise ConfigError(f"let_through may name {' and '.join(known)}, got {let_through!r}")

    return _Masked(
        keeper, weighted_by_key, arrayrecord_key, configrecord_key, frozenset(let_through)
    )


@dataclass(frozen=True)
class _Masked:
    """The mod that secagg_mod() makes."""

    keeper: Callable[[Context], Keeper]
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    let_through: frozenset[str]

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        kind = message.metadata.message_type
        if kind.partition(".")[0] in self.let_through:
            return call_next(message, context)
        if kind != MessageType.TRAIN:
            raise ConfigError(
                f"this site answers no message of type {kind!r}",
                hint="secagg_mod(let_through=...) names categories whose replies leave in clear",
            )
        try:
            return self._answer(message, context, call_next)
        except VeilsumError as error:
            # Flower shows and sends what is wrong; what to do about it is for this site's log only.
            _LOG.error("veilsum: %s", error.in_a_line)
            raise

    def _answer(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        keeper = self.keeper(context)
        answer = keeper.deliver(from_content(message.content))
        if isinstance(answer, Training):
            answer = keeper.trained(self._train(answer, message, context, call_next))
        return Message(to_content(answer), reply_to=message)

    def _train(
        self,
        training: Training,
        message: Message,
        context: Context,
        call_next: ClientAppCallable,
    ) -> Trained:
        _, layout, arrays = read_model_part(training.model)
        message.content = RecordDict(
            {
                self.arrayrecord_key: to_record(layout, arrays),
                self.configrecord_key: _settings(training),
            }
        )
        try:
            reply = call_next(message, context)
            return _trained(training, reply, self.weighted_by_key)
        except Exception:  # noqa: BLE001
            # The app may raise anything, and its text may quote records: it stays at the site.
            _LOG.exception("the app could not train")
            return Trained(training.round)


def _settings(training: Training) -> ConfigRecord:
    task = training.task
    settings: dict[str, Any] = {
        "server-round": training.round.number,
        "epochs": task.epochs,
        "batch-size": task.batch_size,
        "learning-rate": task.learning_rate,
        "proximal": task.proximal,
        "seed": task.seed,
    }
    return ConfigRecord(settings)


def _trained(training: Training, reply: Message, weighted_by_key: str) -> Trained:
    read = read_train_reply(reply, "this", weighted_by_key)
    if not isinstance(read.update, Model):
        raise PeerError("this", "encodes its updates itself", hint="leave encode_mod out")
    model = model_part(training.round, read.update.layout, read.update.arrays)
    return Trained(training.round, model, read.weight, _metrics(read.rest, weighted_by_key))


def _metrics(content: RecordDict, weighted_by_key: str) -> dict[str, float]:
    """Those of the app that are numbers; which of them leave, masked, the run says."""
    return {
        name: float(value)
        for _, record in records_of(content, MetricRecord)
        for name, value in record.items()
        if name != weighted_by_key and isinstance(value, int | float)
    }
