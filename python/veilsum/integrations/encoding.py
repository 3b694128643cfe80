"""How a site encodes its updates before they leave it, in whichever host."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veilsum.codecs import EncodedUpdate, ErrorFeedback, encode
from veilsum.errors import ConfigError
from veilsum.model import ModelLayout

Arrays = Mapping[str, NDArray[Any]]

_STOCHASTIC = ("int8", "int4", "ring")
_PROBE = np.zeros(64, np.float32)


@dataclass(frozen=True, slots=True)
class UpdateEncoder:
    """A codec and how it is used, checked as soon as it is chosen.

    Attributes:
        codec, options: as veilsum.encode takes them.
        stochastic: round up or down at random, without bias, by randomness of the operating
            system that is fresh for each update.
        error_feedback: add what the codec loses of one update to the site's next one.

    Raises:
        ConfigError: an unknown codec or option, or settings that exclude each other.
    """

    codec: str
    stochastic: bool = False
    error_feedback: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stochastic and not self.codec.startswith(_STOCHASTIC):
            raise ConfigError(
                f"codec {self.codec} does not round at random",
                hint=f"leave out stochastic=True, or take one of {', '.join(_STOCHASTIC)}",
            )
        if not isinstance(self.options.get("clip"), Mapping):  # else it is for a certain model
            encode({"w": _PROBE}, self.codec, **self.options)
        if self.error_feedback:
            ErrorFeedback(self.codec, **self.options)

    def encode(
        self, layout: ModelLayout, arrays: Arrays, lost: Arrays | None = None
    ) -> tuple[EncodedUpdate, Arrays | None]:
        """An update, and what the codec lost of it; None without error feedback.

        Args:
            lost: what it lost of the site's last update.

        Raises:
            ConfigError: as veilsum.encode.
        """
        seed = secrets.token_bytes(32) if self.stochastic else None
        if not self.error_feedback:
            return encode(arrays, self.codec, layout=layout, seed=seed, **self.options), None
        feedback = ErrorFeedback(self.codec, **self.options)
        if lost is not None:
            feedback.load_state_dict(lost, layout)
        update = feedback.encode(arrays, layout=layout, seed=seed)
        return update, feedback.state_dict()
