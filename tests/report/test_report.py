"""The report: parsed as a reader's program would, and opened in a real browser where there is one."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from report_pages import HOSTILE, Browser, Page
from synthetic_evaluation import make_scores, make_summary, make_table
from synthetic_study import make_distances

from bnood.errors import UserError
from bnood.report.run_report import CAPTIONS, HEADLINE, write_report

CONFIG = {"seed_everything": 0, "model": {"norm": "bn", "depth": 18}, "data": {"name": "cifar10"}}
COMMANDS = ["python scripts/eval_ood.py --run 'runs/a <b>' --ood svhn,dtd"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """With what real tables also hold: negative energies, and a figure without an interval."""
    made = make_table(make_scores(n=200))
    made.loc[(made["score"] == "energy") & (made["metric"] == "mean"), ["value", "low", "high"]] -= 9.0
    made.loc[made["metric"] == "nll", ["low", "high"]] = float("nan")
    return made


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("figures")
    for place, name in enumerate([*CAPTIONS, "of_my_own"]):
        picture = Figure(figsize=(8, 1 + place / 10))
        picture.text(0.1, 0.5, name)
        picture.savefig(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in [*CAPTIONS, "of_my_own"]]


def write(folder: Path, table: pd.DataFrame, figures: list[Path], **changed: object) -> Path:
    given: dict[str, Any] = {
        "run_name": "cifar10-bn-0",
        "config": CONFIG,
        "summary": make_summary(),
        "commands": COMMANDS,
    } | changed
    return write_report(folder, table=table, figures=figures, **given)


@pytest.fixture(scope="module")
def path(table: pd.DataFrame, figures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ood"), table, figures)


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_nothing_else_lies_beside_the_report(path: Path) -> None:
    assert path.name == "report.html"
    assert list(path.parent.iterdir()) == [path]


def test_images_are_embedded_as_they_are_with_alt_texts_and_captions(page: Page, figures: list[Path]) -> None:
    images = page.all("img")
    for image, figure in zip(images, figures, strict=True):
        head, _, content = str(image["src"]).partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(content, validate=True) == figure.read_bytes()
        assert len(str(image["alt"])) > 5
    assert len(page.all("figcaption")) == len(images)
    assert all(shows in page.text["figcaption"] for _, shows, _ in CAPTIONS.values())


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert re.match(r"(data:|#)", attributes.get(name) or "#"), (tag, name)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", page.text["style"] + page.text["script"])
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none';")


def test_every_row_of_the_table_is_on_the_page(page: Page, table: pd.DataFrame) -> None:
    names, *rows = page.tables["all"]
    assert len(rows) == len(table)
    for row, wanted in zip(rows, table.to_dict("records"), strict=True):
        for name, cell in zip(names, row, strict=True):
            if pd.isna(wanted[name]):
                assert cell == ""
            elif name in ("value", "low", "high"):
                assert float(cell) == pytest.approx(wanted[name], abs=5.1e-5)
            else:
                assert cell == str(wanted[name])


def test_the_headline_holds_the_right_numbers(page: Page, table: pd.DataFrame) -> None:
    titles, *rows = page.tables["headline"]
    assert titles == ["Condition", *[title for title, *_ in HEADLINE]]
    assert [row[0] for row in rows if len(row) == 1] == ["svhn", "dtd", "cifar100", "noise"]
    lines = {}
    for row in rows:
        if len(row) == 1:
            group = row[0]
        else:
            lines[group, row[0]] = row[1:]
    assert len(lines) == 4 * 6
    mixed = table[(table["statistics"] == "batch") & (table["composition"] == "mixed 0.5")]
    wanted = [
        mixed.query("dataset == 'dtd' and score == 'energy' and metric == 'auroc'"),
        mixed.query("dataset == 'dtd' and score == 'energy' and metric == 'fpr95'"),
        mixed.query("dataset == 'dtd' and score == 'msp' and metric == 'mean'"),
        mixed.query("dataset == 'cifar10' and metric == 'accuracy' and companion == 'dtd'"),
    ]
    for cell, row in zip(lines["dtd", "batch of 128, half OOD"], wanted, strict=True):
        assert cell == f"{row['value'].item():.3f} [{row['low'].item():.3f}, {row['high'].item():.3f}]"


def test_the_first_sentence_compares_running_with_matched(page: Page, table: pd.DataFrame) -> None:
    area = table.query("dataset == 'noise' and score == 'energy' and metric == 'auroc'").set_index("statistics")[
        "value"
    ]
    running, matched = (f"{area[statistics]:.3f}" for statistics in ("running", "recalibrated:target"))
    assert re.search(rf"on noise from {running} \[[0-9., ]+\] to {matched} \[", page.text["li"])


def test_a_net_without_batchnorm_and_a_missing_condition(table: pd.DataFrame, tmp_path: Path) -> None:
    running = table[table["statistics"] == "running"]
    text = write(tmp_path, running, []).read_text(encoding="utf-8")
    assert "From running (mismatched)" not in text
    assert [row[0] for row in Page(text).tables["headline"]].count("running") == 4
    unlabelled = table[table["metric"] != "accuracy"]
    rows = Page(write(tmp_path, unlabelled, []).read_text(encoding="utf-8")).tables["headline"]
    assert {row[4] for row in rows[1:] if len(row) > 1} == {"not evaluated"}


def test_how_it_was_made_is_said(page: Page) -> None:
    assert COMMANDS[0] in page.text["pre"]
    for part in ("versions.torch", "2.15.0", "0123abc", "machine", "model.norm", "depth", "701466"):
        assert part in page.text["dl"]


def test_a_screen_reader_finds_its_way(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("header", "nav", "main", "h1")] == [1, 1, 1, 1]
    assert tags.count("caption") == tags.count("table")
    assert all(cell.get("scope") in ("col", "row", "rowgroup") for cell in page.all("th"))
    identifiers = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    named = [str(a["href"])[1:] for a in page.all("a")] + [a["for"] for _, a in page.elements if a.get("for")]
    named += [a["aria-labelledby"] for a in page.all("section")]
    assert set(named) <= set(identifiers)
    scrolled = [a for a in page.all("div") if "scroll" in str(a.get("class"))]
    assert scrolled and all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolled)
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_hostile_names_are_text(table: pd.DataFrame, figures: list[Path], tmp_path: Path) -> None:
    hostile = table.replace({"dataset": {"svhn": HOSTILE}})
    odd = figures[0].with_name('"><script>x.png'.replace("/", ""))
    odd.write_bytes(figures[0].read_bytes())
    config = {HOSTILE: {HOSTILE: HOSTILE}}
    written = write(
        tmp_path, hostile, [odd], run_name=HOSTILE, config=config, summary={"commit": HOSTILE}, commands=[HOSTILE]
    )
    found = Page(written.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in found.elements]
    assert tags.count("script") == 1
    assert tags.count("img") == 1
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert HOSTILE in found.text["title"]
    assert HOSTILE in found.text["pre"]
    assert HOSTILE in found.text["h1"]
    assert HOSTILE in {row[0] for row in found.tables["headline"]}


def test_a_missing_figure_leaves_the_old_report(table: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("the report of before")
    with pytest.raises(UserError, match=r"gone\.png: no such figure"):
        write(tmp_path, table, [tmp_path / "gone.png"])
    with pytest.raises(UserError, match="lacks the column"):
        write(tmp_path, table.drop(columns="low"), [])
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.html", "the report of before")]


def test_a_table_read_back_from_csv_gives_the_same_page(table: pd.DataFrame, page: Page, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "table.csv", index=False)
    again = write(tmp_path, pd.read_csv(tmp_path / "table.csv"), [])
    assert Page(again.read_text(encoding="utf-8")).tables == page.tables


@pytest.fixture(scope="module")
def browser(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    opened = Browser(tmp_path_factory.mktemp("profile"), width=390)
    try:
        opened("/url", url=path.as_uri())
        yield opened
    finally:
        opened.quit()


def test_the_page_loads_without_a_complaint_or_a_request(browser: Browser, path: Path, figures: list[Path]) -> None:
    assert browser("/se/log", type="browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser("/se/log", type="performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [request["request"]["url"] for request in sent if request["documentURL"] == path.as_uri()]
    assert path.as_uri() in asked, "the log does see requests"
    assert [url[:60] for url in asked if not url.startswith(("data:", path.as_uri()))] == []
    sizes = browser.run("return [...document.images].map((image) => image.naturalWidth)")
    assert sizes == [800] * len(figures)


def test_the_charts_of_a_run_are_drawn_without_a_complaint(
    browser: Browser, table: pd.DataFrame, path: Path, tmp_path: Path
) -> None:
    distances = make_distances([0]).drop(columns=["run", "network", "norm", "seed"])
    distances.to_csv(tmp_path / "layer_distances.csv", index=False)
    browser("/url", url=write(tmp_path, table, []).as_uri())
    try:
        drawn = "document.documentElement.dataset.charts ? done(1) : setTimeout(look, 100)"
        browser("/execute/async", script=f"const done = arguments[0], look = () => {drawn}; look()", args=[])
        marks = "(place) => place.querySelectorAll('svg path').length"
        found = browser.run(f"return [...document.querySelectorAll('.chart')].map({marks})")
        assert len(found) == 3 and min(found) > 10
        assert browser.run("return document.documentElement.scrollWidth") <= 390
        assert browser("/se/log", type="browser") == []
    finally:
        browser("/url", url=path.as_uri())


def test_the_page_fits_a_phone(browser: Browser) -> None:
    assert browser.run("return innerWidth") == 390
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    box = "document.getElementById('headline').parentNode"
    assert browser.run(f"return {box}.scrollWidth - {box}.clientWidth") == 0, "the whole headline table is seen"


def test_enter_on_a_heading_sorts_and_once_more_turns_around(browser: Browser, table: pd.DataFrame) -> None:
    names = browser.run("return [...document.querySelectorAll('#all thead th')].map((cell) => cell.textContent)")
    for name, numeric in (("value", True), ("low", True), ("n", True), ("dataset", False)):
        number = names.index(name)
        for direction, reverse in (("ascending", False), ("descending", True)):
            browser.press(f"#all th:nth-child({number + 1}) button", "\ue007")  # the Enter key
            shown = browser.column(number)
            filled = [cell for cell in shown if cell]
            assert filled == sorted(filled, key=float if numeric else str, reverse=reverse)
            assert shown == filled + [""] * (len(table) - len(filled)), "empty cells come last"
            said = browser.run("return [...document.querySelectorAll('#all th')].map((cell) => cell.ariaSort)")
            assert said == [direction if place == number else "none" for place in range(len(names))]
    rows = browser.run("return [...document.querySelectorAll('#all tbody tr')].map((row) => row.textContent)")
    assert len(set(rows)) == len(table), "whole rows move, not single cells"
    assert browser("/se/log", type="browser") == []


def test_the_filter_keeps_the_rows_with_all_words(browser: Browser, table: pd.DataFrame) -> None:
    browser.press("#filter", "DTD auroc")
    wanted = table.query("dataset == 'dtd' and metric == 'auroc'")
    assert sorted(browser.column(7)) == sorted(f"{value:.4f}" for value in wanted["value"])
    assert browser.run("return document.getElementById('shown').value") == f"{len(wanted)} rows"
