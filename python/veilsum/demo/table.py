"""The table at the end of the demo, and what to make of it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from veilsum.demo.ledger import kinds, total_bytes
from veilsum.demo.outcome import DemoOutcome
from veilsum.demo.view import size_text


def print_outcome(outcome: DemoOutcome, out: Console) -> None:
    """Prints AUC per site, bytes, digest and proof."""
    out.print()
    out.print(_auc_table(outcome))
    out.print()
    out.print(_bytes_table(outcome))
    out.print()
    for line in summary_lines(outcome):
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def summary_lines(outcome: DemoOutcome) -> list[str]:
    """The few sentences that matter."""
    lines = []
    if outcome.drop is not None:
        lines.append(drop_sentence(outcome))
    lines += [
        f"digest of the last round: {outcome.digest}",
        proof_sentence(outcome),
        f"{outcome.seconds:.0f} s in all; report: {outcome.folder.report}",
    ]
    return lines


def drop_sentence(outcome: DemoOutcome) -> str:
    """What became of the site that was killed."""
    drop = outcome.drop
    assert drop is not None
    record = outcome.rounds[drop.round_number - 1].record
    if drop.site in record.sites:
        return (
            f"in round {drop.round_number} {drop.site} was killed, after its update was in the sum"
        )
    later = any(drop.site in o.record.sites for o in outcome.rounds[drop.round_number :])
    back = "; it was back after that" if later else ""
    return (
        f"in round {drop.round_number} {drop.site} was killed, and the round went on with "
        f"{len(record.sites)} sites{back}"
    )


def proof_sentence(outcome: DemoOutcome) -> str:
    """Whether the published sums are the sums of the updates."""
    kind = "plain" if outcome.options.plain else "masked"
    count = len(outcome.rounds)
    if outcome.proof_holds:
        return (
            f"proof: all {count} {kind} sums were computed again from the sites' own updates, "
            "without masks, and have the same digests"
        )
    failed = sum(not o.proof.holds for o in outcome.rounds)
    return f"proof FAILED: {failed} of {count} {kind} sums are not the sums of their updates"


def _auc_table(outcome: DemoOutcome) -> Table:
    table = Table(
        title="AUC on unseen patients (each site's own, but where it says all)",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("site", no_wrap=True)
    table.add_column("region", no_wrap=True)
    table.add_column("images", justify="right")
    for heading in ("alone", "alone, all", "federated", "centralized"):
        table.add_column(heading, justify="right")
    baselines, federated = outcome.baselines, outcome.federated
    for site in outcome.sites:
        alone = baselines.alone[site.name]
        table.add_row(
            site.name,
            site.region,
            str(site.images),
            f"{alone.on_site[site.name]:.3f}",
            f"{alone.on_all:.3f}",
            f"{federated.on_site[site.name]:.3f}",
            f"{baselines.centralized.on_site[site.name]:.3f}",
        )
    table.add_section()
    table.add_row(
        "mean of sites",
        "",
        "",
        f"{baselines.mean_alone_on_own:.3f}",
        f"{baselines.mean_alone_on_all:.3f}",
        f"{federated.mean_on_site:.3f}",
        f"{baselines.centralized.mean_on_site:.3f}",
    )
    table.add_row(
        "on all patients",
        "",
        str(outcome.images),
        "",
        f"{baselines.mean_alone_on_all:.3f}",
        f"{federated.on_all:.3f}",
        f"{baselines.centralized.on_all:.3f}",
    )
    return table


def _bytes_table(outcome: DemoOutcome) -> Table:
    table = Table(title="What left the sites", title_justify="left", box=None, pad_edge=False)
    table.add_column("message")
    for heading in ("messages", "bytes", "per site and round"):
        table.add_column(heading, justify="right")
    ledger = outcome.ledger
    shares = len(outcome.sites) * len(outcome.rounds)
    for kind in kinds(ledger):
        sent = [traffic[kind] for traffic in ledger.values() if kind in traffic]
        size = sum(each.size_bytes for each in sent)
        count = sum(each.messages for each in sent)
        table.add_row(kind, str(count), size_text(size), size_text(size / shares))
    everything = sum(total_bytes(traffic) for traffic in ledger.values())
    table.add_row("all", "", size_text(everything), size_text(everything / shares))
    return table
