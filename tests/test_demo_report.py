"""The demo's report, table and JSON document."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from support.demo_outcome import NAMES, outcome, outcome_with_a_wrong_sum
from veilsum.demo.charts import Line, Span, curve_chart, span_chart
from veilsum.demo.data import Hospital
from veilsum.demo.report import report_html
from veilsum.demo.table import print_outcome

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Strict(HTMLParser):
    """Fails on tags that do not match; keeps names, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_the_report_is_well_formed() -> None:
    page = parsed(report_html(outcome()))

    assert "4 hospitals learned together" in page.text


def test_the_report_takes_nothing_from_elsewhere() -> None:
    page = report_html(outcome())

    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<img|<iframe", page)
    assert not [
        found for found in parsed(page).attributes if found[1] in ("src", "href", "data", "srcset")
    ]


def test_the_report_has_colours_for_light_and_dark() -> None:
    assert "prefers-color-scheme: dark" in report_html(outcome())


def test_the_report_tells_results_digests_bytes_and_limits() -> None:
    text = " ".join(parsed(report_html(outcome())).text)

    for needed in (
        "0.600", "0.700", "0.720", *NAMES, "03" * 32, "masked-update", "key-advert",
        "not known hospitals", "not a biopsy", "not a medical device", "LIDC-IDRI", "CC BY 3.0",
        "Armato", "National Cancer Institute", "the round went on with 3 sites; it was back",
    ):  # fmt: skip
        assert needed in text


def test_the_report_says_so_when_a_sum_is_wrong() -> None:
    text = " ".join(parsed(report_html(outcome_with_a_wrong_sum())).text)

    assert "Proof FAILED: 1 of 3 masked sums" in text
    assert "but the plain sum has " + "f" * 64 in text


def test_names_in_the_report_are_escaped() -> None:
    good = outcome()
    odd = Hospital(NAMES[0], "<b>&", good.sites[0].train, good.sites[0].test)

    page = report_html(replace(good, sites=(odd, *good.sites[1:])))

    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page


def test_the_document_is_json_and_holds_what_scripts_need() -> None:
    document = json.loads(json.dumps(outcome().document()))

    assert document["auc"]["federated"] == {"all": 0.7, "own_mean": 0.715}
    assert document["auc"]["alone_mean"]["all"] == 0.6
    assert document["digest"] == "03" * 32
    assert document["proof_holds"] is True
    assert document["bytes_by_kind"] == {"masked-update": 12_000, "key-advert": 2_400}
    assert document["drop"] == {
        "site": NAMES[3],
        "round": 2,
        "in_the_sum": False,
        "reason": "the connection broke",
        "back": True,
    }
    assert [each["number"] for each in document["rounds"]] == [1, 2, 3]


def test_a_wrong_sum_is_a_problem_that_names_round_and_digests() -> None:
    assert outcome().problems == ()
    assert outcome_with_a_wrong_sum().problems == (
        f"round 2 was published with digest {'02' * 32}, its updates sum to {'f' * 64}",
    )


def test_the_table_ends_with_digest_and_proof() -> None:
    stream = io.StringIO()

    print_outcome(outcome(), Console(file=stream, width=160))

    text = stream.getvalue()
    assert "on all patients" in text
    assert f"digest of the last round: {'03' * 32}" in text
    assert "proof: all 3 masked sums were computed again" in text


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.4, 0.9, 0.61], [0.1, 0.2]])
def test_curves_stay_inside_their_chart(values: list[float]) -> None:
    svg = curve_chart(values, [Line("alone", 0.55, "alone")], marked=1)

    points = re.search(r'points="([^"]+)"', svg)
    assert points is not None
    for point in points[1].split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= 720
        assert 0 <= y <= 320
    parsed(svg)


def test_every_site_has_a_row_in_the_chart_of_sites() -> None:
    svg = span_chart([Span("quito", 0.5, 0.7), Span("a<b", 0.7, 0.6)])

    parsed(svg)
    assert svg.count("<circle") == 4
    assert "a&lt;b" in svg
