"""What a site's task result filter does with an update before it leaves the site."""

from __future__ import annotations

from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from veilsum.errors import ConfigError
from veilsum.integrations.encoding import UpdateEncoder
from veilsum.integrations.nvflare.payload import native_params
from veilsum.integrations.nvflare.tensors import gathered, read_tensors


class EncodeFilter(DXOFilter):  # type: ignore[misc]  # NVFLARE has no types
    """Encodes each update, so that it travels compressed; VeilsumAggregator decodes it as it sums.

        recipe.add_client_output_filter(EncodeFilter("int8"), tasks=["train"])

    No filter of the server must undo it, and no other aggregator takes what it makes.
    """

    def __init__(
        self,
        codec: str = "int8",
        stochastic: bool = False,
        models: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Plain values only, as a job's configuration has them.

        Args:
            codec: one of veilsum.codecs().
            stochastic: round up or down at random, without bias, by randomness of the operating
                system that is fresh for each update. For codecs that take a seed.
            models: whether whole models are encoded too, and not only differences. Few bits tell
                little about a model, whose changes are small beside it.
            options: of the codec, as veilsum.encode takes them.

        Raises:
            ConfigError: an unknown codec or option.
        """
        kinds = [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF]
        super().__init__(supported_data_kinds=kinds, data_kinds_to_filter=kinds)
        # NVFLARE writes a job's configuration from attributes named like the parameters.
        self.codec = codec
        self.stochastic = stochastic
        self.models = models
        self.options = options
        self._encoder = UpdateEncoder(codec, stochastic=stochastic, options=options or {})

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        """The DXO with the update encoded.

        Raises:
            ConfigError: it is a model and not a difference, another filter has worked on it, or it
                cannot be encoded.
        """
        if dxo.data_kind == DataKind.WEIGHTS and not self.models:
            raise ConfigError(
                "the update is a whole model, and EncodeFilter encodes differences",
                hint="give the recipe params_transfer_type=TransferType.DIFF, or the filter "
                "models=True",
            )
        before = dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM)
        if before is not None:
            raise ConfigError(
                f"the update was processed by {before!r} already", hint="use one of the filters"
            )
        layout, arrays = gathered(read_tensors(dxo.data, None))
        update, _ = self._encoder.encode(layout, arrays)
        params, algorithm = native_params(update)
        self.log_debug(fl_ctx, f"encoded {layout} as {update}")
        encoded = DXO(dxo.data_kind, params, dict(dxo.meta))
        encoded.set_meta_prop(MetaKey.PROCESSED_ALGORITHM, algorithm)
        return encoded
