"""Where the model of a plan comes from: whether a site may train from it.

The coordinator names the model of every round. Whoever could name any model could name one that
makes single updates, or single records, show in the sum. So a site trains only from models that it
*knows*, and comes to know one in these ways alone:

- it is pinned by the site's policy;
- it is the first, of the first task or of a task that the policy names: trusted once;
- a round led to it from a model the site knows. That is the word of a quorum of that round's sites
  who made the step themselves, over the coordinator's signature, and honest ones among them.

The last may go on over many rounds, so a site that missed some finds its way back by their results
alone. A step that this site made itself is no better on its own: over a sum that nobody else has
seen, the coordinator could have it lead anywhere.

Models are known with what the server's optimizer remembers beside them, because that is as much
part of the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from veilsum.errors import DecodeError
from veilsum.optimizers import read_step_rule
from veilsum.roster import Roster
from veilsum.secagg.envelope import Envelope
from veilsum.secagg.ledger import Ledger, overtaken
from veilsum.secagg.ledger_records import NO_STATE, LedgerRecord, ModelKnown
from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import LocalPolicy, Refusal
from veilsum.secagg.result_checks import check_last_round, open_link
from veilsum.secagg.result_messages import MODEL_RECOMPUTED, Link
from veilsum.secagg.site_checks import open_plan
from veilsum.secagg.wire import Reader, Writer

MOST_LINKS = 256
"""Rounds that a site may have missed in a row and still find its way back by itself."""


def check_chain(
    policy: LocalPolicy,
    plan: Plan,
    link: Link | None,
    further: Sequence[bytes],
    site: str,
    ledger: Ledger,
    remember: Callable[[LedgerRecord], None],
) -> None:
    """Whether a round begins where the one before it ended, and from a model that the site knows.

    Args:
        plan: within the policy.
        link: what its invitation brings of the round before.
        further: results that led to the model, the last one first, as the coordinator hands them
            out; without any that of the invitation must do.
        site, ledger: as of check_last_round.
        remember: writes down what must not be forgotten of the answer.

    Raises:
        Refusal, DecodeError: as check_last_round and check_origin; or the ledger is an old one.
    """
    stale = check_last_round(policy, plan, link, site, ledger)
    if stale is not None:
        remember(stale)
        raise overtaken()
    links = read_links(further) or ((link,) if link else ())
    known = check_origin(policy, plan, links, ledger)
    if known is not None:
        remember(known)


def check_origin(
    policy: LocalPolicy, plan: Plan, links: Sequence[Link], ledger: Ledger
) -> ModelKnown | None:
    """Whether a site may train from the model of a plan.

    Args:
        plan: within the policy.
        links: the results that led to its model, the last one first; as many as there are.

    Returns:
        what to remember before the site takes part; None if it knew the model.

    Raises:
        Refusal: code "model".
    """
    if policy.provenance == "off":
        return None
    _check_step_rule(plan)
    model = ModelKnown(plan.task_id, plan.model_hash, plan.state_hash)
    if ledger.knows_model(model):
        return None
    if not _is_start(policy, model, ledger):
        _follow_back(policy, plan, model, links, ledger)
    return model


def wants_links(policy: LocalPolicy, roster: Roster, opened: bytes, ledger: Ledger) -> bool:
    """Whether a site needs more results than the one that comes with an invitation to tell where
    the model comes from.

    Args:
        opened: envelope of the invitation. About one that is not in order it does not ask.
    """
    try:
        plan, link = open_plan(roster, Envelope.from_bytes(opened))
        policy.check(plan)
    except (DecodeError, Refusal):
        return False
    try:
        check_origin(policy, plan, () if link is None else (link,), ledger)
    except Refusal:
        return True
    return False


def link_bytes(link: Link) -> bytes:
    """Inverse of read_links, for one."""
    writer = Writer()
    link.write(writer)
    return writer.bytes()


def read_links(data: Sequence[bytes]) -> tuple[Link, ...]:
    """Links as the coordinator hands them out.

    Raises:
        DecodeError: one of them is no link.
    """
    links = []
    for one in data[:MOST_LINKS]:
        reader = Reader(one)
        links.append(Link.read(reader))
        reader.expect_end("a link")
    return tuple(links)


def _check_step_rule(plan: Plan) -> None:
    try:
        read_step_rule(plan.step_rule)
    except DecodeError as error:
        raise Refusal(
            "model", f"the plan states no step of the server that can be followed: {error}"
        ) from error


def _is_start(policy: LocalPolicy, model: ModelKnown, ledger: Ledger) -> bool:
    if policy.start_models is not None:
        return _is_pinned(policy, model)
    # Another task is another name for the same thing, and the coordinator chooses names: it would
    # begin anew with each. So only one that somebody at this site has named is trusted again.
    named = policy.task_ids is not None and model.task_id in policy.task_ids
    return not ledger.knows_task(model.task_id) if named else not ledger.knows_task(None)


def _is_pinned(policy: LocalPolicy, model: ModelKnown) -> bool:
    pins, state = policy.start_models or frozenset(), model.state_hash
    return model.model_hash.hex() in pins and (state == NO_STATE or state.hex() in pins)


def _follow_back(
    policy: LocalPolicy, plan: Plan, model: ModelKnown, links: Sequence[Link], ledger: Ledger
) -> None:
    """Raises:
    Refusal: code "model", if the links do not lead back to a model that is known.
    """
    wanted = model
    for link in links[:MOST_LINKS]:
        wanted = _before(policy, plan.roster, wanted, link, ledger)
        if ledger.knows_model(wanted) or _is_pinned(policy, wanted):
            return
    raise Refusal(
        "model",
        f"this site does not know model {model.model_hash.hex()}, and no results lead to it from "
        "one that it does",
        local_reason="if another member has computed this model, put the hash into start_models "
        "of [policy]",
    )


def _before(
    policy: LocalPolicy, roster: Roster, model: ModelKnown, link: Link, ledger: Ledger
) -> ModelKnown:
    """The model from which a round led to this one."""
    try:
        last = open_link(roster, link)
    except DecodeError as error:
        raise Refusal(
            "model", f"a result that should lead to the model is wrong: {error}"
        ) from error
    plan, result = last.plan, last.result
    led_to = ModelKnown(plan.task_id, result.model_hash, result.state_hash)
    if not led_to.covers(model):
        raise Refusal("model", "a result that should lead to the model leads to another")
    if ledger.has_rejected(last.result_digest):
        # A new run is one more name that the coordinator chooses.
        raise Refusal("model", "the model came of a result that this site found to be wrong")
    policy.check(plan)
    vouching = [ack for ack in last.acks.values() if ack.checked >= MODEL_RECOMPUTED]
    if len(vouching) < plan.vote_quorum:
        raise Refusal(
            "model",
            f"{len(vouching)} sites made the step to a model that this site does not know, "
            f"{plan.vote_quorum} are needed",
        )
    return ModelKnown(plan.task_id, plan.model_hash, plan.state_hash)
