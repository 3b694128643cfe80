"""A small SQLite file with the tables that the demo's data are made from."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

_TABLES = """
CREATE TABLE scans (
    id INTEGER, patient_id TEXT, slice_thickness REAL, pixel_spacing REAL, contrast_used BOOLEAN
);
CREATE TABLE annotations (id INTEGER, scan_id INTEGER, malignancy INTEGER);
CREATE TABLE contours (
    id INTEGER, annotation_id INTEGER, inclusion BOOLEAN, image_z_position REAL, coords TEXT
);
"""


@dataclass(frozen=True)
class Drawn:
    """An annotation of one outline, on a scan of its own: 2.5 mm slices, 0.5 mm pixels."""

    annotation: int
    patient: str
    malignancy: int
    points: NDArray[Any]


def database(drawn: Iterable[Drawn]) -> bytes:
    """The file's bytes."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(_TABLES)
        for each in drawn:
            number = each.annotation
            connection.execute(
                "INSERT INTO scans VALUES (?, ?, 2.5, 0.5, 1)", (number, each.patient)
            )
            connection.execute(
                "INSERT INTO annotations VALUES (?, ?, ?)", (number, number, each.malignancy)
            )
            coords = "\n".join(f"{row:.0f},{column:.0f}" for row, column in each.points)
            connection.execute(
                "INSERT INTO contours VALUES (?, ?, 1, -100.0, ?)", (number, number, coords)
            )
        connection.commit()
        return connection.serialize()
    finally:
        connection.close()
