"""Encoded updates: arrays to compact, checked bytes and back (docs/format.md).

`veilsum.codecs` is also the function of that name: calling the module lists the codecs.
"""

from __future__ import annotations

import sys
from types import ModuleType

from veilsum.codecs.clipping import ring_clip, ring_error
from veilsum.codecs.encoding import codecs, decode, encode
from veilsum.codecs.error_feedback import ErrorFeedback
from veilsum.codecs.update import EncodedUpdate

__all__ = [
    "EncodedUpdate",
    "ErrorFeedback",
    "codecs",
    "decode",
    "encode",
    "ring_clip",
    "ring_error",
]


class _CallableModule(ModuleType):
    # Importing a submodule sets it as an attribute of its package, so that after
    # `import veilsum.codecs` the name veilsum.codecs is this module and no longer the
    # public function. Being callable, it is both.
    def __call__(self) -> tuple[str, ...]:
        return codecs()


sys.modules[__name__].__class__ = _CallableModule
