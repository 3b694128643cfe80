"""One update, in whatever form, into a native aggregator: what all aggregators do alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray
from typing_extensions import Buffer

from veilsum import _native
from veilsum.arrays import plain_number, whole_number
from veilsum.codecs import EncodedUpdate
from veilsum.errors import ConfigError, PeerError
from veilsum.model import ModelLayout, fit_arrays, fit_resident


@dataclass(frozen=True, slots=True)
class Share:
    """Whose update it is, and how much it counts."""

    site: str
    weight: int
    gain: float = 1.0

    def __post_init__(self) -> None:
        """The native core would refuse these too, in a message that quotes the update."""
        if not isinstance(self.site, str):
            raise ConfigError(
                f"a site's name must be a str, got {type(self.site).__name__}",
                hint="name sites by what tells them apart in your federation: str(...)",
            )
        if not hasattr(self.gain, "__float__"):
            raise ConfigError(f"gain must be a number, got {type(self.gain).__name__}")


class NativeAggregator(Protocol):
    """What this module needs of a native aggregator."""

    def add_arrays(
        self, site: str, weight: int, arrays: Sequence[NDArray[Any]], *, gain: float
    ) -> None: ...
    def borrow_arrays(
        self, site: str, weight: int, arrays: Sequence[NDArray[Any]], *, gain: float
    ) -> None: ...
    def add_chunks(
        self,
        site: str,
        weight: int,
        chunks: Sequence[Buffer],
        *,
        codec: int,
        scale: float,
        plan_digest: bytes,
        update_id: int,
        chunk_coordinates: int,
        gain: float,
        transform: _native.Transform | None,
    ) -> None: ...


def add_update(
    native: NativeAggregator, layout: ModelLayout, update: Any, share: Share, *, copy: bool
) -> None:
    """Adds arrays by name, an encoded update or the bytes of one.

    Raises:
        PeerError: the update is not one for the layout, or the aggregator refuses it.
        DecodeError: encoded bytes are not as they must be.
    """
    site, weight, gain = share.site, share.weight, share.gain
    if isinstance(update, Mapping):
        add = native.add_arrays if copy else native.borrow_arrays
        add(site, weight, _fitted(layout, update, site), gain=gain)
        return
    parsed = _parsed(update, layout)
    if parsed.layout != layout:
        raise PeerError(site, "sent an update of another layout")
    form = parsed.form
    native.add_chunks(
        site,
        weight,
        parsed.body,
        codec=form.number,
        scale=form.scale,
        plan_digest=form.plan_digest,
        update_id=form.update_id,
        chunk_coordinates=form.chunk_coordinates,
        transform=form.native_transform,
        gain=gain,
    )


def _fitted(layout: ModelLayout, arrays: Mapping[str, Any], site: str) -> list[NDArray[Any]]:
    try:
        return fit_arrays(layout, arrays)
    except ConfigError as error:
        raise PeerError(site, f"sent a bad update: {error}", hint=error.hint) from error


def add_resident(
    native: _native.MeanAggregator, layout: ModelLayout, update: Mapping[str, Any], share: Share
) -> None:
    """Adds an update whose floating-point tensors lie on the aggregator's device, and stay there.

    Raises:
        PeerError: the update is not one for the layout, or the aggregator refuses it.
        DeviceError: the device fails.
    """
    arrays = _fitted_on_device(layout, update, share.site)
    native.borrow_device_arrays(share.site, share.weight, arrays, gain=share.gain)


def _fitted_on_device(layout: ModelLayout, arrays: Mapping[str, Any], site: str) -> list[Any]:
    try:
        return fit_resident(layout, arrays)
    except ConfigError as error:
        raise PeerError(site, f"sent a bad update: {error}", hint=error.hint) from error


def _parsed(update: Any, layout: ModelLayout) -> EncodedUpdate:
    if isinstance(update, EncodedUpdate):
        return update
    try:
        return EncodedUpdate.from_bytes(update, max_bytes=_most_bytes(layout))
    except TypeError as error:
        raise ConfigError(
            f"an update cannot be a {type(update).__name__}",
            hint="give arrays by name, an EncodedUpdate, or its bytes",
        ) from error


def _most_bytes(layout: ModelLayout) -> int:
    """No codec's chunks of such a model have more bytes: 8 per coordinate and headers."""
    return 9 * sum(layout.native.group_size(group) + 4096 for group in (1, 2))


def whole_weight(site: str, weight: object) -> int:
    """An integer of any library, or a float that is one; booleans are a mistake."""
    weight = plain_number(weight)
    whole = whole_number(weight)
    if whole is None:
        raise PeerError(
            site,
            f"has weight {weight!r}, which is not a whole number",
            hint="give numbers of samples, or scale the weights of all sites until they are whole",
        )
    return whole
