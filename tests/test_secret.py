"""Secrets: locked, undumpable, wiped, and silent about what they hold."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import resource
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from veilsum._native import Secret
from veilsum.errors import ConfigError


def test_a_secret_holds_a_copy_of_the_bytes_it_was_made_from():
    source = bytearray(range(32))

    secret = Secret.from_bytes(source)
    source[:] = bytes(32)

    assert len(secret) == 32
    assert bytes(secret) == bytes(range(32))


def returned(size: int = 32) -> bytes:
    """Bytes that nobody has a name for, as a library returns them."""
    return os.urandom(size)


BEGIN_OF_BYTES = bytes.__basicsize__ - 1


def test_taking_bytes_that_a_call_returned_leaves_nothing_of_them():
    place = ctypes.c_void_p()
    left = ctypes.create_string_buffer(400)

    def call() -> bytes:
        made = b"secret. ".join([b""] * 51)
        place.value = id(made) + BEGIN_OF_BYTES
        return made

    secret = Secret.take(call())
    ctypes.memmove(left, place, 400)

    # The allocator may have used some of the memory since; none of it is the secret any more.
    assert b"secret" not in left.raw
    assert bytes(secret) == b"secret. " * 50


def test_bytes_that_somebody_else_holds_are_refused_and_stay_as_they_are():
    name = returned()
    before = bytes(bytearray(name))
    holders: list[object] = [[name], memoryview(name), {name: 1}]

    for hold in (lambda: name, lambda: holders[0][0], lambda: b"literal of the code"):
        with pytest.raises(ConfigError, match="somebody else holds the bytes"):
            Secret.take(hold())
    with pytest.raises(ConfigError, match="somebody else holds the bytes"):
        Secret.take(name)
    assert name == before


@pytest.mark.parametrize("size", [0, 1])
def test_bytes_objects_that_are_shared_by_all_are_never_taken(size):
    with pytest.raises(ConfigError, match="somebody else holds the bytes"):
        Secret.take(b"\x07\x08"[:size])

    assert b"\x07\x08"[:size] == size * b"\x07"


@pytest.mark.parametrize("data", [bytearray(32), memoryview(bytes(32)), "text", None])
def test_only_bytes_are_taken(data):
    with pytest.raises(TypeError, match="data must be bytes, got"):
        Secret.take(data)


def test_a_subclass_of_bytes_may_be_more_than_its_bytes():
    class Named(bytes):
        pass

    with pytest.raises(TypeError, match="data must be bytes, got Named"):
        Secret.take(Named(32))


def test_what_is_taken_has_the_size_of_a_secret_and_comes_alone():
    with pytest.raises(ConfigError, match="a secret holds 1 to 1048576 bytes"):
        Secret.take(returned(2**20 + 1))
    with pytest.raises(TypeError, match="one argument"):
        Secret.take(returned(), returned())


def test_a_secret_from_the_operating_system_is_never_the_same_twice():
    seen = {bytes(Secret.from_os(32)) for _ in range(100)}

    assert len(seen) == 100
    assert len({bytes(Secret.from_os(2**20))[-32:] for _ in range(2)}) == 2


def test_a_library_writes_into_a_secret_without_a_python_copy():
    secret = Secret.zeros(32)

    memoryview(secret)[:] = HKDF(SHA256(), 32, None, b"info").derive(b"key material")

    assert bytes(secret) == HKDF(SHA256(), 32, None, b"info").derive(b"key material")


@pytest.mark.parametrize("size", [0, 2**20 + 1, -1])
def test_a_secret_has_1_to_1_mib(size):
    with pytest.raises(ConfigError, match=r"size must be|a secret holds 1 to 1048576 bytes"):
        Secret.zeros(size)


def test_sizes_of_every_kind_are_zero_when_made_also_in_reused_memory():
    for size in (1, 31, 32, 33, 64, 65, 2048, 2049, 4096, 5000, 2**20):
        dirty = Secret.from_bytes(b"\xff" * size)
        del dirty
        assert bytes(Secret.zeros(size)) == bytes(size)


def test_wiping_overwrites_at_once_and_forbids_later_use():
    secret = Secret.from_bytes(b"\xaa" * 48)
    view = memoryview(secret)

    secret.wipe()
    secret.wipe()

    assert secret.wiped
    assert view.tobytes() == bytes(48)
    for use in (bytes, memoryview, lambda it: it.equals(Secret.zeros(48))):
        with pytest.raises(ConfigError, match=f"secret {secret.id} was wiped"):
            use(secret)


def test_the_memory_of_a_secret_stays_while_somebody_looks_at_it():
    view = memoryview(Secret.from_bytes(b"k" * 32))
    others = [Secret.from_bytes(b"x" * 32) for _ in range(500)]

    assert view.tobytes() == b"k" * 32
    assert len(others) == 500


def test_equality_compares_content_and_size():
    secret = Secret.from_bytes(b"same")

    assert secret.equals(Secret.from_bytes(b"same"))
    assert not secret.equals(Secret.from_bytes(b"sand"))
    assert not secret.equals(Secret.from_bytes(b"same!"))
    assert secret != Secret.from_bytes(b"same")


def test_a_secret_shows_its_size_and_number_and_nothing_else():
    secret = Secret.from_bytes(b"sensitive content, 32 bytes long")

    assert repr(secret) == str(secret) == f"<Secret {secret.id}: 32 bytes>"
    assert Secret.zeros(1).id > secret.id


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_cannot_be_pickled_or_copied(duplicate):
    with pytest.raises(TypeError):
        duplicate(Secret.zeros(32))


def test_a_secret_cannot_be_made_or_derived_in_other_ways():
    with pytest.raises(TypeError):
        Secret()
    with pytest.raises(TypeError):
        type("Mine", (Secret,), {})
    with pytest.raises(TypeError, match="data must be bytes-like, got str"):
        Secret.from_bytes("text")


needs_mlock = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="the address sanitizer turns mlock into a no-op",
)


# A process of its own: in this one, pages that secrets of other tests left half empty take some.
THOUSANDS_OF_SECRETS = """
from veilsum._native import Secret
def locked_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmLck:"))
before = locked_kib()
secrets = [Secret.from_os(32) for _ in range(4000)]
print(locked_kib() - before)
del secrets
print(locked_kib() - before)
"""


@needs_mlock
def test_thousands_of_small_secrets_share_locked_pages_and_give_them_back():
    done = subprocess.run(
        [sys.executable, "-c", THOUSANDS_OF_SECRETS], capture_output=True, text=True, check=True
    )

    locked, left = map(int, done.stdout.split())
    page_kib = resource.getpagesize() // 1024
    assert 4000 * 32 / 1024 <= locked <= 4000 * 32 / 1024 + page_kib
    assert left <= page_kib


# The limit does not bind root, who gives up being root once everything is imported.
LITTLE_LOCKED_MEMORY = """
import os, resource
from veilsum._native import Secret
from veilsum.errors import ConfigError
resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * 1024, 64 * 1024))
if os.getuid() == 0:
    os.setuid(65534)
small = [Secret.from_os(32) for _ in range(1000)]
try:
    Secret.zeros(128 * 1024)
except ConfigError as error:
    print(error)
    print(error.hint)
"""


@needs_mlock
def test_too_little_lockable_memory_is_an_error_with_a_remedy_not_an_unlocked_secret():
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_LOCKED_MEMORY], capture_output=True, text=True, check=True
    )

    message, hint = done.stdout.splitlines()
    assert message.startswith("cannot lock 131072 bytes for a secret")
    assert message.endswith("the limit on locked memory is 64 KiB")
    assert "ulimit -l" in hint


def address_of(secret: Secret) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memoryview(secret)))


def mapping_flags(address: int) -> set[str]:
    """Kernel flags of the mapping that holds an address."""
    inside = False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(bound, 16) for bound in first.split("-"))
                inside = low <= address < high
            elif inside and first == "VmFlags:":
                return set(line.split()[1:])
    return set()


@needs_mlock
def test_pages_of_secrets_are_locked_and_left_out_of_core_dumps():
    secret = Secret.from_os(64)

    flags = mapping_flags(address_of(secret))

    assert {"lo", "dd"} <= flags


FORKED = """
import os
from veilsum._native import Secret
from veilsum.errors import ConfigError

secret = Secret.from_os(64)
view = memoryview(secret)
if os.fork() == 0:
    print("in the child:", any(view), flush=True)
    try:
        bytes(secret)
    except ConfigError as error:
        print(str(error).replace(str(secret.id), "N"), flush=True)
    os._exit(0)
os.wait()
print("in the parent:", any(bytes(secret)))
"""


def test_a_forked_process_has_no_copy_of_a_secret():
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines() == [
        "in the child: False",
        "secret N stayed in the process that made it",
        "in the parent: True",
    ]
