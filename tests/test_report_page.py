"""The report in a real browser: no request, no error; threshold, search, saved decision and texts as people meet them.

Needs playwright and Debian's chromium (apt-get install chromium), or another one named in TIEBREAK_CHROMIUM.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from test_cutoffs import drawn
from test_report import HOSTILE, sharper

from infer.cutoff_fits import cheapest, for_precision, for_recall
from infer.cutoffs import judge, read_cutoff
from infer.predictions import Predictions
from infer.report import ReportInput, write_report

ROWS = 400
ROUNDED = 0.00051  # a share is shown in per cent with one decimal; halves go up here and to even in Python


def predictions() -> Predictions:
    rows = drawn(ROWS, seed=3)
    return replace(rows, other=np.full(ROWS, 0.01))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium; skips where there is none."""
    found = os.environ.get("TIEBREAK_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as running:
        # A container's root has no sandbox of its own; the page is one we have just written.
        opened = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = predictions()
    texts = {row_id: f"a text about number {at}" for at, row_id in enumerate(rows.ids)}
    texts[rows.ids[7]] = HOSTILE
    content = ReportInput(
        "a <b>report", rows, calibrated=sharper(rows, 1.2), texts=texts, methods={"sharper": sharper(rows, 2.0)},
        baselines={"class prior": 0.69}, strays=[(" the", 0.01)],
    )  # fmt: skip
    return write_report(tmp_path_factory.mktemp("report") / "report.html", content, pictures=False)


@pytest.fixture
def page(browser: Any, report_path: Path) -> Iterator[Any]:
    """The report, opened from its file; at the end nothing was requested and nothing complained."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: said.append(f"error: {error}"))
    opened.on("request", lambda request: said.append(request.url) if not request.url.startswith(LOCAL) else None)
    opened.goto(report_path.as_uri())
    opened.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=120_000)
    yield opened
    context.close()
    assert not said


LOCAL = ("file:", "blob:", "data:")


def wait_for(page: Any, name: str, value: str) -> None:
    """Until <html data-name=value>; by a selector, since the page's own policy forbids scripts made of strings."""
    page.locator(f"html[data-{name}='{value}']").wait_for(state="attached", timeout=120_000)


def figure(page: Any, name: str) -> str:
    return page.locator(f"[data-figure='{name}'] b").inner_text()


def share(page: Any) -> float:
    return float(figure(page, "share answered").removesuffix(" %")) / 100


def decided_on() -> Predictions:
    return sharper(predictions(), 1.2)


def drag(page: Any, handle: str, share: float) -> None:
    """Take the handle with the mouse and let go at this share of the axis."""
    page.locator(handle).scroll_into_view_if_needed()
    axis, grip = page.locator("#handles").bounding_box(), page.locator(f"{handle} span").bounding_box()
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    page.mouse.down()
    page.mouse.move(axis["x"] + axis["width"] * 0.6, grip["y"] + 30, steps=3)
    page.mouse.move(axis["x"] + axis["width"] * share, grip["y"] + 30, steps=3)
    page.mouse.up()


def threshold(page: Any, handle: str = "#handle-high") -> float:
    return float(page.locator(handle).get_attribute("aria-valuenow"))


def test_every_figure_is_drawn(page: Any) -> None:
    for name in ("baselines", "cutoff", "roc", "pr", "reliability", "confidence", "mass", "other", "strays"):
        assert page.locator(f"#chart-{name} svg.main-svg").count() > 0, name
    assert page.locator("#chart-roc .legend .traces").count() == 2, "a curve for each method"


def test_dragging_the_threshold_gives_scikit_learns_figures(page: Any) -> None:
    rows = decided_on()
    true = rows.truth == "yes"
    for share in (0.3, 0.75):
        drag(page, "#handle-high", share)
        assert threshold(page) == pytest.approx(share, abs=0.005)
        said = rows.probs[:, 1].astype(float) >= threshold(page)
        assert figure(page, "precision") == f"{sklearn.metrics.precision_score(true, said):.3f}"
        assert figure(page, "recall") == f"{sklearn.metrics.recall_score(true, said):.3f}"
        assert figure(page, "F1") == f"{sklearn.metrics.f1_score(true, said):.3f}"
        assert figure(page, "accuracy") == f"{sklearn.metrics.accuracy_score(true, said):.3f}"
        cells = [int(text.replace(",", "")) for text in page.locator("#cutoff-matrix td b").all_inner_texts()]
        assert cells == sklearn.metrics.confusion_matrix(true, said).ravel().tolist()


def test_keys_move_the_threshold(page: Any) -> None:
    page.locator("#handle-high").focus()
    before = threshold(page)
    for key in ("ArrowRight", "ArrowRight", "PageUp"):
        page.keyboard.press(key)
    assert threshold(page) == pytest.approx(before + 0.12, abs=0.005)


def test_a_band_is_left_to_a_person(page: Any) -> None:
    page.locator("#cutoff-band").check()
    drag(page, "#handle-high", 0.8)
    drag(page, "#handle-low", 0.3)
    low, high = threshold(page, "#handle-low"), threshold(page)
    scores = decided_on().probs[:, 1].astype(float)
    answered = ((scores >= high) | (scores < low)).mean()
    assert share(page) == pytest.approx(answered, abs=ROUNDED)
    assert f"The {((scores < high) & (scores >= low)).sum()} rows between" in page.locator("#cutoff-words").inner_text()


def test_the_likeliest_label_is_given_where_it_is_sure_enough(page: Any) -> None:
    page.locator("#cutoff-mode").select_option(index=0)
    drag(page, "#handle-high", 0.85)
    rows = decided_on()
    sure = rows.probs.max(axis=1).astype(float) >= threshold(page)
    expected = sklearn.metrics.precision_recall_fscore_support(
        rows.truth[sure].astype(str), rows.predicted[sure], average="macro"
    )
    assert [figure(page, name) for name in ("precision", "recall", "F1")] == [f"{value:.3f}" for value in expected[:3]]
    assert share(page) == pytest.approx(sure.mean(), abs=ROUNDED)


def test_targets_find_the_threshold_that_python_finds(page: Any) -> None:
    for sure in (True, False):
        rows, confidence = decided_on(), 0.95 if sure else 0.5
        page.locator("#target-sure").set_checked(sure)
        scores = rows.probs[:, 1].astype(float)
        for name, fit, target in (("precision", for_precision, 0.85), ("recall", for_recall, 0.9)):
            page.locator("#target-figure").select_option(name)
            page.locator("#target-value").fill(str(target))
            page.get_by_role("button", name="Find", exact=True).click()
            expected = fit(rows, "yes", target, confidence=confidence).at_least
            assert (scores >= threshold(page)).sum() == (scores >= expected).sum(), name


def test_a_target_out_of_reach_is_said_and_moves_nothing(page: Any) -> None:
    before = threshold(page)
    page.locator("#target-value").fill("0.9999")
    page.locator("#target-value").evaluate("field => { field.max = '1' }")
    page.get_by_role("button", name="Find", exact=True).click()
    assert "No threshold gives precision" in page.locator("#found").inner_text()
    assert threshold(page) == before


def test_a_target_that_more_rows_would_show_is_refused_with_how_many_as_in_python(page: Any) -> None:
    rows = decided_on()
    for target in (0.96, 0.97, 0.98):
        with pytest.raises(ValueError, match="No threshold") as refusal:
            for_precision(rows, "yes", target)
        page.locator("#target-value").fill(str(target))
        page.get_by_role("button", name="Find", exact=True).click()
        ending = str(refusal.value).partition("on these 400 rows")[2].removeprefix(".").strip()
        assert page.locator("#found").inner_text().replace(",", "").endswith(ending.replace(",", ""))


def test_prices_find_the_cutoff_that_python_finds(page: Any) -> None:
    for person in (None, 0.3):
        rows = decided_on()
        for field, price in (("#cost-alarm", 2.0), ("#cost-miss", 5.0), ("#cost-person", person)):
            page.locator(field).fill("" if price is None else str(price))
        page.get_by_role("button", name="Find the cheapest").click()
        expected = cheapest(rows, "yes", false_alarm=2.0, miss=5.0, person=person)
        found = np.array(judge(expected, rows)["confusion"])
        left = ROWS - found.sum()
        cost = 2 * found[0, 1] + 5 * found[1, 0] + (person or 0) * left
        assert f"The cheapest: {cost:,.2f}".rstrip("0").rstrip(".") in page.locator("#found").inner_text()


def test_no_row_is_left_to_a_person_whose_look_has_no_price(page: Any) -> None:
    """For the likeliest label: without a price all are answered, with one the sum of all prices is the least."""
    for person in (None, 0.0, 0.3):
        rows = decided_on()
        page.locator("#cutoff-mode").select_option(index=0)
        page.locator("#cost-person").fill("" if person is None else str(person))
        page.get_by_role("button", name="Find the cheapest").click()
        sure, right = rows.probs.max(axis=1), rows.predicted == rows.truth
        prices = [(~right & (sure >= at)).sum() + (person or 0) * (sure < at).sum() for at in [*np.unique(sure), 1.1]]
        expected = prices[0] if person is None else min(prices)
        assert f"The cheapest: {expected:,.2f}".rstrip("0").rstrip(".") in page.locator("#found").inner_text()
        if person is None:
            assert share(page) == 1 and "Price a person's look" in page.locator("#found").inner_text()


def test_the_saved_decision_is_applied_as_the_page_showed_it(page: Any, tmp_path: Path) -> None:
    page.locator("#cutoff-band").check()
    drag(page, "#handle-high", 0.7)
    drag(page, "#handle-low", 0.4)
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "decision.yaml"
    download.value.save_as(tmp_path / "decision.yaml")
    cutoff = read_cutoff(tmp_path / "decision.yaml", ("no", "yes"))
    assert (cutoff.below, cutoff.at_least) == (threshold(page, "#handle-low"), threshold(page))
    found = judge(cutoff, decided_on())
    assert figure(page, "precision") == f"{found['precision']:.3f}"
    assert figure(page, "recall") == f"{found['recall']:.3f}"
    assert share(page) == pytest.approx(found["answered"], abs=ROUNDED)


def test_a_hostile_text_is_shown_and_never_run(page: Any) -> None:
    page.locator("#search").fill("window.hacked")
    assert page.locator("#row-list > li").count() == 1
    assert page.locator("#row-list .text").inner_text().startswith("</script><script>window.hacked = 1</script><img")
    assert page.evaluate("window.hacked") is None
    assert page.locator("h1").inner_text() == "a <b>report"
    assert page.locator("#row-list script, #row-list img").count() == 0


def test_rows_are_found_by_words_and_sorted_most_wrong_first(page: Any) -> None:
    rows = decided_on()
    worst = rows.ids[np.argsort(rows.truth_probs())]
    first = page.locator("#row-list > li .id").first
    assert first.inner_text().endswith(f"id {worst[0]}")
    page.locator("#sort").select_option("unsure")
    assert first.inner_text().endswith(f"id {rows.ids[np.argmin(rows.probs.max(axis=1))]}")
    page.locator("#search").fill("number 12")
    wanted = sum("12" in str(at) for at in range(ROWS))  # each word counts for itself, and every text has "number"
    assert page.locator("#rows-count").inner_text() == f"{wanted} found"
    page.locator("#show").select_option("wrong")
    assert page.locator("#row-list > li.right").count() == 0


def test_a_phone_needs_no_sideways_scrolling(browser: Any, report_path: Path) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    opened = context.new_page()
    opened.goto(report_path.as_uri())
    opened.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=120_000)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_paper_is_light_and_fits(browser: Any, report_path: Path, tmp_path: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    opened = context.new_page()
    opened.goto(report_path.as_uri())
    opened.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=120_000)
    opened.emulate_media(media="print")
    wait_for(opened, "theme", "light")
    widths = opened.evaluate("[...document.querySelectorAll('.chart')].map((e) => e.scrollWidth - e.clientWidth)")
    assert max(widths) <= 1, "a figure is as wide as its column"
    opened.emulate_media(media="screen")
    wait_for(opened, "theme", "dark")
    context.close()


def test_the_reliability_of_another_way_is_drawn_once_it_is_chosen(page: Any) -> None:
    from infer.metrics import calibration_error

    names = "document.getElementById('chart-reliability').data.map((trace) => trace.name)"
    assert f"after calibration (error {calibration_error(sharper(predictions(), 1.2)):.3f})" in page.evaluate(names)
    page.locator("#trust-way").select_option("sharper")
    assert f"as predicted (error {calibration_error(sharper(predictions(), 2.0)):.3f})" in page.evaluate(names)
