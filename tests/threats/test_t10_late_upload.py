"""T10: a site is declared lost, its mask seed rebuilt, and then its upload arrives after all.

The defence: the self mask. No site returns a share of the self seed of a site that its survivor
set leaves out.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from support.secagg import (
    UPLOAD,
    Federation,
    kind_on_the_wire,
    make_contributions,
    make_plan,
    read,
)
from support.unmasking import pair_masks, read_update, rebuilt, with_masks, words_of
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import RoundAborted
from veilsum.model import ModelLayout
from veilsum.secagg import dealing
from veilsum.secagg.masks import MaskKeys, removal_masks, update_masks
from veilsum.secagg.messages import UnmaskShares

LATE = "kyoto"
SIZE = 2**14


def answers_of(federation: Federation) -> dict[str, UnmaskShares]:
    return {
        site: read(UnmaskShares, effect.message)
        for site, effect in federation.site_effects
        if isinstance(effect, secagg.Send) and kind_on_the_wire(effect.message) == "unmask-shares"
    }


class LateUpload:
    """A round without the late site, by a coordinator that keeps what it gets to see."""

    def __init__(self, value: float) -> None:
        arrays = {"weight": np.full(SIZE, value, np.float32)}
        self.plan = make_plan(4, layout=ModelLayout.from_arrays(arrays), metrics=())
        contributions = make_contributions(self.plan, lambda _: arrays)
        self.federation = federation = Federation(self.plan, contributions=contributions)
        self.upload = federation.hold(UPLOAD, origin=LATE)
        self.dealers = federation.coordinator._phase.dealers
        federation.from_coordinator(federation.coordinator.lost(LATE, "is late"))
        federation.run()
        assert LATE not in federation.result.sites

    def pair_masks(self) -> tuple[list[Secret], list[int]]:
        """Those of the late site, from its mask seed, which the round has rebuilt."""
        answers = answers_of(self.federation)
        shares = {site: dict(answer.mask_shares)[LATE] for site, answer in answers.items()}
        seed = rebuilt(self.dealers.members, shares)
        return pair_masks(self.dealers, self.plan.context, LATE, seed)

    def read(self) -> np.ndarray:
        return read_update(self.plan, self.upload.chunks, *self.pair_masks())

    def residual(self) -> np.ndarray:
        """Words of the tensor without pair masks."""
        masked = words_of(self.plan, self.upload.chunks)
        return with_masks(self.plan, masked, *self.pair_masks())[:SIZE]


def without_self_mask(site: str, self_key: Secret, pairs: object) -> MaskKeys:
    whole = update_masks(site, self_key, pairs)
    return MaskKeys(whole.keys[1:], whole.signs[1:])


def removal_without_self_masks(self_keys: object, edges: object) -> MaskKeys:
    return removal_masks([], edges)


def test_an_update_without_a_self_mask_can_be_read(monkeypatch):
    monkeypatch.setattr(dealing, "update_masks", without_self_mask)
    monkeypatch.setattr("veilsum.secagg.audit_keys.removal_masks", removal_without_self_masks)

    np.testing.assert_allclose(LateUpload(0.5).read(), 0.5, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_under_its_self_mask_it_is_uniform(value):
    late = LateUpload(value)

    with pytest.raises(RoundAborted, match="not one that honest updates can have"):
        late.read()
    top = late.residual() >> (late.plan.ring_bits - 6)
    assert scipy.stats.chisquare(np.bincount(top, minlength=64)).pvalue > 1e-6


def test_no_site_returns_a_share_of_the_self_seed_of_a_site_that_is_left_out():
    answers = answers_of(LateUpload(0.0).federation)

    assert set(answers) == {"basel", "lyon", "oslo"}
    assert all(LATE not in dict(answer.self_shares) for answer in answers.values())
