"""A site that checks sums: what it asks for, when it acknowledges, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from support.audits import AuditedRound
from support.federation import Federation, small_model
from support.secagg import consortium, make_contributions, make_plan, read, small_arrays
from veilsum import secagg
from veilsum._native import Secret
from veilsum.aggregate.secure_sum import SecureSum
from veilsum.control import RoundId, RunSpec, TaskSettings
from veilsum.coordinator.effects import SaveLink
from veilsum.errors import AuditError, ConfigError, DecodeError, PeerError
from veilsum.model import ModelLayout
from veilsum.secagg.ledger import Ledger
from veilsum.secagg.ledger_records import (
    AckSent,
    Attempt,
    Opened,
    ResultRejected,
    VoteCast,
    decode_record,
    encode_record,
)
from veilsum.secagg.origin import read_links
from veilsum.secagg.payload import read_payload
from veilsum.secagg.policy import Refusal
from veilsum.secagg.result_messages import (
    ALL_CHECKED,
    MODEL_RECOMPUTED,
    SIGNATURE_ONLY,
    TILES_CHECKED,
    ResultAck,
    RoundResult,
)
from veilsum.site import auditing
from veilsum.site.auditing import Auditor, SumAudit
from veilsum.site.effects import FetchAudit, Note
from veilsum.site.events import AuditFetched, AuditFetchFailed

CHUNK = 4096
SIZE = 70 * CHUNK
ROUND = RoundId("run-1", 1, 0)
LEDGER = None


@cache
def held(tampered: bool = False) -> AuditedRound:
    layout = ModelLayout.from_arrays(small_arrays(0, SIZE))
    plan = make_plan(4, layout=layout, chunk_coordinates=CHUNK)
    contributions = make_contributions(plan, lambda seed: small_arrays(seed, SIZE))

    def tamper(total: Any) -> None:
        if tampered:
            total._words[1][33 * CHUNK] += total._words[1].dtype.type(1)

    return AuditedRound(plan, contributions=contributions, lost=["basel"], tamper=tamper)


def ready(audited: AuditedRound) -> secagg.ResultReady:
    return secagg.ResultReady(read(RoundResult, audited.result()), audited.certified.survivors)


@dataclass
class StubContribution:
    """Takes down what becomes of the result."""

    result: secagg.ResultReady | None
    plan: secagg.Plan
    said: list[Any] = field(default_factory=list)

    def acknowledge(self, level: int) -> list[Any]:
        self.said.append(level)
        return []

    def reject(self, reason: str) -> list[Any]:
        self.said.append(reason)
        return []


def part_of(audited: AuditedRound) -> Any:
    contribution = StubContribution(ready(audited), audited.plan)
    return SimpleNamespace(round=ROUND, contribution=contribution)


def entropy(seed: int) -> Callable[[int], Secret]:
    return lambda size: Secret.from_bytes(bytes([seed]) * size)


def audit_to_its_end(auditor: Auditor, part: Any, served: AuditedRound) -> list[Any]:
    """Every answer is what a coordinator with this round would send."""
    effects = auditor.begin(part, MODEL_RECOMPUTED)
    while effects and isinstance(effects[-1], FetchAudit):
        asked = effects[-1]
        data = served.transcript(asked.chunks)
        assert len(data) <= asked.max_bytes
        effects = auditor.answered(part, AuditFetched(ROUND, data))
    return effects


@pytest.mark.parametrize(("audit", "level"), [("sample", TILES_CHECKED), ("all", ALL_CHECKED)])
def test_a_right_sum_is_acknowledged_with_what_was_checked(audit, level):
    part = part_of(held())

    assert audit_to_its_end(Auditor(audit, entropy(1), LEDGER, threads=1), part, held()) == []

    assert part.contribution.said == [level]


def test_a_sample_of_everything_is_everything():
    layout = ModelLayout.from_arrays(small_arrays(0, 100))
    plan = make_plan(4, layout=layout)
    contributions = make_contributions(plan, lambda seed: small_arrays(seed, 100))
    small = AuditedRound(plan, contributions=contributions)
    part = part_of(small)

    audit_to_its_end(Auditor("sample", entropy(1), LEDGER, threads=1), part, small)

    assert part.contribution.said == [ALL_CHECKED]


def test_without_an_audit_the_result_is_acknowledged_at_once():
    part = part_of(held(tampered=True))

    assert Auditor("off", entropy(1), LEDGER, threads=1).begin(part, MODEL_RECOMPUTED) == []

    assert part.contribution.said == [MODEL_RECOMPUTED]


def test_a_wrong_sum_is_refused_and_the_chunk_named():
    part = part_of(held(tampered=True))

    audit_to_its_end(Auditor("all", entropy(1), LEDGER, threads=1), part, held(tampered=True))

    (reason,) = part.contribution.said
    assert "chunk 33 of stream 1" in reason


def test_chunks_are_the_sites_own_choice_and_come_in_batches(monkeypatch):
    monkeypatch.setattr(auditing, "_BATCH_BYTES", 10 * 4 * CHUNK * 21 // 8)
    plan, result = held().plan, ready(held())
    audits = [SumAudit(plan, result, bytes([seed]) * 32, threads=1) for seed in (1, 2)]
    asked = []
    for audit in audits:
        chunks, batches = [], 0
        while audit.next_batch:
            batches += 1
            chunks += audit.next_batch
            audit.check(held().transcript(audit.next_batch))
        asked.append(chunks)
        assert batches > 4
    assert asked[0] != asked[1]
    assert {len(set(chunks)) for chunks in asked} == {64 + 2}


def test_what_the_coordinator_sends_must_be_of_this_result():
    """It signs a result for this site and serves another round, result or nothing to go by."""
    audit = SumAudit(held().plan, ready(held()), bytes(32), threads=1)
    chunks = audit.next_batch
    for data in (
        b"",
        held().transcript(chunks)[:-1],
        held().transcript(chunks[:-1]),
        held().transcript(chunks, model_hash=bytes([1]) * 32),
        held(tampered=True).transcript(chunks),
    ):
        with pytest.raises((DecodeError, PeerError, AuditError)):
            audit.check(data)
    audit.check(held().transcript(chunks))


def test_chunks_of_the_true_sum_do_not_vouch_for_a_signed_wrong_one():
    """The result that was signed is the wrong one's; what is served is right, but not under it."""
    audit = SumAudit(held().plan, ready(held(tampered=True)), None, threads=1)
    result = ready(held(tampered=True)).result
    data = held().transcript(audit.next_batch, roots=result.roots, mean_digest=result.mean_digest)
    with pytest.raises(DecodeError, match="not under the root"):
        audit.check(data)


@pytest.mark.parametrize("data", [b"", b"VST1", bytes(1000)])
def test_material_that_proves_nothing_is_as_good_as_none(data):
    part = part_of(held())
    auditor = Auditor("sample", entropy(1), LEDGER, threads=1)
    auditor.begin(part, MODEL_RECOMPUTED)

    effects = auditor.answered(part, AuditFetched(ROUND, data))

    assert part.contribution.said == ["what came to check the sum with does not prove it"]
    assert all(isinstance(effect, Note) for effect in effects)


def test_a_coordinator_that_lets_nobody_check_gets_no_acknowledgement():
    part = part_of(held())
    auditor = Auditor("sample", entropy(1), LEDGER, threads=1)
    auditor.begin(part, MODEL_RECOMPUTED)

    auditor.answered(part, AuditFetchFailed(ROUND, "NOT_FOUND"))

    assert part.contribution.said == ["the coordinator does not let this site check the sum"]
    assert auditor.answered(part, AuditFetched(ROUND, b"")) == []


def test_answers_that_come_after_the_round_change_nothing():
    part = part_of(held())
    auditor = Auditor("all", entropy(1), LEDGER, threads=1)
    (asked,) = auditor.begin(part, MODEL_RECOMPUTED)
    auditor.left()

    assert auditor.answered(part, AuditFetched(ROUND, held().transcript(asked.chunks))) == []
    assert auditor.answered(part, AuditFetchFailed(ROUND, "late")) == []
    assert part.contribution.said == []


def test_the_roster_that_counts_is_the_sites_own():
    other = secagg.make_consortium(consortium().roster.sites)
    plan = replace(held().plan, roster=other.roster)
    audit = SumAudit(plan, ready(held()), bytes(32), threads=1)
    with pytest.raises(ConfigError, match="is of roster"):
        audit.check(held().transcript(audit.next_batch))


# --- whole runs ------------------------------------------------------------------------

SITES = ("lyon", "oslo", "porto", "quito")
SPEC = RunSpec("task", rounds=2, masked=True, clip=0.5, weight_cap=64, colluders=1, max_attempts=1)


def run_of(audit: str, *, audits: bool = True, served: Any = None) -> Federation:
    policy = secagg.LocalPolicy(audit=audit)  # type: ignore[arg-type]
    federation = Federation(SITES, policy_of=dict.fromkeys(SITES, policy), audits=audits)
    if served is not None:
        federation.served = served
    federation.submit("run", SPEC, small_model())
    federation.run("run")
    return federation


def state_of(federation: Federation) -> tuple[str, str]:
    status = federation.coordinator.status("run")
    return status.state, status.reason


def levels(federation: Federation) -> list[set[int]]:
    """What was checked of each round's result, by what was signed."""
    links = [effect.link for effect in federation.effects if isinstance(effect, SaveLink)]
    return [
        {read_payload(ResultAck, ack.payload, context=None).checked for ack in link.acks}
        for link in read_links(links)
    ]


@pytest.mark.parametrize(
    ("audit", "level"),
    [("off", MODEL_RECOMPUTED), ("sample", ALL_CHECKED), ("all", ALL_CHECKED)],
)
def test_a_run_goes_on_with_acknowledgements_of_what_was_checked(audit, level):
    federation = run_of(audit)

    assert state_of(federation) == ("completed", "")
    assert levels(federation) == [{level}, {level}]


def test_a_site_that_checked_the_sum_and_not_the_step_does_not_vouch_for_the_model():
    policy = secagg.LocalPolicy(audit="all", provenance="off")
    federation = Federation(SITES, policy_of=dict.fromkeys(SITES, policy), audits=True)
    federation.submit("run", SPEC, small_model())
    federation.run("run")

    assert state_of(federation) == ("completed", "")
    assert levels(federation) == [{SIGNATURE_ONLY}] * 2


def test_sites_that_may_not_check_do_not_let_the_run_go_on():
    federation = run_of("sample", audits=False)

    state, reason = state_of(federation)
    assert state == "aborted"
    assert "0 sites acknowledged its result" in reason
    refusals = federation.coordinator.status("run").rounds[0].refusals
    for site in SITES:
        assert "does not let this site check" in "\n".join(federation.sites[site].notes)
    assert set(refusals) <= set(SITES)


def test_sites_that_are_sent_rubbish_to_check_do_not_let_the_run_go_on():
    federation = run_of("all", served=lambda data: data[:-1] + bytes([data[-1] ^ 1]))

    assert "0 sites acknowledged its result" in state_of(federation)[1]
    assert "does not prove it" in "\n".join(federation.sites["lyon"].notes)


@pytest.fixture
def lying_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step more in one word of each sum, in range; all else is as follows from that sum."""
    right = SecureSum.finish

    def finish(total: SecureSum, contributors: int) -> Any:
        if total._audits:  # the coordinator's own, which it does not audit
            total._audits = {}
            total._words[1][0] += total._words[1].dtype.type(1)
        return right(total, contributors)

    monkeypatch.setattr(SecureSum, "finish", finish)


@pytest.mark.usefixtures("lying_coordinator")
def test_sites_that_do_not_check_follow_a_wrong_sum():
    """They make the server's step themselves, and it leads where the coordinator says."""
    federation = run_of("off")

    assert state_of(federation) == ("completed", "")
    assert levels(federation) == [{MODEL_RECOMPUTED}] * 2


@pytest.mark.usefixtures("lying_coordinator")
@pytest.mark.parametrize("audit", ["sample", "all"])
def test_sites_that_check_do_not(audit):
    federation = run_of(audit)

    assert "0 sites acknowledged its result" in state_of(federation)[1]
    for site in SITES:
        notes = "\n".join(federation.sites[site].notes)
        assert "chunk 0 of stream 1 of the sum is not the sum of the updates" in notes


# --- a site that knows better than the quorum --------------------------------------------

ALONE = "lyon"


def outvoted() -> Federation:
    """One site checks sums; the other three, a quorum, acknowledge whatever they are shown."""
    policies = {site: secagg.LocalPolicy() for site in SITES}
    policies[ALONE] = secagg.LocalPolicy(audit="all")
    return Federation(SITES, policy_of=policies, audits=True)


def run_outvoted(federation: Federation) -> list[tuple[str, ...]]:
    """The sites in each round's sum."""
    federation.submit("run", SPEC, small_model())
    status = federation.run("run")
    assert status.state == "completed", status.reason
    return [record.sites for record in status.rounds]


@pytest.mark.usefixtures("lying_coordinator")
def test_a_site_without_memory_goes_on_from_what_it_found_to_be_wrong(monkeypatch):
    """The defence removed: a quorum of others is enough for it."""
    monkeypatch.setattr(Ledger, "remember", forgetting(Ledger.remember))

    assert run_outvoted(outvoted()) == [SITES, SITES]


def forgetting(right: Callable[..., None]) -> Callable[..., None]:
    def remember(ledger: Ledger, record: object) -> None:
        if not isinstance(record, ResultRejected):
            right(ledger, record)

    return remember


@pytest.mark.usefixtures("lying_coordinator")
@pytest.mark.parametrize("restarted", [False, True])
def test_a_site_that_found_a_result_to_be_wrong_is_in_no_later_round_of_the_run(restarted):
    federation = outvoted()
    if restarted:
        carry_out = federation._carry_out

        def restart(effect: object) -> None:
            carry_out(effect)  # type: ignore[arg-type]
            if isinstance(effect, SaveLink):
                federation._queue.append(lambda: federation.disconnect(ALONE))
                federation._queue.append(lambda: federation.connect(ALONE))

        federation._carry_out = restart  # type: ignore[method-assign]

    others = tuple(site for site in SITES if site != ALONE)
    assert run_outvoted(federation) == [SITES, others]
    assert "found a result of that run to be wrong" in "\n".join(federation.sites[ALONE].notes)


@pytest.mark.usefixtures("lying_coordinator")
@pytest.mark.parametrize("remembers", [False, True])
def test_a_new_run_is_no_way_back_to_a_model_that_came_of_a_wrong_result(monkeypatch, remembers):
    """The coordinator chooses run ids. A quorum of the others made the step to this model; to one
    who could not tell that their result was wrong, it is as good as any."""
    if not remembers:
        monkeypatch.setattr(Ledger, "has_rejected", lambda *args: False)
    federation = outvoted()
    federation.submit("first", replace(SPEC, rounds=1), small_model())
    federation.run("first")
    (model,) = federation.saved_models("first")

    federation.submit("second", replace(SPEC, rounds=1, task=TaskSettings(seed=7)), model)

    (record,) = federation.run("second").rounds
    others = tuple(site for site in SITES if site != ALONE)
    assert record.sites == (others if remembers else SITES)
    told = "the model came of a result that this site found to be wrong"
    assert (told in "\n".join(federation.sites[ALONE].notes)) == remembers


def test_what_was_rejected_is_read_back_and_contradicts_an_acknowledgement():
    attempt = Attempt("task", "run", 3, 0, bytes([7]) * 32)
    rejected = ResultRejected(attempt, bytes([8]) * 32)
    assert decode_record(encode_record(rejected)) == rejected

    records = [Opened(attempt, bytes(32)), VoteCast(attempt, bytes(32), ("a",))]
    again = Ledger(Secret.zeros(32), lambda record: None, [*records, rejected])
    for later in (replace(attempt, round_number=4), replace(attempt, attempt=1)):
        with pytest.raises(Refusal, match="found a result of that run to be wrong"):
            again.check(Opened(later, bytes(32)))
    again.check(Opened(replace(attempt, run_id="other"), bytes(32)))
    again.check(Opened(replace(attempt, task_id="other"), bytes(32)))

    acked = AckSent(attempt, bytes(32), bytes(32))
    with pytest.raises(Refusal, match="acknowledged a result of it already"):
        Ledger(Secret.zeros(32), lambda record: None, [*records, acked]).remember(rejected)
    with pytest.raises(Refusal, match="not the last attempt"):
        Ledger(Secret.zeros(32), lambda record: None).remember(rejected)
