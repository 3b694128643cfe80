"""The demo's data: what the shipped file holds, and how it is divided among sites."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from support.nodule_database import Drawn, database
from veilsum.demo.data import (
    DATA_FILE,
    DATA_SHA256,
    Hospital,
    Nodules,
    hospitals,
    load_nodules,
)
from veilsum.demo.make_data import (
    DATABASE,
    FRAME_PIXELS,
    PIXELS,
    STEPS,
    Outline,
    polygon_coverage,
    read_arrays,
    shape_map,
)
from veilsum.errors import ConfigError

SQUARE = np.array([[0.0, 0.0], [0.0, 20.0], [20.0, 20.0], [20.0, 0.0]])


@pytest.fixture(scope="module")
def nodules() -> Nodules:
    return load_nodules()


@pytest.fixture(scope="module")
def twelve(nodules: Nodules) -> tuple[Hospital, ...]:
    return hospitals(nodules)


def patients(nodules: Nodules, rows: np.ndarray) -> set[int]:
    return set(nodules.patient[rows].tolist())


# --- the shipped file -------------------------------------------------------------


def test_the_shipped_file_is_the_recorded_one_and_small() -> None:
    data = DATA_FILE.read_bytes()

    assert hashlib.sha256(data).hexdigest() == DATA_SHA256
    assert len(data) < 800_000


def test_the_attribution_lies_next_to_the_data() -> None:
    text = (DATA_FILE.parent / "ATTRIBUTION.md").read_text()

    for needed in ("LIDC-IDRI", "CC BY 3.0", "Armato", "Clark", "National Cancer Institute"):
        assert needed in text


def test_the_data_are_4253_outlines_of_828_patients(nodules: Nodules) -> None:
    assert nodules.maps.shape == (4253, PIXELS, PIXELS)
    assert len(set(nodules.patient.tolist())) == 828
    assert set(nodules.malignancy.tolist()) == {1, 2, 4, 5}
    assert nodules.labels.mean() == pytest.approx(0.389, abs=0.001)
    assert (nodules.maps.max(axis=(1, 2)) > 0).all()


def test_a_changed_data_file_is_refused(tmp_path: Path) -> None:
    changed = tmp_path / "nodules.npz"
    changed.write_bytes(DATA_FILE.read_bytes() + b"x")

    with pytest.raises(ConfigError, match="is not this version's data"):
        load_nodules(changed)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the demo's data .*gone\.npz"):
        load_nodules(tmp_path / "gone.npz")


# --- sites ------------------------------------------------------------------------


def test_twelve_sites_in_three_regions_hold_all_the_data(
    nodules: Nodules, twelve: tuple[Hospital, ...]
) -> None:
    rows = np.concatenate([np.concatenate([site.train, site.test]) for site in twelve])

    assert [site.name for site in twelve] == [f"hospital-{n:02d}" for n in range(1, 13)]
    assert [site.region for site in twelve] == ["europe"] * 4 + ["americas"] * 4 + ["asia"] * 4
    assert sorted(rows.tolist()) == list(range(len(nodules)))


@pytest.mark.parametrize("sites", range(3, 13))
def test_no_patient_is_in_training_and_testing_or_at_two_sites(
    nodules: Nodules, sites: int
) -> None:
    seen: set[int] = set()
    for site in hospitals(nodules, sites):
        for rows in (site.train, site.test):
            found = patients(nodules, rows)
            assert not found & seen
            seen |= found

    assert len(seen) == 828


@pytest.mark.parametrize("sites", range(3, 12))
def test_fewer_sites_hold_the_same_data_with_the_same_unseen_patients(
    nodules: Nodules, twelve: tuple[Hospital, ...], sites: int
) -> None:
    fewer = hospitals(nodules, sites)

    assert len(fewer) == sites
    assert {site.region for site in fewer} == {"europe", "americas", "asia"}
    for part in ("train", "test"):
        assert np.array_equal(
            np.sort(np.concatenate([getattr(site, part) for site in fewer])),
            np.sort(np.concatenate([getattr(site, part) for site in twelve])),
        )


def test_every_site_can_be_trained_and_measured(
    nodules: Nodules, twelve: tuple[Hospital, ...]
) -> None:
    for site in twelve:
        assert len(site.train) > 150
        assert 70 < len(site.test) < len(site.train)
        for rows in (site.train, site.test):
            assert 0.2 < nodules.labels[rows].mean() < 0.65


@pytest.mark.parametrize("sites", [2, 13])
def test_other_numbers_of_sites_are_refused(nodules: Nodules, sites: int) -> None:
    with pytest.raises(ConfigError, match=f"sites must be 3 to 12, got {sites}"):
        hospitals(nodules, sites)


# --- how the file is made -----------------------------------------------------------


def test_the_coverage_of_a_polygon_adds_up_to_its_area() -> None:
    # A triangle with base 12 and height 9, away from pixel borders.
    triangle = np.array([[5.25, 6.5], [5.25, 18.5], [14.25, 11.0]])

    covered = polygon_coverage(triangle)

    assert covered.sum() == pytest.approx(54.0, rel=1e-3)
    assert covered.min() >= 0.0
    assert covered.max() <= 1.0


def test_a_square_covers_its_pixels_and_no_others() -> None:
    covered = polygon_coverage(SQUARE + 4)

    expected = np.zeros((PIXELS, PIXELS))
    expected[4:24, 4:24] = 1.0
    assert np.array_equal(covered, expected)


def test_a_nodule_is_scaled_to_the_frame_whatever_its_size() -> None:
    def shape(scale: float) -> np.ndarray:
        slices = [Outline(SQUARE * scale, z * scale, inside=True) for z in (0.0, 2.0, 4.0)]
        return shape_map(slices, slice_mm=9.0, spacing_mm=0.5)

    small, large = shape(1.0), shape(3.0)

    margin = (PIXELS - FRAME_PIXELS) // 2
    inside = small[margin:-margin, margin:-margin]
    assert np.allclose(inside, 3 * 2.0 / (20 * 0.5))  # three slices of 2 mm, 10 mm wide
    assert small.sum() == pytest.approx(inside.sum())
    assert np.allclose(small, large)


def test_a_hole_is_taken_out_and_never_leaves_less_than_nothing() -> None:
    outer = Outline(SQUARE, 0.0, inside=True)
    hole = Outline(SQUARE / 2 + 5, 0.0, inside=False)

    ring = shape_map([outer, hole], slice_mm=2.0, spacing_mm=1.0)
    nothing = shape_map([outer, Outline(SQUARE, 0.0, inside=False)], slice_mm=2.0, spacing_mm=1.0)

    assert ring[PIXELS // 2, PIXELS // 2] == 0.0
    assert ring[4, 4] == pytest.approx(0.1)
    assert not nothing.any()


def test_one_point_stands_for_one_pixel_of_the_scan() -> None:
    point = Outline(np.array([[7.0, 9.0]]), 0.0, inside=True)

    area = shape_map([point], slice_mm=1.0, spacing_mm=0.5).sum() / 2.0

    assert area == pytest.approx(FRAME_PIXELS**2)


def test_the_database_is_read_as_documented() -> None:
    drawn = [
        Drawn(annotation=7, patient="LIDC-IDRI-0042", malignancy=5, points=SQUARE),
        Drawn(annotation=8, patient="LIDC-IDRI-0042", malignancy=3, points=SQUARE),
        Drawn(annotation=9, patient="LIDC-IDRI-1012", malignancy=1, points=SQUARE * 2),
    ]

    arrays = read_arrays(database(drawn))

    assert arrays["malignancy"].tolist() == [5, 1]  # a rating of 3 takes no side
    assert arrays["patient"].tolist() == [42, 1012]
    assert arrays["extent_mm"].tolist() == [10.0, 20.0]
    assert arrays["maps"].dtype == np.uint8
    thickness = [round(2.5 / 10 * STEPS), round(2.5 / 20 * STEPS)]
    assert arrays["maps"].max(axis=(1, 2)).tolist() == thickness


def test_making_the_file_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    wheel = tmp_path / "tiny.whl"
    drawn = Drawn(annotation=1, patient="LIDC-IDRI-0001", malignancy=4, points=SQUARE)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(DATABASE, database([drawn]))
    script = Path(sys.modules[read_arrays.__module__].__file__ or "")

    made = []
    for name in ("first.npz", "second.npz"):
        subprocess.run([sys.executable, str(script), str(wheel), str(tmp_path / name)], check=True)
        made.append((tmp_path / name).read_bytes())

    assert made[0] == made[1]
