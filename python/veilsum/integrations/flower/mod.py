"""What a ClientApp's mod does with a training reply before it leaves the site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from numpy.typing import NDArray

from veilsum.codecs import EncodedUpdate
from veilsum.difference import model_difference
from veilsum.errors import ConfigError
from veilsum.integrations.encoding import UpdateEncoder
from veilsum.integrations.flower.arrays import read_arrays, read_model, records_of, to_record
from veilsum.integrations.flower.native import native_record
from veilsum.integrations.rounds import Model
from veilsum.model import ModelLayout

ClientAppCallable = Callable[[Message, Context], Message]
Arrays = Mapping[str, NDArray[Any]]
Mod = Callable[[Message, Context, ClientAppCallable], Message]

_FEEDBACK_KEY = "veilsum.error-feedback"


def encode_mod(
    codec: str = "int8",
    *,
    difference: bool = False,
    stochastic: bool = False,
    error_feedback: bool = False,
    **options: Any,
) -> Mod:
    """A mod that encodes the update in each training reply, so that it travels compressed.

    The strategy must be one of this package; Flower's own refuse what it sends.

        app = ClientApp(mods=[encode_mod("int8", difference=True)])

    Args:
        codec, options: as veilsum.encode takes them.
        difference: encode the difference to the model that was received. It is small beside the
            model, so few bits tell more about it. The strategy then needs difference=True.
        stochastic: round up or down at random, without bias, by randomness of the operating
            system that is fresh for each update. For codecs that take a seed.
        error_feedback: add what the codec loses of one update to the site's next one
            (veilsum.ErrorFeedback). The loss is kept in the node's state, as private as its data.

    Raises:
        ConfigError: an unknown codec or option.
    """
    encoder = UpdateEncoder(codec, stochastic, error_feedback, options)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if not _is_training(message):
            return call_next(message, context)
        # Taken before the app may change the message; the bytes themselves cannot change.
        received = _only_model(message, "the training message")[1] if difference else None
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        key, trained = _only_model(reply, "the training reply")
        summand = trained.arrays if received is None else _difference(trained, received)
        update = _encoded(encoder, trained.layout, summand, context.state)
        reply.content[key] = native_record(update, difference=difference)
        return reply

    return mod


def _encoded(
    encoder: UpdateEncoder, layout: ModelLayout, arrays: Arrays, state: RecordDict
) -> EncodedUpdate:
    before = dict(records_of(state, ArrayRecord)).get(_FEEDBACK_KEY)
    update, lost = encoder.encode(layout, arrays, None if before is None else read_arrays(before))
    if lost is not None:
        state[_FEEDBACK_KEY] = to_record(ModelLayout.from_arrays(lost), lost)
    return update


def _is_training(message: Message) -> bool:
    kind = message.metadata.message_type
    return bool(kind == MessageType.TRAIN or kind.startswith(f"{MessageType.TRAIN}."))


def _only_model(message: Message, what: str) -> tuple[str, Model]:
    """The one model in a message, and the name of its record."""
    records = records_of(message.content, ArrayRecord)
    if len(records) != 1:
        raise ConfigError(
            f"{what} has {len(records)} ArrayRecords, expected the model alone",
            hint="send other arrays as metrics, or leave out encode_mod",
        )
    key, record = records[0]
    return key, Model(*read_model(record))


def _difference(trained: Model, received: Model) -> Arrays:
    if trained.layout != received.layout:
        raise ConfigError(
            f"the trained model is {trained.layout}, the one received was {received.layout}: "
            "names, dtypes, shapes or their order differ",
            hint="return the tensors as they were received, or give encode_mod difference=False",
        )
    return model_difference(trained.layout, trained.arrays, received.arrays)
