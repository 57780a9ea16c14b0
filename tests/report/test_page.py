"""The report page holds all it shows."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from fewshot_ray.report.page import report_page, write_page
from fewshot_ray.search.leaderboard import leaderboard
from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord
from fewshot_ray.spec.sections import ConfirmSpec, SearchSpec
from fewshot_ray.storage import Folder

SEARCH = SearchSpec(objectives={"holdout_loss": "min"}, confirm=ConfirmSpec(seeds=[1, 2, 3]))


class Outline(HTMLParser):
    """Collects table cells, image sources and whatever a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        if tag == "img":
            self.images.append(values["src"] or "")
        elif values.get("src") or (tag == "link" and values.get("href")):
            self.fetched.append(values.get("src") or values.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(html: str) -> Outline:
    parsed = Outline()
    parsed.feed(html)
    return parsed


def test_page_shows_every_trial_and_fetches_nothing(sweep: SweepFolder) -> None:
    write_page(sweep, SEARCH)
    page = outline(sweep.folder.read_text("report.html"))
    assert page.fetched == []
    text = set(page.text)
    assert {trial.id for trial in sweep.trials()} <= text
    assert "ant <b>&" in text  # a label is text, never markup
    assert "loss is nan at step 12; the last finite one is 0.4" in text
    assert page.tags.count("tr") == 1 + 21 + 3


def test_page_holds_the_winners_grids(sweep: SweepFolder) -> None:
    best = leaderboard(sweep, SEARCH)[0]
    page = outline(report_page(sweep, SEARCH))
    pictures = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.images]
    assert pictures[:4] == [sweep.grid(best.trial.id, step) for step in (40, 80, 120, 160)]


def test_page_has_a_curve_a_trial_and_metric(sweep: SweepFolder) -> None:
    """Oracle: the count of evaluated trials, times the metrics in the menu (holdout_loss, kid, train_loss)."""
    html = report_page(sweep, SEARCH)
    assert len(re.findall(r'"mode":"lines\+markers"', html)) == 20 * 3


def test_page_of_a_sweep_that_has_nothing_yet(tmp_path: Path) -> None:
    sweep = SweepFolder(Folder(tmp_path / "a&b"))
    assert "no trial yet" in report_page(sweep, SEARCH)
    sweep.write_trial(TrialRecord("t0000", 0, "search", "plain", "plain", 0, "RUNNING"))
    html = report_page(sweep, SEARCH)
    assert "<h1>a&amp;b</h1>" in html
    assert "No evaluation yet." in html


def test_page_is_made_of_a_remote_folder(sweep: SweepFolder) -> None:
    remote = SweepFolder(Folder("memory://report-page/s"))
    for trial in sweep.trials():
        remote.write_trial(trial)
        for row in sweep.rows(trial.id):
            remote.append_row(trial.id, row)
    write_page(remote, SearchSpec(objectives={"holdout_loss": "min", "kid": "min"}, constraints={"kid": "<= 0.3"}))
    text = set(outline(remote.folder.read_text("report.html")).text)
    assert {"on the Pareto front", "outside the constraints"} <= text
