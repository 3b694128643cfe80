"""Which models a site trains from: pinned, first, or the outcome of rounds it can check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from support.links import round_before
from support.secagg import NAMES, consortium, make_plan, signing_key
from veilsum import secagg
from veilsum._native import Secret
from veilsum.errors import ConfigError
from veilsum.secagg.ledger_records import LedgerRecord, ModelKnown, decode_record, encode_record
from veilsum.secagg.origin import check_origin
from veilsum.secagg.policy import LocalPolicy, Refusal
from veilsum.secagg.result_messages import ALL_CHECKED, MODEL_RECOMPUTED, SIGNATURE_ONLY, Link

COHORT = NAMES[:5]  # with c = 1, q = 4
ZEROS = bytes(32)
POLICY = LocalPolicy(min_colluders=1)


def _model(number: int) -> bytes:
    return bytes([number]) * 32


def _plan(number: int, *, model: int | None = None, **changes: Any) -> secagg.Plan:
    """Of a round that begins with the model of its number."""
    return make_plan(
        5,
        colluders=1,
        round_number=number,
        model_hash=_model(number if model is None else model),
        **changes,
    )


def _key_of(signer: str) -> Any:
    return signing_key("" if signer == "coordinator" else signer)


def _link(
    plan: secagg.Plan,
    to: int,
    *,
    acks: Sequence[str] = COHORT,
    checked: int = MODEL_RECOMPUTED,
    state: bytes = ZEROS,
) -> Link:
    """A round of this plan led to a model."""
    return round_before(
        plan, _key_of, model_hash=_model(to), state_hash=state, acks=acks, checked=checked
    ).link


class Site:
    """A ledger, and what was written into it."""

    def __init__(self, policy: LocalPolicy = POLICY) -> None:
        self.policy = policy
        self.written: list[LedgerRecord] = []
        self.ledger = secagg.Ledger(Secret.from_os(32), self.written.append)

    def takes(self, plan: secagg.Plan, *links: Link) -> bool:
        """Whether it would train from the plan's model; if so it does."""
        try:
            known = check_origin(self.policy, plan, links, self.ledger)
        except Refusal as refusal:
            return self._refuses(refusal)
        if known is not None:
            self.ledger.remember(known)
        return True

    @staticmethod
    def _refuses(refusal: Refusal) -> bool:
        assert refusal.code == "model"
        return False

    def restarted(self) -> Site:
        """Another process with the same ledger."""
        again = Site(self.policy)
        records = [decode_record(encode_record(record)) for record in self.written]
        again.written = self.written
        again.ledger = secagg.Ledger(Secret.from_os(32), self.written.append, records)
        return again


def test_the_first_model_is_trusted_and_no_other_after_it() -> None:
    site = Site()

    assert site.takes(_plan(1))
    assert site.takes(_plan(1, run_id="run-2"))
    assert not site.takes(_plan(1, model=66, run_id="run-2"))
    assert not site.restarted().takes(_plan(1, model=66, run_id="run-2"))
    assert site.restarted().takes(_plan(1, run_id="run-3"))


def test_a_new_name_for_the_task_is_no_new_beginning() -> None:
    """The coordinator chooses names."""
    site = Site()
    assert site.takes(_plan(1))

    assert not site.takes(_plan(1, model=66, task_id="diagnosis-2"))
    assert not site.takes(_plan(1, task_id="diagnosis-2"))


def test_a_task_that_the_sites_own_policy_names_may_begin_once() -> None:
    site = Site(replace(POLICY, task_ids=frozenset({"diagnosis", "triage"})))

    assert site.takes(_plan(1))
    assert site.takes(_plan(1, model=7, task_id="triage"))
    assert not site.takes(_plan(1, model=8, task_id="triage"))
    assert not site.takes(_plan(1, model=7))


def test_with_pins_the_first_model_must_be_one_of_them() -> None:
    site = Site(replace(POLICY, start_models=frozenset({_model(1).hex(), _model(2).hex()})))

    assert not site.takes(_plan(1, model=3))
    assert site.takes(_plan(1))
    assert site.takes(_plan(1, model=2, task_id="triage"))
    assert not site.takes(_plan(1, model=3))
    assert not Site(replace(POLICY, start_models=frozenset())).takes(_plan(1))


def test_what_the_servers_optimizer_remembers_is_part_of_the_start() -> None:
    state = _model(9)
    only_model = Site(replace(POLICY, start_models=frozenset({_model(1).hex()})))
    both = Site(replace(POLICY, start_models=frozenset({_model(1).hex(), state.hex()})))
    first = Site()

    assert not only_model.takes(_plan(1, state_hash=state))
    assert both.takes(_plan(1, state_hash=state))
    assert first.takes(_plan(1))
    assert not first.takes(_plan(1, state_hash=state, run_id="run-2"))


def test_from_a_known_model_another_optimizer_may_begin_anew() -> None:
    state = _model(9)
    site = Site(replace(POLICY, start_models=frozenset({_model(1).hex(), state.hex()})))
    assert site.takes(_plan(1, state_hash=state))

    assert site.takes(_plan(1, run_id="run-2"))
    assert site.takes(_plan(2, run_id="run-3"), _link(_plan(1), 2, state=state))
    assert not site.takes(_plan(3, state_hash=state), _link(_plan(2), 3))


def test_pins_are_hashes() -> None:
    for pin in ("", "ab", "Z" * 64, "A" * 64, "0" * 65):
        with pytest.raises(ConfigError, match="start_models must be 64 hexadecimal digits"):
            LocalPolicy(start_models=frozenset({pin}))
    with pytest.raises(ConfigError, match="provenance must be 'recompute' or 'off'"):
        LocalPolicy(provenance="on")  # type: ignore[arg-type]


def test_a_site_without_provenance_takes_any_model_and_notes_none() -> None:
    site = Site(replace(POLICY, provenance="off"))

    assert site.takes(_plan(1))
    assert site.takes(_plan(1, model=66))
    assert site.written == []


@pytest.mark.parametrize("rule", [b"", b"VSS1?"])
def test_a_plan_that_states_no_step_is_refused(rule: bytes) -> None:
    assert not Site().takes(_plan(1, step_rule=rule))
    assert Site(replace(POLICY, provenance="off")).takes(_plan(1, step_rule=rule))


# --- what a round led to --------------------------------------------------------------


def test_a_quorum_that_made_the_step_makes_its_model_known() -> None:
    site = Site()
    assert site.takes(_plan(1))

    assert site.takes(_plan(2), _link(_plan(1), 2, acks=COHORT[:4]))
    assert site.restarted().takes(_plan(1, model=2, run_id="run-2"))


def test_without_a_link_or_behind_too_few_acks_a_model_stays_unknown() -> None:
    site = Site()
    assert site.takes(_plan(1))

    assert not site.takes(_plan(2))
    assert not site.takes(_plan(2), _link(_plan(1), 2, acks=COHORT[:3]))
    assert not site.takes(_plan(2), _link(_plan(1), 2, checked=SIGNATURE_ONLY))
    assert site.takes(_plan(2), _link(_plan(1), 2, checked=ALL_CHECKED))


def test_signatures_alone_do_not_count_among_those_who_made_the_step() -> None:
    site = Site()
    assert site.takes(_plan(1))
    before = _plan(1)
    made = _link(before, 2, acks=COHORT[:3])
    seen = _link(before, 2, acks=COHORT[3:], checked=SIGNATURE_ONLY)
    mixed = Link(made.manifest, made.result, (*made.acks, *seen.acks))

    assert not site.takes(_plan(2), mixed)


def test_one_site_counts_once() -> None:
    site = Site()
    assert site.takes(_plan(1))
    made = _link(_plan(1), 2, acks=COHORT[:3])
    twice = Link(made.manifest, made.result, (*made.acks, made.acks[-1]))

    assert not site.takes(_plan(2), twice)


def test_a_site_that_missed_rounds_finds_its_way_back_by_their_results() -> None:
    site = Site()
    assert site.takes(_plan(1))
    links = [_link(_plan(number), number + 1) for number in (4, 3, 2, 1)]

    for missing in range(len(links)):
        assert not site.takes(_plan(5), *links[:missing])
    assert site.takes(_plan(5), *links)


def test_a_chain_with_another_link_in_it_leads_nowhere() -> None:
    good = [_link(_plan(number), number + 1) for number in (3, 2, 1)]
    bad = {
        "leads elsewhere": _link(_plan(2), 66),
        "begins elsewhere": _link(_plan(2, model=66), 3),
        "too few": _link(_plan(2), 3, acks=COHORT[:3]),
        "another task": _link(_plan(2, task_id="triage"), 3),
    }
    for what, link in bad.items():
        site = Site()
        assert site.takes(_plan(1))
        assert not site.takes(_plan(4), good[0], link, good[2]), what


def test_a_chain_in_which_the_optimizer_remembers_something_else_leads_nowhere() -> None:
    site = Site()
    assert site.takes(_plan(1))
    last = _link(_plan(2, state_hash=_model(8)), 3)

    assert not site.takes(_plan(3), last, _link(_plan(1), 2, state=_model(9)))
    assert not site.takes(_plan(3), last, _link(_plan(1), 2))
    assert site.takes(_plan(3), last, _link(_plan(1), 2, state=_model(8)))


def test_a_round_that_this_site_would_not_have_been_in_makes_nothing_known() -> None:
    """Three sites with one colluder among them need three votes: the coordinator's helpers and
    one more. What such a round leads to, five sites with one colluder did not decide."""
    site = Site(replace(POLICY, min_invited=4))
    assert site.takes(_plan(1))
    small = make_plan(3, colluders=1, round_number=1, model_hash=_model(1))

    with pytest.raises(Refusal, match="number of invited sites is 3"):
        check_origin(site.policy, _plan(2), [_link(small, 2, acks=NAMES[:3])], site.ledger)


def test_the_coordinators_signature_alone_makes_nothing_known() -> None:
    """A result that nobody else has seen, over a sum that the coordinator made up."""
    site = Site()
    assert site.takes(_plan(1))

    assert not site.takes(_plan(2), _link(_plan(1), 2, acks=()))
    assert not site.takes(_plan(1, model=2, run_id="run-2"))


def test_a_link_that_somebody_else_signed_is_refused() -> None:
    site = Site()
    assert site.takes(_plan(1))
    link = _link(_plan(1), 2)
    forged = round_before(
        _plan(1),
        lambda signer: signing_key(NAMES[0] if signer == "coordinator" else signer),
        model_hash=_model(2),
        checked=MODEL_RECOMPUTED,
    ).link

    assert not site.takes(_plan(2), forged)
    assert site.takes(_plan(2), link)


def test_a_late_member_begins_where_its_policy_says() -> None:
    links = [_link(_plan(number), number + 1) for number in (3, 2, 1)]
    pinned = Site(replace(POLICY, start_models=frozenset({_model(1).hex()})))
    elsewhere = Site(replace(POLICY, start_models=frozenset({_model(66).hex()})))

    assert pinned.takes(_plan(4), *links)
    assert not elsewhere.takes(_plan(4), *links)
    assert Site().takes(_plan(4), links[0])  # nothing is known: trusted once


def test_a_known_model_is_a_record_of_the_ledger() -> None:
    record = ModelKnown("diagnosis", _model(1), _model(2))

    assert decode_record(encode_record(record)) == record
    assert consortium().roster.hash  # of the same members as everywhere here
