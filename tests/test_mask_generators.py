"""Two generators of masks, and what a coordinator could try with the choice between them."""

from __future__ import annotations

import itertools

import pytest

from support.secagg import NAMES, Federation, kind_on_the_wire, make_plan, seal
from veilsum import secagg
from veilsum.control import MaskGenerator
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.messages import KeyAdvert, KeyRoster, RoundOpen
from veilsum.secagg.payload import COORDINATOR
from veilsum.secagg.phases import Ready

VICTIM, *OTHERS = NAMES[:4]
CHACHA, AES = (make_plan(4, mask_generator=name) for name in ("chacha20", "aes256ctr"))


def mask_keys(plan: secagg.Plan) -> dict[str, list[bytes]]:
    """Keys of every site's masks, from the same "random" bytes whatever the plan."""
    federation = Federation(plan)
    federation.contribute = lambda site: []
    federation.run()
    found = {}
    for site, session in federation.sites.items():
        phase = session._phase
        assert isinstance(phase, Ready)
        found[site] = [bytes(key) for key in phase.masks.keys]
    return found


def test_no_mask_key_of_one_generator_is_one_of_the_other() -> None:
    """Even of sites whose generators of random bytes repeat themselves completely."""
    of_chacha, of_aes = mask_keys(CHACHA), mask_keys(AES)

    assert of_chacha == mask_keys(CHACHA)
    assert of_chacha.keys() == of_aes.keys() == set(CHACHA.cohort)
    used = [set(itertools.chain(*keys.values())) for keys in (of_chacha, of_aes)]
    assert len(used[0]) == len(used[1]) == 4 + 6  # one per site, one per pair
    assert used[0].isdisjoint(used[1])


def adverts_for(federation: Federation, plans: dict[str, secagg.Plan]) -> list[Envelope]:
    """What the sites answer to an invitation to the plan each of them is shown."""
    adverts = []
    for site, plan in plans.items():
        opened = seal(RoundOpen(plan.context, COORDINATOR, plan.to_bytes()))
        *_, effect = federation.sites[site].handle(opened)
        assert isinstance(effect, secagg.Send)
        assert kind_on_the_wire(effect.message) == KeyAdvert.kind
        adverts.append(Envelope.from_bytes(effect.message))
    return adverts


def test_sites_that_were_shown_different_generators_do_not_exchange_keys() -> None:
    plans = {VICTIM: AES, **dict.fromkeys(OTHERS, CHACHA)}
    federation = Federation(CHACHA)
    adverts = tuple(adverts_for(federation, plans))

    for site, plan in plans.items():
        *_, effect = federation.sites[site].handle(
            seal(KeyRoster(plan.context, COORDINATOR, adverts))
        )

        assert isinstance(effect, secagg.Withdraw)
        assert "belongs to another round or attempt" in effect.reason


def test_a_site_is_not_talked_into_a_second_generator_in_one_attempt() -> None:
    session = Federation(CHACHA).sites[VICTIM]
    first, second = (
        seal(RoundOpen(plan.context, COORDINATOR, plan.to_bytes())) for plan in (CHACHA, AES)
    )
    session.handle(first)

    *_, effect = session.handle(second)

    assert isinstance(effect, secagg.Withdraw)
    assert effect.code == "equivocation"


@pytest.mark.parametrize(("plan", "other"), [(CHACHA, "aes256ctr"), (AES, "chacha20")])
def test_a_site_takes_part_with_the_generators_of_its_policy_only(
    plan: secagg.Plan, other: MaskGenerator
) -> None:
    strict = secagg.LocalPolicy(min_colluders=1, mask_generators=frozenset({other}))
    federation = Federation(plan, policies={VICTIM: strict})

    federation.run()

    effects = [effect for _, effect in federation.site_effects]
    (refusal,) = [effect for effect in effects if isinstance(effect, secagg.Withdraw)]
    assert refusal.code == "policy"
    assert f"masks of {plan.mask_generator!r} are not allowed" in refusal.reason
    assert federation.result.sites == tuple(OTHERS)
