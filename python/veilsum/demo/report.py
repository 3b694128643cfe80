"""report.html: one file, readable on its own, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from veilsum.demo.charts import Line, Span, curve_chart, span_chart
from veilsum.demo.ledger import kinds, total_bytes
from veilsum.demo.outcome import DemoOutcome, RoundOutcome
from veilsum.demo.table import drop_sentence, proof_sentence
from veilsum.demo.view import size_text

_MEANINGS = {
    "masked-update": "the update: without the other sites' masks, uniformly random",
    "plain-update": "the update, its weight and its metrics, readable",
    "key-advert": "public keys for this round",
    "share-deal": "shares of this round's secrets, each sealed for one other site",
    "survivor-vote": "which updates are to be in the sum",
    "unmask-shares": "the shares that remove the masks from the sum, and from nothing else",
    "progress": "how far training is, a fraction",
    "hello": "version, hash of the roster, a random number of the process",
    "model-request": "asks for the model",
    "upload-status": "asks how much of an update has arrived",
    "decline": "why the site does not take part in a round",
    "goodbye": "the site stops",
}


def report_html(outcome: DemoOutcome) -> str:
    """The page."""
    style = files("veilsum.demo").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _headline(outcome),
        _learning(outcome),
        _per_site(outcome),
        _traffic(outcome),
        _rounds(outcome),
        _honesty(outcome),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>veilsum demo</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def _headline(outcome: DemoOutcome) -> str:
    baselines = outcome.baselines
    regions = len({site.region for site in outcome.sites})
    kind = "readable (plain)" if outcome.options.plain else "masked"
    cards = [
        ("one site alone, mean", f"{baselines.mean_alone_on_all:.3f}"),
        ("federated", f"{outcome.federated.on_all:.3f}"),
        ("all data in one place", f"{baselines.centralized.on_all:.3f}"),
    ]
    figures = "".join(
        f'<div class="card"><b>{value}</b><span>{escape(label)}</span></div>'
        for label, value in cards
    )
    return (
        f"<h1>{len(outcome.sites)} hospitals learned together</h1>"
        f"<p>{len(outcome.sites)} sites in {regions} regions trained one model to tell malignant "
        "from benign lung nodules by their shape. No image left a site; the coordinator received "
        f"{kind} updates. AUC on the unseen patients of all sites:</p>"
        f'<div class="cards">{figures}</div>'
        f'<p class="{"good" if outcome.proof_holds else "bad"}">{_capital(proof_sentence(outcome))}'
        f".</p>{_drop_paragraph(outcome)}"
    )


def _drop_paragraph(outcome: DemoOutcome) -> str:
    return "" if outcome.drop is None else f"<p>{_capital(drop_sentence(outcome))}.</p>"


def _learning(outcome: DemoOutcome) -> str:
    values = [outcome.before.on_all, *(done.federated.on_all for done in outcome.rounds)]
    levels = [
        Line("centralized", outcome.baselines.centralized.on_all, "centralized"),
        Line("alone, mean", outcome.baselines.mean_alone_on_all, "alone"),
    ]
    marked = outcome.drop.round_number if outcome.drop else None
    return (
        "<h2>Round by round</h2>"
        "<p>AUC of the federated model on the unseen patients of all sites. The two levels are "
        "models that made as many passes over the data without federation, each at its best "
        "moment.</p>" + curve_chart(values, levels, marked=marked)
    )


def _per_site(outcome: DemoOutcome) -> str:
    baselines, federated = outcome.baselines, outcome.federated
    spans = [
        Span(site.name, baselines.alone[site.name].on_all, federated.on_all)
        for site in outcome.sites
    ]
    rows = [
        [
            site.name,
            site.region,
            f"{len(site.train)}",
            f"{len(site.test)}",
            f"{baselines.alone[site.name].on_site[site.name]:.3f}",
            f"{baselines.alone[site.name].on_all:.3f}",
            f"{federated.on_site[site.name]:.3f}",
            f"{baselines.centralized.on_site[site.name]:.3f}",
        ]
        for site in outcome.sites
    ]
    means = [
        "mean of sites",
        "",
        "",
        "",
        f"{baselines.mean_alone_on_own:.3f}",
        f"{baselines.mean_alone_on_all:.3f}",
        f"{federated.mean_on_site:.3f}",
        f"{baselines.centralized.mean_on_site:.3f}",
    ]
    together = [
        "on all patients",
        "",
        str(sum(len(site.train) for site in outcome.sites)),
        str(sum(len(site.test) for site in outcome.sites)),
        "",
        f"{baselines.mean_alone_on_all:.3f}",
        f"{federated.on_all:.3f}",
        f"{baselines.centralized.on_all:.3f}",
    ]
    headings = [
        "site", "region", "training images", "unseen images",
        "alone, own unseen", "alone, all unseen", "federated, own", "centralized, own",
    ]  # fmt: skip
    return (
        "<h2>Site by site</h2>"
        "<p>What a site gains: AUC on all unseen patients of the model it trained alone (hollow) "
        "and of the federated model (filled). Own test sets are small, so the numbers for one "
        "site are rough.</p>"
        + span_chart(spans)
        + _table(headings, [*rows, means, together], text_columns=2, closing=2)
    )


def _traffic(outcome: DemoOutcome) -> str:
    ledger = outcome.ledger
    shares = len(outcome.sites) * len(outcome.rounds)
    by_kind = []
    for kind in kinds(ledger):
        sent = [traffic[kind] for traffic in ledger.values() if kind in traffic]
        size = sum(each.size_bytes for each in sent)
        by_kind.append(
            [
                kind,
                _MEANINGS.get(kind, ""),
                str(sum(each.messages for each in sent)),
                size_text(size),
                size_text(size / shares),
            ]
        )
    by_site = [
        [
            site.name,
            str(sum(sent.messages for sent in ledger[site.name].values())),
            size_text(total_bytes(ledger[site.name])),
        ]
        for site in outcome.sites
    ]
    return (
        "<h2>What left the sites</h2>"
        "<p>Every message that the sites sent, by their own logs, counted before TLS.</p>"
        + _table(
            ["message", "what it is", "messages", "bytes", "per site and round"],
            by_kind,
            text_columns=2,
        )
        + _table(["site", "messages", "bytes"], by_site, text_columns=1)
    )


def _rounds(outcome: DemoOutcome) -> str:
    rows = [_round_row(done) for done in outcome.rounds]
    return (
        "<h2>Rounds and digests</h2>"
        "<p>A digest is the SHA-256 of the layout and every bit of a round's mean update. The "
        "second sum is made from the sites' own updates, without masks.</p>"
        + _table(
            ["round", "digest, published and recomputed", "sites", "bytes", "seconds", "AUC"],
            rows,
            text_columns=2,
            style="digests",
        )
        + f"<p>Model after the last round: <code>{outcome.rounds[-1].record.model_hash}</code></p>"
    )


def _round_row(done: RoundOutcome) -> list[str]:
    record, proof = done.record, done.proof
    digest = f"{proof.published} = the plain sum's"
    if not proof.holds:
        digest = f"{proof.published}, but the plain sum has {proof.recomputed}"
    return [
        str(record.round.number),
        digest,
        f"{len(record.sites)} of {len(record.sites) + len(record.dropped)}",
        size_text(sum(record.bytes_in.values())),
        f"{sum(record.seconds.values()):.1f}",
        f"{done.federated.on_all:.3f}",
    ]


def _honesty(outcome: DemoOutcome) -> str:
    facts = [
        f"The data are real: {outcome.images:,} outlines of lung nodules that radiologists drew on "
        f"the CT scans of {outcome.patients} patients (LIDC-IDRI). No CT pixel is among them.",
        "The sites are groups of scans with the same scanner protocol, not known hospitals; "
        "regions are names.",
        "The label is a reader's rating of malignancy, 4 or 5 against 1 or 2; it is an opinion, "
        "not a biopsy.",
        "Up to four readers drew each nodule, so the data are divided by patient: nobody is in "
        "training and in testing, or at two sites.",
        "Every nodule is scaled to one size. Size alone would give an AUC of "
        f"{outcome.by_extent:.3f}, more than the shape does, and a site learns that by itself; "
        "it was taken out so that there is something to learn together.",
        "Models trained alone or in one place count at their best moment, chosen in hindsight on "
        "the unseen patients; the federated model counts as it is after the last round.",
        "How all models train (learning rate, momentum, dropout, passes) was chosen with these "
        "unseen patients in view, so all these figures are a little too good.",
        "All processes ran on one machine, and the demo knows every site's update: that is how "
        "it can prove the sums. Nobody knows that in a real consortium.",
        "A masked sum hides each update in the sum. What the sum and the model tell about the "
        "patients is another question, which masks do not answer.",
        "This is a demonstration and not a medical device.",
    ]
    sources = (
        "Data: LIDC-IDRI, published by The Cancer Imaging Archive under CC BY 3.0; rasterised by "
        "the authors of veilsum. Armato et al., Medical Physics 38:915-931, 2011. Clark et al., "
        "Journal of Digital Imaging 26:1045-1057, 2013. The authors acknowledge the National "
        "Cancer Institute and the Foundation for the National Institutes of Health, and their "
        "critical role in the creation of the free publicly available LIDC/IDRI Database."
    )
    points = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return f"<h2>What this shows, and what not</h2><ul>{points}</ul><p>{escape(sources)}</p>"


def _table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text_columns: int,
    closing: int = 0,
    style: str = "",
) -> str:
    """An HTML table; the first columns hold text, the rest numbers, the last rows sums."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{'' if column < text_columns else ' class=number'}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(row)
        )

    body = list(rows)
    first_closing = len(body) - closing
    lines = [
        f"<tr{' class=closing' if number >= first_closing else ''}>{cells(row, 'td')}</tr>"
        for number, row in enumerate(body)
    ]
    head = f"<thead><tr>{cells(headings, 'th')}</tr></thead>"
    return (
        f'<div class="scroll"><table class="{style}">{head}'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _capital(sentence: str) -> str:
    return escape(sentence[:1].upper() + sentence[1:])
