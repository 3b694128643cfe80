"""Updates in other projects' formats: GGML blocks, and what NVFLARE's quantizer sends."""

from __future__ import annotations

from veilsum.codecs.ggml import GgmlTensor, export_ggml, ggml_arrays, import_ggml
from veilsum.codecs.nvflare import import_nvflare, nvflare_arrays

__all__ = [
    "GgmlTensor",
    "export_ggml",
    "ggml_arrays",
    "import_ggml",
    "import_nvflare",
    "nvflare_arrays",
]
