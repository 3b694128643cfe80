"""`veilsum inspect`: what a file is and what it holds; sizes and ids, never values."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veilsum.cli.inspect_egress import egress_facts
from veilsum.cli.inspect_receipt import examine_chain, is_receipt, receipt_facts
from veilsum.cli.output import JsonOption, print_facts, print_json, print_table, size_text
from veilsum.errors import ConfigError, DecodeError

if TYPE_CHECKING:
    from veilsum.codecs.form import UpdateForm

Facts = dict[str, Any]

_MAX_BYTES = 16 << 30
_HEADER = struct.Struct("<4sBBHHHIQIIII8sQII")
_MASKED, _TRANSFORMS, _LAST = 1, 2 | 4, 8
_GRID = 4096  # chunks cover a multiple of this many coordinates


def inspect(
    file: Annotated[Path, typer.Argument(help="The file to look at.")],
    head: Annotated[
        str | None,
        typer.Option("--head", help="Of an egress ledger: one that the site told before."),
    ] = None,
    roster: Annotated[
        Path | None,
        typer.Option("--roster", help="Of receipts: the roster to check them with."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a file is and what it holds: sizes and ids, never values.

    Knows chunk files, update files, certificates, rosters, egress ledgers, receipts and transcripts
    of rounds, and safetensors. What it shows has been checked; a damaged file is an error that says
    what is wrong. Whether the sum of a transcript is right is for veilsum verify to say.

    Nothing in an egress ledger tells that records are missing at its end. A head that the site
    told before does, where the ledger no longer goes through it.

    A receipt is checked with the roster alone. A folder of receipts, as a coordinator keeps those
    of a run, is checked as a chain.

    \b
    Example:
      veilsum inspect pki/site-lyon/tls.pem
      veilsum inspect model.safetensors
      veilsum inspect egress-lyon.vsx --head 6b1d...
      veilsum inspect state/receipts/run-1 --roster roster.json
    """
    facts = _examined(file, head, roster)
    if as_json:
        print_json(facts)
        return
    tensors: list[Facts] = facts.pop("tensors", [])
    sent: list[Facts] = facts.pop("sent", [])
    rounds: list[Facts] = facts.pop("rounds", [])
    print_facts((name.replace("_", " "), _text(name, value)) for name, value in facts.items())
    if tensors:
        print_table(
            ("tensor", "dtype", "shape"),
            (
                (row["name"], row["dtype"], "x".join(map(str, row["shape"])) or "-")
                for row in tensors
            ),
        )
    if sent:
        sites = ("site",) if "site" in sent[0] else ()
        print_table(
            (*sites, "kind", "messages", "bytes"),
            (
                (*(row[s] for s in sites), row["kind"], row["messages"], size_text(row["bytes"]))
                for row in sent
            ),
        )
    if rounds:
        print_table(tuple(rounds[0]), (tuple(row.values()) for row in rounds))


def examine(file: Path) -> Facts:
    """The facts about one file.

    Raises:
        ConfigError: it cannot be read, is of no known kind, or holds a private key.
        DecodeError: it is damaged.
    """
    data = _read(file)
    for kind, looks_like, look in _KINDS:
        if looks_like(data):
            return {"file": str(file), "kind": kind, "bytes": len(data), **look(data, file)}
    raise ConfigError(
        f"{file} is no file that veilsum knows",
        hint=f"known are: {', '.join(kind for kind, _, _ in _KINDS[1:])}",
    )


def _examined(file: Path, head: str | None, roster: Path | None) -> Facts:
    if file.is_dir():
        return examine_chain(file, roster)
    if head is not None:
        return _examine_egress(file, head)
    if roster is None:
        return examine(file)
    data = _read(file)
    if not is_receipt(data):
        raise ConfigError(f"{file} is no receipt; --roster is for those")
    return {"file": str(file), "kind": "receipt", "bytes": len(data)} | receipt_facts(
        data, file, roster
    )


def _examine_egress(file: Path, head: str) -> Facts:
    data = _read(file)
    if not _is_egress(data):
        raise ConfigError(f"{file} is no egress ledger; --head is for those")
    return {
        "file": str(file),
        "kind": "egress ledger",
        "bytes": len(data),
        **egress_facts(data, file, head),
    }


def _read(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > _MAX_BYTES:
            raise ConfigError(f"{file} has {size} bytes; the limit is {_MAX_BYTES}")
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error


def _text(name: str, value: Any) -> str:
    if name in ("bytes", "sent_bytes"):
        return f"{value} ({size_text(value)})"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _private_key(_data: bytes, file: Path) -> Facts:
    raise ConfigError(f"{file} holds a private key, of which nothing is shown")


def _certificate(data: bytes, file: Path) -> Facts:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    from veilsum.pki.roster_file import identity_of

    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise DecodeError(f"{file} is not a certificate: {error}") from error
    facts: Facts = {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "authority": _is_authority(certificate),
        "key": type(certificate.public_key()).__name__.removesuffix("PublicKey").lstrip("_"),
        "serial": f"{certificate.serial_number:x}",
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "valid_until": certificate.not_valid_after_utc.isoformat(),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
    }
    if not facts["authority"]:
        facts["identity"] = identity_of(certificate, file).uri
    return facts


def _is_authority(certificate: Any) -> bool:
    from cryptography import x509

    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return bool(constraints.value.ca)


def _roster(data: bytes, file: Path) -> Facts:
    from veilsum.pki.roster_signing import SignedRoster

    try:
        signed = SignedRoster.from_bytes(data)
    except ConfigError as error:
        raise DecodeError(f"{file}: {error}", hint=error.hint) from error
    roster = signed.roster
    return {
        "consortium": roster.consortium,
        "epoch": roster.epoch,
        "hash": roster.hash.hex(),
        "sites": list(roster.sites),
        "regions": sorted({entry.region for entry in roster.entries if entry.region}),
        "previous": roster.previous.hex(),
        "signatures_not_checked": sorted(signed.signatures),
    }


def _update(data: bytes, _file: Path) -> Facts:
    from veilsum.codecs import EncodedUpdate

    update = EncodedUpdate.from_bytes(data)
    return {
        "codec": update.codec,
        **_form_facts(update.form),
        "elements": update.layout.size,
        "layout_digest": update.layout.digest.hex(),
        "tensors": [
            {"name": name, "dtype": dtype, "shape": list(shape)}
            for name, dtype, shape in update.layout.native.tensors
        ],
    }


def _form_facts(form: UpdateForm) -> Facts:
    """What the codec's name does not say of the form; all of it is public."""
    facts: Facts = {"chunk_coordinates": form.chunk_coordinates}
    if form.scale:
        facts["steps_per_unit"] = form.scale
    if (transform := form.transform) is not None:
        facts["steps"] = transform.steps
        facts["rotation"] = transform.rotation_block
        if transform.clips is not None:
            facts["clips"] = len(transform.clips)
            facts["clip_block"] = transform.clip_block
    if (subsample := form.subsample) is not None:
        facts["blocks_kept_of_64"] = subsample.keep
        facts["rescaled"] = subsample.rescale
    return {**facts, "update_id": f"{form.update_id:016x}"}


@dataclass(frozen=True, slots=True)
class _Header:
    """The fields of a chunk's header, in order (docs/format.md)."""

    magic: bytes
    major: int
    minor: int
    header_bytes: int
    codec: int
    flags: int
    group: int
    first: int
    count: int
    index: int
    scale_bytes: int
    code_bytes: int
    plan: bytes
    update_id: int
    zero: int
    crc: int


def _chunks(data: bytes, file: Path) -> Facts:
    """One chunk, or several one after the other as in a spool file."""
    from veilsum import _native

    view = memoryview(data)
    found: list[_Header] = []
    while view:
        if len(view) < _HEADER.size:
            raise DecodeError(f"{file}: {len(view)} bytes are left over after the last chunk")
        header = _Header(*_HEADER.unpack_from(view))
        try:
            size = _native.chunk_size(header.codec, header.count)
        except ConfigError as error:
            raise DecodeError(f"{file}: chunk {len(found)}: {error}") from error
        _check_chunk(view[:size], header)
        found.append(header)
        view = view[size:]
    first = found[0]
    return {
        "chunks": len(found),
        "codecs": sorted({_native.codec_name(header.codec) for header in found}),
        "groups": sorted({header.group for header in found}),
        "coordinates": sum(header.count for header in found),
        "masked": all(header.flags & _MASKED for header in found),
        "plan": first.plan.hex(),
        "update_id": f"{first.update_id:016x}",
    }


def _check_chunk(chunk: memoryview, header: _Header) -> None:
    """Checks a chunk against the only grid that it can belong to."""
    from veilsum import _native

    if header.flags & _LAST:
        size = header.first + header.count
        step = header.first // header.index if header.index else -(-header.count // _GRID) * _GRID
    else:
        size, step = header.first + 2 * header.count, header.count
    _native.check_chunk(
        chunk,
        codec=header.codec,
        group=header.group,
        group_size=size,
        masked=bool(header.flags & _MASKED),
        plan_digest=header.plan + bytes(24),
        update_id=header.update_id,
        chunk_coordinates=max(step, _GRID),
        transforms=header.flags & _TRANSFORMS,
    )


def _transcript(data: bytes, _file: Path) -> Facts:
    from veilsum.cli.verify import transcript_facts
    from veilsum.secagg.transcript_file import Transcript

    transcript = Transcript(data)
    return {
        **transcript_facts(transcript),
        "chunks": len(transcript.chunks),
        "sum_checked": False,  # `veilsum verify` does
    }


def _evidence(data: bytes, _file: Path) -> Facts:
    from veilsum.cli.evidence import stated_facts

    return {**stated_facts(data), "verified": "no: veilsum pki check-evidence"}


def _safetensors(data: bytes, file: Path) -> Facts:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            tensors = [
                {"name": name, "dtype": part.get_dtype(), "shape": list(part.get_shape())}
                for name, part in slices.items()
            ]
    except SafetensorError as error:
        raise DecodeError(f"{file} is not a safetensors file: {error}") from error
    return {**_start_hash(data), "tensors": tensors}


def _start_hash(data: bytes) -> Facts:
    """What `start_models` in a site's policy calls this model or optimizer state."""
    from veilsum.model import result_digest
    from veilsum.optimizers.state import OptimizerState
    from veilsum.transport.checkpoints import model_from_bytes

    try:
        OptimizerState.from_bytes(data)
        return {"state_hash": hashlib.sha256(data).hexdigest()}
    except DecodeError:
        pass
    try:
        return {"model_hash": result_digest(*model_from_bytes(data))}
    except DecodeError:  # tensors that no round can have
        return {}


def _is_safetensors(data: bytes) -> bool:
    return len(data) >= 9 and 2 <= int.from_bytes(data[:8], "little") < len(data) and data[8] == 123


def _is_egress(data: bytes) -> bool:
    return data[:4] == b"VSX1"


_KINDS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes, Path], Facts]], ...] = (
    ("private key", lambda data: b"PRIVATE KEY-----" in data[:200], _private_key),
    ("chunks", lambda data: data[:4] == b"VLC1", _chunks),
    ("update", lambda data: data[:4] == b"VLU1", _update),
    ("evidence", lambda data: data[:4] == b"VSE1", _evidence),
    ("certificate", lambda data: data[:27] == b"-----BEGIN CERTIFICATE-----", _certificate),
    ("receipt", is_receipt, receipt_facts),
    ("roster", lambda data: data[:1] == b"{" and b"veilsum-roster" in data, _roster),
    ("transcript", lambda data: data[:4] == b"VST1", _transcript),
    ("egress ledger", _is_egress, egress_facts),
    ("safetensors", _is_safetensors, _safetensors),
)
