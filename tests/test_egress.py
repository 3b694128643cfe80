"""The list of what left a site: what a line holds, how lines are joined, what a crash leaves."""

from __future__ import annotations

from veilsum.secagg.egress_summary import EgressSummary, Sent, no_egress

# --- summaries ----------------------------------------------------------------------------


def test_a_summary_since_another_holds_what_left_in_between():
    before = EgressSummary(b"a" * 32, (Sent("hello", 1, 40), Sent("share-deal", 1, 900)))
    now = EgressSummary(
        b"b" * 32, (Sent("hello", 1, 40), Sent("share-deal", 3, 1500), Sent("survivor-vote", 1, 7))
    )

    assert now.since(before) == EgressSummary(
        b"b" * 32, (Sent("share-deal", 2, 600), Sent("survivor-vote", 1, 7))
    )
    assert now.since(no_egress()) == now
    assert now.since(now).sent == ()
