"""The demo's data: shapes of lung nodules, and which site has which patients.

Sites are groups of scans with the same scanner protocol; nobody knows which hospital a scan
came from. A patient belongs to one site and, within it, to training or to testing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veilsum.errors import ConfigError

DATA_FILE = Path(__file__).with_name("data") / "nodules.npz"
DATA_SHA256 = "3c25f85c70a3066a65947b557a0c34f374a0f80a654957f34455be28dd053d99"

FEWEST_SITES = 3
MOST_SITES = 12
_TEST_PART = 0.3
_MALIGNANT = 4  # ratings are 1, 2 (benign) and 4, 5 (malignant)

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Nodules:
    """One row per reader's outline of a nodule.

    Attributes:
        maps: shape (n, 32, 32), uint8; nodule behind each pixel, in 16ths of its extent.
        malignancy: the reader's rating, 1, 2, 4 or 5.
        patient: small numbers that name patients.
        slice_thickness_mm, pixel_spacing_mm, contrast: how the scan was made.
        extent_mm: longer side of the nodule; not for the model, which sees shapes only.
    """

    maps: NDArray[np.uint8] = field(repr=False)
    malignancy: NDArray[np.uint8] = field(repr=False)
    patient: NDArray[np.uint16] = field(repr=False)
    slice_thickness_mm: NDArray[np.float32] = field(repr=False)
    pixel_spacing_mm: NDArray[np.float32] = field(repr=False)
    contrast: NDArray[np.bool_] = field(repr=False)
    extent_mm: NDArray[np.float32] = field(repr=False)

    def __len__(self) -> int:
        return len(self.malignancy)

    @cached_property
    def labels(self) -> NDArray[np.float32]:
        """1 where the reader thought the nodule malignant, else 0."""
        return (self.malignancy >= _MALIGNANT).astype(np.float32)


@dataclass(frozen=True)
class Protocol:
    """Scans made alike, and how many sites they make; several are cut by pixel spacing.

    Attributes:
        above_mm, up_to_mm: slice thickness.
        contrast: contrast agent used or not; None for either.
    """

    region: str
    above_mm: float
    up_to_mm: float
    contrast: bool | None
    sites: int = 1


# Each region scans in a way of its own, so that the sites differ as real ones do.
PROTOCOLS = (
    Protocol("europe", 1.1, 1.6, contrast=False, sites=3),
    Protocol("europe", 0.0, 1.6, contrast=True),
    Protocol("americas", 2.2, 2.7, contrast=True, sites=3),
    Protocol("americas", 2.2, 2.7, contrast=False),
    Protocol("asia", 0.0, 1.1, contrast=False),
    Protocol("asia", 1.6, 2.2, contrast=None),
    Protocol("asia", 2.7, 9.0, contrast=False),
    Protocol("asia", 2.7, 9.0, contrast=True),
)


@dataclass(frozen=True)
class Hospital:
    """One site's share of the data.

    Attributes:
        train, test: row numbers in Nodules, increasing; no patient is in both.
    """

    name: str
    region: str
    train: Rows = field(repr=False)
    test: Rows = field(repr=False)

    @property
    def images(self) -> int:
        """All rows."""
        return len(self.train) + len(self.test)


def load_nodules(file: Path = DATA_FILE) -> Nodules:
    """Reads the data file.

    Raises:
        ConfigError: it is missing or not the one that belongs to this version.
    """
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"cannot read the demo's data {file}: {error.strerror}",
            hint="it is part of the package; install veilsum again",
        ) from error
    if found != DATA_SHA256:
        raise ConfigError(f"{file} is not this version's data: its SHA-256 is {found}")
    with np.load(file, allow_pickle=False) as arrays:
        names = Nodules.__dataclass_fields__
        return Nodules(**{name: arrays[name] for name in names})


def hospitals(nodules: Nodules, sites: int = MOST_SITES) -> tuple[Hospital, ...]:
    """Divides all data among `sites` sites in three regions.

    With fewer than twelve, the smallest site joins the next smallest of its region, again
    and again, in the region that has most sites at that moment; no image is left out, and who
    is in the test sets stays the same.

    Raises:
        ConfigError: not 3 to 12 sites.
    """
    if not FEWEST_SITES <= sites <= MOST_SITES:
        raise ConfigError(f"sites must be {FEWEST_SITES} to {MOST_SITES}, got {sites}")
    members = _twelve_hospitals(nodules)
    while len(members) > sites:
        regions = [member.region for member in members]
        fullest = max(sorted(set(regions)), key=regions.count)
        smallest, partner = sorted(
            (member for member in members if member.region == fullest),
            key=lambda member: (member.images, member.name),
        )[:2]
        members = [member for member in members if member not in (smallest, partner)]
        members.append(_joined(partner, smallest))
    return tuple(sorted(members, key=lambda member: member.name))


def _twelve_hospitals(nodules: Nodules) -> list[Hospital]:
    first_rows = _first_rows(nodules.patient)
    members: list[Hospital] = []
    for protocol in PROTOCOLS:
        # A few patients were scanned twice; their first scan decides.
        chosen = [row for row in first_rows if _made_by(nodules, row, protocol)]
        chosen.sort(key=lambda row: (nodules.pixel_spacing_mm[row], nodules.patient[row]))
        for part in np.array_split(nodules.patient[chosen], protocol.sites):
            name = f"hospital-{len(members) + 1:02d}"
            members.append(_hospital(nodules, name, protocol.region, part.tolist()))
    return members


def _first_rows(patient: NDArray[np.uint16]) -> list[int]:
    _, rows = np.unique(patient, return_index=True)
    return [int(row) for row in rows]


def _made_by(nodules: Nodules, row: int, protocol: Protocol) -> bool:
    thickness = float(nodules.slice_thickness_mm[row])
    if not protocol.above_mm < thickness <= protocol.up_to_mm:
        return False
    return protocol.contrast is None or protocol.contrast == bool(nodules.contrast[row])


def _hospital(nodules: Nodules, name: str, region: str, patients: Iterable[int]) -> Hospital:
    # The order of hashes is as good as a random one, and the same on every machine.
    shuffled = sorted(patients, key=_shuffle_key)
    held_out = shuffled[: round(_TEST_PART * len(shuffled))]
    mine = np.isin(nodules.patient, shuffled)
    tested = np.isin(nodules.patient, held_out)
    return Hospital(name, region, np.flatnonzero(mine & ~tested), np.flatnonzero(mine & tested))


def _shuffle_key(patient: int) -> bytes:
    return hashlib.sha256(f"veilsum demo patient {patient}".encode()).digest()


def _joined(larger: Hospital, smaller: Hospital) -> Hospital:
    train = np.sort(np.concatenate([larger.train, smaller.train]))
    test = np.sort(np.concatenate([larger.test, smaller.test]))
    return Hospital(larger.name, larger.region, train, test)
