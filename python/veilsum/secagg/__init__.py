"""Secure aggregation: a sum of updates of which the coordinator sees none.

Sans-IO: sessions take messages and return effects. Nothing here opens a socket, reads a
clock or draws randomness by itself. Suite VS-1, complete mask graph; docs/protocol.md.
"""

from veilsum.secagg.collecting import holds_secrets
from veilsum.secagg.coordinator import CoordinatorSession
from veilsum.secagg.effects import (
    Aborted,
    Acknowledged,
    Blamed,
    Completed,
    CoordinatorEffect,
    Disputed,
    Done,
    Excluded,
    LeaveOut,
    NeedUpdate,
    PhaseBegan,
    Refused,
    ResultReady,
    SecureResult,
    Send,
    SendTo,
    SiteEffect,
    UploadInput,
    Warn,
    Withdraw,
)
from veilsum.secagg.egress_summary import Egress, no_egress
from veilsum.secagg.evidence import FAULT_TEXTS, Dispute, Evidence, Fault, Guilty, Invalid, Verdict
from veilsum.secagg.keys import Entropy
from veilsum.secagg.ledger import Ledger
from veilsum.secagg.origin import MOST_LINKS, link_bytes, wants_links
from veilsum.secagg.plan import Plan
from veilsum.secagg.policy import LocalPolicy
from veilsum.secagg.receiver import InputReceiver
from veilsum.secagg.refusals import RefusalCode, open_refusal
from veilsum.secagg.rehearsal import (
    Consortium,
    Stage,
    make_consortium,
    plain_ring_sum,
    run_in_process,
)
from veilsum.secagg.result_messages import PreviousRound
from veilsum.secagg.site import SiteSession
from veilsum.secagg.upload import Contribution
from veilsum.secagg.verdict import check_evidence

__all__ = [
    "FAULT_TEXTS",
    "MOST_LINKS",
    "Aborted",
    "Acknowledged",
    "Blamed",
    "Completed",
    "Consortium",
    "Contribution",
    "CoordinatorEffect",
    "CoordinatorSession",
    "Dispute",
    "Disputed",
    "Done",
    "Egress",
    "Entropy",
    "Evidence",
    "Excluded",
    "Fault",
    "Guilty",
    "InputReceiver",
    "Invalid",
    "LeaveOut",
    "Ledger",
    "LocalPolicy",
    "NeedUpdate",
    "PhaseBegan",
    "Plan",
    "PreviousRound",
    "RefusalCode",
    "Refused",
    "ResultReady",
    "SecureResult",
    "Send",
    "SendTo",
    "SiteEffect",
    "SiteSession",
    "Stage",
    "UploadInput",
    "Verdict",
    "Warn",
    "Withdraw",
    "check_evidence",
    "holds_secrets",
    "link_bytes",
    "make_consortium",
    "no_egress",
    "open_refusal",
    "plain_ring_sum",
    "run_in_process",
    "wants_links",
]
