"""The native core, as Python sees it. Held to the built module by stubtest.

Nothing here has defaults, parses strings from users or decides policy; that is
the Python layer's work. Every function that walks data releases the GIL. Arrays
must be C-contiguous, native-endian and of the dtype named; anything else is a
TypeError that names the argument, never a silent copy. Errors are the classes of
veilsum.errors.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Words: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]

# --- instruction sets and devices (register_devices.cpp) ---------------------

def supported_isas() -> tuple[str, ...]:
    """Instruction-set levels this CPU runs, weakest first: "base" "v2" "v3" "v4"."""

def active_isa() -> str:
    """The level in use: VEILSUM_ISA if set, else the strongest supported.

    Raises:
        ConfigError: VEILSUM_ISA names a level this CPU or build does not have.
    """

def use_isa(name: str) -> None:
    """Switches every kernel of this process to one level; "" goes back to the default.

    Raises:
        ConfigError: the level is unknown or this CPU lacks it.
    """

def supported_aes() -> tuple[str, ...]:
    """Implementations of AES this CPU runs, slowest first: "bitsliced" (every CPU), "aesni",
    "vaes256", "vaes512". All give the same bits, and none looks anything up."""

def active_aes() -> str:
    """The one in use: VEILSUM_AES if set, else the fastest that the level in use allows for
    ("bitsliced" at base, up to "aesni" at v2, "vaes256" at v3, "vaes512" at v4).

    Raises:
        ConfigError: VEILSUM_AES names one this CPU or build does not have.
    """

def use_aes(name: str) -> None:
    """Switches this process to one implementation of AES; "" goes back to the default.

    Raises:
        ConfigError: it is unknown or this CPU lacks it.
    """

def compiler() -> str:
    """Compiler and version the core was built with, e.g. "GNU 12.2.0"."""

@final
class DeviceArray:
    """C-contiguous values in device memory; nothing is still to be written to them."""

    def __init__(self, backend: str, array: NDArray[Any], dtype: str) -> None:
        """A copy on a device of values of this dtype of a layout (bf16 as uint16)."""
    @staticmethod
    def empty(backend: str, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Room on a device for values that are still to be written."""
    @property
    def device(self) -> str:
        """ "cuda:0"."""
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str:
        """Of a layout: "f32"."""
    @property
    def nbytes(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. AttributeError for bf16."""
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(self, **options: Any) -> Any:
        """A capsule of DLPack 0.x, ready on every stream."""
    def to_host(self) -> NDArray[Any]:
        """A copy; bf16 as uint16 bit patterns."""

def is_device_array(object: Any) -> bool:
    """Whether it says of itself that it is in CUDA memory, or is a DeviceArray."""

def device_array(object: Any, *, kind: str = "cuda") -> DeviceArray:
    """An array of another library where it lies: through DLPack, or else
    __cuda_array_interface__, of devices of this kind. Waits for what its library has still to
    write to it, on its own stream."""

def overwrite_device_array(array: DeviceArray, values: DeviceArray) -> None:
    """Writes values over those of an array: for tests of arrays that were lent."""

def use_launch_shape(*, blocks: int, threads: int) -> None:
    """Shape of every launch from now on; 0 is the kernel's own choice. Results are the same."""

def use_pass_memory(*, window_bytes: int, window_tiles: int) -> None:
    """How much of a set a pass on a device takes at a time. Results are the same."""

def use_emulator(
    *, seed: int = 0, memory_bytes: int = 1 << 30, lost_at_call: int = 0, needle: bytes = b""
) -> None:
    """Settings of emulated devices: the order of threads, blocks and streams; how much memory
    each has; the call from which on all fail (0: none); bytes that must not be left in memory that
    is given back. Counts calls anew."""

def emulator_needles() -> int:
    """How often emulated devices found the needle since use_emulator()."""

def emulator_calls() -> int:
    """Calls of emulated devices since use_emulator()."""

def emulator_copied_bytes() -> int:
    """Bytes that were copied to emulated devices since use_emulator()."""

def emulator_bytes() -> int:
    """Memory that is allocated on emulated devices."""

def require_device(name: str) -> None:
    """Raises ConfigError or DeviceError unless there is a device of this name."""

def device_benchmarks() -> tuple[str, ...]:
    """What device_benchmark() can time."""

def device_benchmark(
    backend: str, name: str, *, bytes: int, repeats: int
) -> tuple[tuple[float, ...], float, float]:
    """Times a copy or a kernel on about so many bytes, by the device's own clock: (seconds of each
    repetition, bytes read and written by one, integer operations of one or 0). What an emulated
    device says is the host's time.

    Raises:
        ConfigError: no such benchmark.
        DeviceError: no such device, or it failed.
    """

def kernel_times(backend: str, call: Callable[[], object]) -> list[tuple[str, int, float]]:
    """Makes the call and says what its kernels took on a device, by the device's own clock: (name,
    launches, seconds of all of them). One call at a time in a process.

    Raises:
        ConfigError, DeviceError: no such device, or it failed.
    """

def cuda_status() -> tuple[bool, tuple[str, ...], str]:
    """(built with CUDA, device names, why there is no device or ""). Never raises."""

# --- secrets (register_secrets.cpp) ------------------------------------------

@final
class Secret:
    """Bytes in locked, undumpable memory that are overwritten when released.

    Supports the buffer protocol (writable), so that a library can read from it or
    write into it without a Python copy. repr() shows size and id only. Not
    picklable, not copyable, not hashable by content.
    """

    @staticmethod
    def zeros(size: int) -> Secret:
        """1 to 2**20 zero bytes, to be filled through the buffer."""

    @staticmethod
    def from_os(size: int) -> Secret:
        """Fresh bytes from the operating system's generator (getrandom)."""

    @staticmethod
    def from_bytes(data: Buffer) -> Secret:
        """A copy of `data`. The caller's own copy stays the caller's problem."""

    @staticmethod
    def take(data: bytes, /) -> Secret:
        """The content of a bytes object that a library returned; the object is overwritten.

        It must be the result of a call that nobody has a name for, as in
        `Secret.take(key.exchange(peer))`: bytes are immutable to everyone else who holds
        them, and one byte or none is an object that all share.

        Raises:
            TypeError: not exactly bytes.
            ConfigError: somebody else holds the object, which then stays as it is.
        """

    @property
    def id(self) -> int:
        """A process-wide serial number; says nothing about the content."""

    @property
    def wiped(self) -> bool: ...
    def wipe(self) -> None:
        """Overwrites the bytes now. Later use raises ConfigError. Idempotent."""

    def equals(self, other: Secret) -> bool:
        """Compares content in time independent of where it differs."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

# --- Shamir sharing over GF(2^128) (register_masks.cpp) -----------------------

def deal_shares(
    secret: Secret, threshold: int, indices: Sequence[int], coefficients: Secret
) -> list[Secret]:
    """One 32-byte share of a 32-byte secret per index.

    The secret is two big-endian 16-byte elements of GF(2^128) with polynomial
    x^128+x^7+x^2+x+1; each has its own polynomial of degree threshold-1.

    Args:
        indices: evaluation points, distinct, 1..2**32-1 (an index is the integer
            as a field element).
        coefficients: 32*(threshold-1) random bytes: first limb's coefficients of
            degree 1, 2, ..., each 16 bytes big-endian, then the second limb's.

    Raises:
        ConfigError: wrong sizes, threshold < 2, threshold > len(indices), zero or repeated
            index.
    """

def combine_shares(indices: Sequence[int], shares: Sequence[Sequence[Secret]]) -> list[Secret]:
    """Rebuilds many secrets whose shares come from one set of indices.

    Args:
        indices: t distinct nonzero indices.
        shares: per secret, its t shares in the order of `indices`.

    Raises:
        ConfigError: zero or repeated index, wrong count or size.
    """

# --- ring words and masks (register_masks.cpp) --------------------------------
# Words of up to 32 bits live in uint32 arrays, wider ones in uint64. Bits above
# `bits` are scratch in an accumulator and are cleared by pack_ring and center_ring.

def add_masks(
    accumulator: _Words,
    keys: Sequence[Secret],
    signs: Sequence[int],
    *,
    generator: str,
    stream: int,
    first: int,
    bits: int,
    threads: int,
    backend: str = "cpu",
) -> None:
    """accumulator[i] += sum over k of signs[k] * PRG(keys[k], stream, first+i, bits).

    Tile T = element div 512, nonce = LE32(stream) || LE32(T >> 20) || "VSM1"; the tile's
    64*bits bytes of keystream as one little-endian bit string hold its 512 elements.
    Generator "chacha20" (RFC 8439): initial counter (T mod 2^20)*bits. "aes256ctr" (FIPS 197,
    SP 800-38A): counter block i of the tile is nonce || BE32(4*(T mod 2^20)*bits + i). Any
    range, any width 1..64, same bits on every instruction set, thread count and backend.

    Raises:
        ConfigError: no such generator or backend, a key is not 32 bytes, a sign is not +1 or -1,
            bits or range out of bounds.
        DeviceError: there is no such device, or it failed: the accumulator is part old, part new.
    """

def add_mask_tiles(
    accumulator: _Words,
    keys: Sequence[Secret],
    signs: Sequence[int],
    *,
    generator: str,
    stream: int,
    tiles: Sequence[int],
    bits: int,
    threads: int,
) -> None:
    """add_masks of some tiles only, 512 words of the accumulator for each, in this order. Always on
    the CPU and with the weakest instruction set of this build: it checks what others computed.

    Raises:
        ConfigError: as add_masks, or not 512 words for each tile.
    """

def pack_ring(words: _Words, bits: int) -> bytes:
    """Low `bits` of each word, densely packed little-endian, zero padded to a whole byte."""

def unpack_ring(data: Buffer, count: int, bits: int) -> NDArray[np.uint64]:
    """Inverse of pack_ring.

    Raises:
        DecodeError: wrong length, or a padding bit is set.
    """

def center_ring(words: _Words, bits: int) -> NDArray[np.int64]:
    """Each word mod 2**bits as a signed integer in [-2**(bits-1), 2**(bits-1)).

    bits=1 gives -1 and 0.
    """

# --- model layout (register_layout.cpp) ---------------------------------------

@final
class Layout:
    """Names, dtypes and shapes of a model's tensors, and where each lies on the grid.

    Two tensor groups: group 1 holds floating-point tensors, group 2 integer ones
    (group 0 is a masked round's scalars and is no part of a layout). Each group is
    a coordinate space of its own; in it tensors start on multiples of 64, in layout
    order, and the space ends on a multiple of 64 (gaps are zero).
    """

    def __init__(self, tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> None:
        """From (name, dtype, shape), in order.

        dtypes: f16 bf16 f32 f64 i8 i16 i32 i64 u8 u16 u32 u64.

        Raises:
            ConfigError: unknown dtype (bool, complex, object are refused by name),
                repeated or empty name, name over 512 UTF-8 bytes, rank over 8, over
                65,536 tensors, over 2**40 coordinates.
        """

    @staticmethod
    def from_bytes(data: Buffer) -> Layout:
        """Parses canonical bytes; refuses anything that would not re-encode to the same bytes.

        Raises:
            DecodeError: not a canonical layout.
        """

    def to_bytes(self) -> bytes:
        """Canonical bytes: "VLL1", LE32 tensor count, then per tensor LE16 name length, name,
        u8 dtype code, u8 rank, LE64 per dimension. dtype codes: 1 f16, 2 bf16, 3 f32, 4 f64,
        5 i8, 6 i16, 7 i32, 8 i64, 9 u8, 10 u16, 11 u32, 12 u64."""

    @property
    def tensors(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]: ...
    @property
    def size(self) -> int:
        """Elements of all tensors, gaps not counted."""

    def group_size(self, group: int) -> int:
        """Coordinates of group 1 or 2, gaps counted; a multiple of 64, 0 if the group is empty."""

    def offsets(self, group: int) -> tuple[tuple[int, int, int], ...]:
        """(tensor number in the layout, first coordinate, elements) of each tensor of a group."""

# --- chunks (register_codec.cpp) ----------------------------------------------
# Codec numbers: 1 f32, 2 f16, 3 bf16, 4 int8 (block 64, one f32 scale per block),
# 5 i64 (group 2 only), 0x100 | b: ring words of b bits.
# A chunk covers coordinates [index*chunk_coordinates, ...) of one group, the last
# chunk of a group being shorter. 64-byte header and CRC32C as in docs/format.md.

def codec_number(name: str) -> int:
    """ "f32" -> 1, ..., "ring22" -> 0x116. ConfigError names the known ones."""

def codec_name(number: int) -> str: ...
def require_codec(layout: Layout, codec: int) -> None:
    """ConfigError unless an update of the layout can travel by the codec: it carries
    floating-point tensors, and no block of it reaches from one of them into the next."""

def chunk_size(codec: int, coordinates: int) -> int:
    """Exact bytes of a chunk, header included: a function of codec and count only."""

def encode_chunks(
    layout: Layout,
    arrays: Sequence[NDArray[Any]],
    *,
    codec: int,
    scale: float,
    limit: float,
    rounding: Secret | None,
    least_error: bool,
    plan_digest: bytes,
    update_id: int,
    chunk_coordinates: int,
    threads: int,
    transform: Transform | None = None,
    clip: bool = False,
) -> list[bytes]:
    """Encodes group 1 with `codec` and group 2 with i64; all chunks in (group, index) order.

    Args:
        arrays: one per tensor in layout order, C-contiguous, dtype as in the layout
            (bf16 as uint16 bit patterns), same element count.
        scale, limit: ring codecs only (0 otherwise): steps per unit, and the largest
            |value| accepted.
        rounding: 32 secret bytes for stochastic rounding (int8 and ring codecs), or
            None for round-to-nearest-even. Philox4x32-10, key = first 8 bytes LE,
            counter = (coordinate div 4, group): 24-bit uniforms, a function of the
            coordinate alone.
        least_error: eden codecs: scales for the smallest error instead of a right mean.
        transform: see there.
        clip: ring codecs only: whether values beyond the limit are clamped, not refused.
        plan_digest: 32 bytes; its first 8 go into each header.

    Raises:
        ConfigError: a value is not finite (names the tensor and how many), exceeds
            `limit`, overflows the codec, or arrays do not fit the layout.
    """

def assemble_chunks(
    layout: Layout,
    scales: Buffer,
    codes: Buffer,
    *,
    codec: int,
    plan_digest: bytes,
    update_id: int,
    chunk_coordinates: int,
) -> list[bytes]:
    """Chunks of group 1 from the sections of all of them, one after the other.

    Nothing in the sections is checked; check_chunk does that.

    Raises:
        ConfigError: the sections have other sizes than the layout asks for.
    """

def encode_ring_chunks(
    layout: Layout,
    arrays: Sequence[NDArray[Any] | DeviceArray],
    *,
    bits: int,
    gains: NDArray[np.float64],
    limits: NDArray[np.float64],
    clip: bool,
    rounding: Secret | None,
    keys: Sequence[Secret],
    signs: Sequence[int],
    generator: str,
    plan_digest: bytes,
    update_id: int,
    chunk_coordinates: int,
    threads: int,
    scale_block: int = 0,
    rotation_block: int = 0,
    rotation_key: Buffer = ...,
    rotated_limit: float = 0.0,
    backend: str = "cpu",
) -> tuple[list[bytes], int]:
    """Encodes and masks group 1 in one pass: no unmasked step is ever written to memory that
    outlives its range.

    step = round(clamp(value, +-limit) * gain), as in encode_chunks; word = step + masks of
    stream 1 mod 2**bits, as in add_masks. With no keys the chunks are not flagged masked.

    Args:
        gains, limits: one per tensor of group 1, in group order; with a scale_block one per so
            many coordinates. With a rotation there are no limits, and rotated_limit takes their
            place (see Transform).
        clip: False refuses a value beyond its limit; True clamps and counts.
        backend: "cpu", or a device; the chunks are the same. Floating-point tensors that are
            DeviceArrays of it are read where they lie.

    Returns:
        The chunks of group 1, and how many values were clamped.

    Raises:
        ConfigError: as encode_chunks; gains*limits beyond the ring's signed range; a DeviceArray
            of another device.
        DeviceError: there is no such device, or it failed: there are no chunks.
    """

def encode_ring_tiles(
    layout: Layout,
    arrays: Sequence[NDArray[Any] | DeviceArray],
    *,
    tiles: Sequence[int],
    bits: int,
    gains: NDArray[np.float64],
    limits: NDArray[np.float64],
    rounding: Secret | None,
    keys: Sequence[Secret],
    signs: Sequence[int],
    generator: str,
    scale_block: int = 0,
    rotation_block: int = 0,
    rotation_key: Buffer = ...,
    rotated_limit: float = 0.0,
    backend: str = "cpu",
) -> NDArray[np.uint64]:
    """The words that encode_ring_chunks packs in a few tiles of 512, always computed on the CPU.

    Args:
        tiles: their numbers; word 512 * i is the first of tiles[i]. Behind the last coordinate
            words are 0.
        backend: where DeviceArrays lie. Values are finite: encode_ring_chunks has seen to it.

    Raises:
        ConfigError: there is no such tile; gains or limits that encode_ring_chunks refuses.
        DeviceError: values cannot be read from their device.
    """

def ring_word_chunks(
    words: NDArray[np.uint64],
    *,
    bits: int,
    group: int,
    keys: Sequence[Secret],
    signs: Sequence[int],
    generator: str,
    plan_digest: bytes,
    update_id: int,
    chunk_coordinates: int,
    threads: int,
) -> list[bytes]:
    """Masks (stream = group) and packs ready ring words into chunks; `words` is not changed."""

def check_chunk(
    chunk: Buffer,
    *,
    codec: int,
    group: int,
    group_size: int,
    masked: bool,
    plan_digest: bytes,
    update_id: int,
    chunk_coordinates: int,
    transforms: int = 0,
) -> int:
    """Checks one foreign chunk completely and returns its index.

    Magic, version, header size, codec, flags, group, offset and count on the grid,
    exact length before anything is read, plan, update id, CRC32C, zero padding,
    alphabet (int8: no -128; scales finite, not negative, not subnormal; scale 0 only with
    zero codes), finite values for float codecs, zeros in ring padding bits.

    Raises:
        DecodeError: says which field, what was found and what was expected.
    """

def decode_chunks(
    layout: Layout,
    chunks: Sequence[Buffer],
    *,
    codec: int,
    scale: float,
    plan_digest: bytes,
    update_id: int,
    chunk_coordinates: int,
    transform: Transform | None = None,
    threads: int = 1,
) -> list[NDArray[Any]]:
    """Decodes a complete plain update (all chunks in (group, index) order, as encode_chunks made).

    Returns:
        One array per tensor in layout order and dtype; bf16 tensors come back as float32.

    Raises:
        DecodeError: any chunk fails check_chunk, is missing, repeated or out of order, or a
            gap between tensors is not zero.
    """

def fold_ring_chunks(
    accumulator: _Words,
    uploads: Sequence[Sequence[Buffer]],
    *,
    bits: int,
    chunk_coordinates: int,
    threads: int,
    backend: str = "cpu",
) -> None:
    """Adds the words of several uploads to the accumulator: for each, one group's complete,
    already checked chunks. On the CPU the accumulator is read and written once per four uploads,
    on a device once.

    Raises:
        DecodeError: chunks are missing or out of order; nothing was added.
        DeviceError: there is no such device, or it failed: the accumulator is part old, part new.
    """

def fold_ring_tiles(
    accumulator: _Words,
    uploads: Sequence[Sequence[Buffer]],
    *,
    tiles: Sequence[int],
    elements: int,
    bits: int,
    chunk_coordinates: int,
) -> None:
    """fold_ring_chunks of some mask tiles only, on the CPU and with its weakest instruction set:
    512 words of the accumulator for each, in this order. The group has this many elements; the last
    tile may be short.

    Raises:
        ConfigError: there is no such tile, or not 512 words for each.
        DecodeError: chunks are missing or out of order; nothing was added.
    """

def checksum(buffers: Sequence[Buffer], *, threads: int) -> int:
    """CRC32C over contiguous buffers: whether they are the same bytes as before, for this process
    and no other."""

# --- server optimizers (register_optimizers.cpp) -------------------------------

def optimizer_moments(optimizer: str) -> tuple[bool, bool]:
    """Whether "fedavg", "fedavgm", "fedadagrad", "fedadam" or "fedyogi" keeps a first and a
    second moment. ConfigError names the known ones."""

@final
class ServerStep:
    """One step of a server optimizer and the arrays it works on, which it keeps alive."""

    def __init__(
        self,
        layout: Layout,
        *,
        optimizer: str,
        learning_rate: float,
        gain: float,
        beta1: float,
        beta2: float,
        tau: float,
        model: Sequence[NDArray[Any] | DeviceArray],
        first: Sequence[NDArray[Any] | DeviceArray],
        second: Sequence[NDArray[Any] | DeviceArray],
        updated: Sequence[NDArray[Any] | DeviceArray],
    ) -> None:
        """Arithmetic as docs/numerics.md says; what an optimizer does not use is not looked at.

        Args:
            gain: multiplies the mean first.
            beta1: the momentum, for fedavgm.
            model, updated: one array per tensor in layout order, dtypes of the layout (bf16 as
                uint16 bit patterns), C-contiguous. May be the same arrays.
            first, second: one per floating-point tensor in layout order, f64 for f64 and f32
                otherwise, changed in place; empty lists if the optimizer has no such moment.
            Floating-point arrays of the model, the moments and the new model may each lie all
                on one device; MeanAggregator.finish_step then makes the step there.

        Raises:
            ConfigError: arrays or moments are not those of layout and optimizer, or lie on
                several devices.
        """

    def apply(self, mean: Sequence[NDArray[Any]], *, threads: int) -> None:
        """Makes the step; the same bits for any threads and instruction set.

        Raises:
            ConfigError: a new value or moment does not fit its dtype. Moments and updated
                values are then partly old, partly new.
        """

# --- exact weighted mean (register_mean.cpp) ----------------------------------

@final
class MeanAggregator:
    """Exact weighted mean over committed updates; thread-safe.

    Spool discipline: add() screens (finite, per-tile maximum) and keeps the update in its
    wire form (in memory, or in `spool` as one file per update, mapped); finish() makes one
    pass per tile of 4096 coordinates in int64 with a scale taken from the committed set's own
    maxima and weights. Streaming discipline (streaming_max_abs > 0): the scale is fixed by the
    bound, add() sums at once and keeps nothing.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        threads: int,
        spool: str,
        streaming_max_abs: float,
        streaming_max_total_weight: int,
        backend: str = "cpu",
    ) -> None:
        """spool "" keeps updates in memory; streaming_max_abs 0 means not streaming; backend
        "cpu", "cuda:N" or "emu:N"."""

    def add_arrays(
        self, site: str, weight: int, arrays: Sequence[NDArray[Any]], *, gain: float = 1.0
    ) -> None:
        """Adds one update. The mean of floating-point tensors is
        sum(weight * gain * value) / sum(weight), that of integer ones has no gain.

        Raises:
            PeerError: not finite, repeated site, weight outside 1..2**31-1, gain outside
                2**-32..1, beyond the declared bound.
        """

    def borrow_arrays(
        self, site: str, weight: int, arrays: Sequence[NDArray[Any]], *, gain: float = 1.0
    ) -> None:
        """add_arrays, but keeps references instead of copies, unless there is a spool.

        The arrays must stay as they are; finish() refuses a change that could overflow.
        """

    @property
    def device(self) -> str:
        """Name of its device; "" on the CPU."""

    def borrow_device_arrays(
        self, site: str, weight: int, arrays: Sequence[Any], *, gain: float = 1.0
    ) -> None:
        """Adds one update whose floating-point tensors (DeviceArray, on this aggregator's device)
        stay where they are; integer tensors are NumPy arrays."""

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
        gain: float = 1.0,
        transform: Transform | None = None,
    ) -> None:
        """Adds the chunks of a plain update. Those that are bytes, or views of bytes, are kept
        by reference, if there is no spool.

        Raises:
            PeerError: as add_arrays, or a value does not fit its tensor.
            DecodeError: as decode_chunks.
        """

    def add_file(
        self,
        site: str,
        weight: int,
        file: int,
        places: Sequence[tuple[int, int]],
        *,
        codec: int,
        scale: float,
        plan_digest: bytes,
        update_id: int,
        chunk_coordinates: int,
    ) -> None:
        """add_chunks of chunks that lie in a file, which is mapped and not copied: nobody may
        change it, it may lose its name.

        Args:
            file: a descriptor; it may be closed afterwards.
            places: (first byte, bytes) of each chunk, in the order of the file.

        Raises:
            PeerError, DecodeError: as add_chunks.
            ConfigError: the file is shorter or cannot be mapped, or the mean is streaming.
        """

    def remove(self, site: str) -> None:
        """Forgets a committed update. ConfigError if unknown, or in the streaming discipline."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Sorted by UTF-8 bytes."""

    @property
    def total_weight(self) -> int: ...
    def finish(self) -> list[NDArray[Any]]:
        """Weighted mean per tensor in layout order, correctly rounded once to the tensor's
        dtype (bf16 as uint16 bit patterns; integer tensors half to even).

        The committed set is not changed: more updates may be added and finish() called again.

        Raises:
            ConfigError: nothing was added.
        """

    def finish_with_sites(self) -> tuple[list[NDArray[Any]], tuple[str, ...], int]:
        """finish(), and the sites and total weight of exactly the updates it took."""

    def finish_step(self, step: ServerStep) -> tuple[tuple[str, ...], int]:
        """step.apply(finish()) in one pass, the same bits; sites and total weight of the updates.

        Raises:
            ConfigError: nothing was added, the step is for another layout, or as step.apply.
        """

def decode_ring_sum(total: NDArray[np.int64], *, factor: float, count: int) -> NDArray[np.float64]:
    """total[:count] * factor in double, one rounding per element."""

# --- rules (register_rules.cpp) -------------------------------------------------

@final
class UpdateSnapshot:
    """The committed updates of an aggregator at one moment, sorted by the sites' UTF-8 bytes.

    Passes over it walk tiles of 4096 coordinates and hold the rows of one tile per thread.
    `rows`, int64 of shape (rows, updates), says what a pass sees: row r is the mean of the
    updates with weights rows[r], exact and rounded once to float32 (float64 if the layout has
    a float64 tensor). Passes return one new array per tensor, as MeanAggregator.finish.
    """

    def __init__(self, aggregator: MeanAggregator) -> None:
        """ConfigError in the streaming discipline."""

    @property
    def sites(self) -> tuple[str, ...]: ...
    @property
    def weights(self) -> tuple[int, ...]: ...
    @property
    def gains(self) -> tuple[float, ...]: ...
    @property
    def shrinks(self) -> NDArray[np.float64]:
        """What gram() multiplies each update by first: 1, or, for one with float64 values of
        2**448 or more, the power of two that brings it below."""

    def gram(self, *, center: Sequence[NDArray[Any]] | None) -> NDArray[np.float64]:
        """Inner products of all pairs over floating-point tensors. `center` is one row more, the
        last.

        Raises:
            PeerError: the center is not finite; the site it names is "center".
            ConfigError: borrowed arrays were changed.
        """

    def norms(self) -> NDArray[np.float64]:
        """L2 norm of each update over floating-point tensors."""

    def combine(
        self,
        *,
        weights: NDArray[np.int64],
        gains: NDArray[np.float64],
        total: int,
        counts: NDArray[np.int64],
        count_total: int,
        center: Sequence[NDArray[Any]] | None,
    ) -> list[NDArray[Any]]:
        """sum(weight * gain * update) / total in floating-point tensors, sum(count * update) /
        count_total in integer ones; gains are 0 to 1. A center is one update more, the last.
        """

    def select(self, index: int) -> list[NDArray[Any]]:
        """One update's values as they are; zeros without a sign."""

    def median(self, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Of each coordinate the middle value, or the mean of the middle two."""

    def middle(self, rows: NDArray[np.int64], *, first: int, kept: int) -> list[NDArray[Any]]:
        """Of each coordinate the mean of `kept` values from rank `first`."""

    def nearest(self, rows: NDArray[np.int64], *, kept: int) -> list[NDArray[Any]]:
        """Of each coordinate the mean of the `kept` values nearest to the median."""

def mixed_gram(gram: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The Gram matrix of rows that are means, from that of the updates."""

def squared_distances(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """G_ii + G_jj - 2 G_ij, never below zero, 0 on the diagonal."""

def krum_scores(distances: NDArray[np.float64], *, neighbors: int) -> NDArray[np.float64]:
    """Sum of the squared distances to the nearest others, for each row."""

def bulyan_selection(distances: NDArray[np.float64], *, byzantine: int, count: int) -> list[int]:
    """`count` rows, each Krum's choice among those left."""

def nearest_rows(distances: NDArray[np.float64], *, count: int) -> list[list[int]]:
    """The `count` nearest rows of each, itself the first."""

def weiszfeld_factors(
    gram: NDArray[np.float64],
    *,
    weights: NDArray[np.float64],
    iterations: int,
    smoothing: float,
) -> NDArray[np.float64]:
    """Factors of the smoothed Weiszfeld iterate; they add up to 1."""

def clipping_factors(
    gram: NDArray[np.float64], *, rows: int, iterations: int, radius: float
) -> NDArray[np.float64]:
    """Factors of centred clipping over `rows` rows; a row more in `gram` is the centre."""

# --- the public rotation (register_rotation.cpp) --------------------------------

@final
class Transform:
    """What lies between the values of group 1 and their codes, beyond one scale: for ring codecs
    what is below, and for others at most a subsample.

    step = round(value * scale) with the scale of the value's tensor or block; or, with a
    rotation, step = round(rotate(values * scales)), where value * scale is a double product
    rounded once to float. All of it is public.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        rotation_block: int,
        rotation_key: Buffer,
        rotated_limit: float,
        scale_block: int,
        scales: NDArray[np.float64] | None,
        limits: NDArray[np.float64] | None,
    ) -> None:
        """Takes a table or a rotation, or both.

        Args:
            rotation_block, rotation_key: as for rotate(); block 0 for none.
            rotated_limit: largest |rotated value| in steps.
            scale_block: coordinates that share a scale: 256, 1024, 4096; 0 for one per tensor.
            scales: steps per unit, one per tensor of group 1 or per block; None leaves it to
                the scale that goes with the codec.
            limits: likewise, the largest |value| accepted; empty with a rotation.

        Raises:
            ConfigError: the table has not the entries that the layout needs, or a block is of
                another size.
        """

    @property
    def chunk_flags(self) -> int:
        """Flags in the headers of the chunks of group 1: 2 if there is a rotation, 4 for a
        subsample."""

    @staticmethod
    def subsample(*, codec: int, keep: int, key: Buffer, rescale: bool) -> Transform:
        """Only some blocks of 64 coordinates travel.

        Args:
            codec: of group 1.
            keep: blocks kept of the 64 of a whole tile.
            key: 8 public bytes, which decide on the blocks.
            rescale: whether kept values count for those that are not.

        Raises:
            ConfigError: the codec cannot be subsampled, or keep is not 1 to 63.
        """

def rotate(
    values: NDArray[Any],
    *,
    block: int,
    key: Buffer,
    first: int,
    inverse: bool,
    threads: int,
    backend: str = "cpu",
) -> None:
    """Rotates float32 or float64 coordinates of group 1 in place: signs that follow from the
    public key, then orthonormal Hadamard blocks (docs/format.md); or the inverse.

    Args:
        values: coordinates first, first + 1, ...; a multiple of 64 of them, from a multiple
            of 4096 on.
        block: 64, 256, 1024 or 4096 coordinates that are mixed; 0 for none.
        key: 8 public bytes.
        backend: "cpu", or a device as in veilsum.backends(): the same bits.

    Raises:
        ConfigError: another block, a place off the grid, or no name of a backend.
        DeviceError: there is no such device, or it failed; values are then undefined.
    """

# --- central differential privacy (register_privacy.cpp) -----------------------

@final
class PrivateMean:
    """The mean of clipped updates with discrete Gaussian noise; thread-safe; taken once.

    mean = (sum of round(value * gain * 2**exponent) + noise) * 2**-exponent / denominator with
    gain = min(1, clip / norm of the update), on a grid that follows from the settings alone.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        clip: float,
        noise_multiplier: float,
        denominator: int,
        count_noise: float,
        threads: int,
        spool: str,
    ) -> None:
        """denominator 0 takes the number of sites; count_noise 0 publishes no count.

        Raises:
            ConfigError: a setting is out of range, or a tensor holds integers.
        """

    def add_arrays(
        self, site: str, weight: int, arrays: Sequence[NDArray[Any]], *, gain: float
    ) -> None:
        """As MeanAggregator.add_arrays; weight and gain must be 1.

        Raises:
            ConfigError: the mean was taken.
        """

    # Never borrows: arrays that change afterwards could have any norm.
    borrow_arrays = add_arrays
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
        transform: Transform | None = None,
    ) -> None:
        """As MeanAggregator.add_chunks; weight and gain must be 1."""

    def remove(self, site: str) -> None: ...
    @property
    def sites(self) -> tuple[str, ...]: ...
    @property
    def grid(self) -> tuple[int, int, int]:
        """(exponent, sensitivity, sigma): a unit is 2**-exponent model units; the other two are
        in units, L2 of the sum and of one coordinate's noise."""

    def finish(
        self, *, key: Secret
    ) -> tuple[list[NDArray[Any]], tuple[tuple[str, ...], int, float]]:
        """Means as of MeanAggregator.finish, and (sites, denominator, noisy balance): half the
        number of updates within the clip minus half the number of others, with noise.

        Args:
            key: 32 fresh secret bytes. Noise is ChaCha20's elements of 64 bits (add_masks), a
                stream per tile of 4096 coordinates, turned into samples in coordinate order.

        Raises:
            ConfigError: nothing was added, or the mean was taken.
        """

    def finish_step(self, step: ServerStep, *, key: Secret) -> tuple[tuple[str, ...], int, float]:
        """step.apply(means) in the same pass."""

def sample_discrete_gaussian(
    key: Secret, *, stream: int, sigma: int, count: int
) -> NDArray[np.int64]:
    """Samples with probability proportional to exp(-x**2 / (2 sigma**2)), 1 <= sigma < 2**31.

    A function of key and stream: for tests and audits of the noise.
    """

# --- arrays of other libraries (register_layout.cpp) --------------------------

def import_dlpack(capsule: object) -> tuple[NDArray[Any], str]:
    """A host DLPack tensor as a NumPy array that shares its memory, and its dtype name.

    bf16 arrives as uint16 bit patterns. Strides are kept.

    Raises:
        ConfigError: not on the host, or a dtype a layout cannot hold.
    """
