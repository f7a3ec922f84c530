"""The page of a study: read by a parser, then opened in a real browser, as wide as a telephone."""

import dataclasses
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from report_pages import HOSTILE, Browser, Page
from synthetic_study import make_study

from bnood.errors import UserError
from bnood.report.study_report import StudyTables, write_study_report
from bnood.report.study_tables import signed
from bnood.study.claim import ClaimOptions

NAMES = [
    "unit_profiles", "detection", "mitigations", "confidence", "layer_distances", "layer_shares", "interventions",
    "path", "batches", "price",
]  # fmt: skip


class StudyPage(Page):
    """A page of some megabytes: texts are joined once, and those of scripts and of the outer elements left out."""

    OUTER = ("html", "head", "body", "main", "section", "script", "style", "div", "table", "tbody", "thead", "tr")

    def __init__(self, html: str) -> None:
        self.parts: dict[str, list[str]] = defaultdict(list)
        super().__init__(html)
        self.text = {tag: "".join(parts) for tag, parts in self.parts.items()}

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            if tag not in self.OUTER:
                self.parts[tag].append(data)
        if "td" in self.open or "th" in self.open:
            self.table[-1][-1] += data


@pytest.fixture(scope="module")
def study() -> StudyTables:
    return make_study(n=60)


@pytest.fixture(scope="module")
def path(study: StudyTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study_report(tmp_path_factory.mktemp("study"), study)


@pytest.fixture(scope="module")
def html(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> StudyPage:
    return StudyPage(html)


def test_one_file_of_a_size_that_can_be_mailed(path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_size < 8e6


def test_the_verdict_comes_first_and_in_words(html: str, page: StudyPage, study: StudyTables) -> None:
    places = [html.index(f'id="{name}"') for name in ("verdict", *NAMES, "metrics", "thresholds", "how", "limits")]
    assert places == sorted(places)
    rows = page.tables["verdict-table"][1:]
    given = study.verdict
    assert given is not None
    hypotheses = given["hypotheses"]
    assert {entry["verdict"] for entry in hypotheses} == {"supported", "refuted", "inconclusive"}
    for row, entry in zip(rows, hypotheses, strict=True):
        assert row[0] == f"{entry['hypothesis']}: {entry['statement']}"
        assert row[1].split()[-1] == entry["verdict"] and row[2] == entry["sentence"]
        said = {"supported": "supported", "refuted": "refuted", "inconclusive": "left open"}[entry["verdict"]]
        assert f"({entry['hypothesis']}): {said}" in page.text["dt"]
    assert html.index("on OOD images") < html.index('id="verdict-table"')


def test_every_estimate_is_there_with_the_level_of_its_interval(page: StudyPage, study: StudyTables) -> None:
    names, *rows = page.tables["estimates"]
    hypotheses = study.verdict["hypotheses"]  # type: ignore[index]
    wanted = [
        (entry["hypothesis"], estimate["quantity"], f"{estimate['level']:g}", estimate["reason"])
        for entry in hypotheses
        for estimate in [entry["headline"], *entry["estimates"], *entry["controls"]]
    ]
    places = [names.index(name) for name in ("hypothesis", "quantity", "level", "reason")]
    assert [tuple(row[place] for place in places) for row in rows] == wanted
    assert {level for _, _, level, _ in wanted} == {"0.95", "0.99"}, "the places of H5 share the level"
    assert all(row[names.index("per seed")].count(":") == 3 for row in rows[:5])


def test_every_figure_has_its_sentence_command_alternative_and_table(page: StudyPage, study: StudyTables) -> None:
    assert [a["id"] for a in page.all("section") if a["id"] in NAMES] == NAMES
    assert len([a for a in page.all("p") if a.get("class") == "says"]) == len(NAMES)
    assert page.text["code"].count(study.commands[0]) == len(NAMES) + 1
    charts = [a for a in page.all("div") if a.get("class") == "chart"]
    data = [a for a in page.all("script") if a.get("type") == "application/json"]
    assert [a["data-chart"] for a in charts] == [a["id"] for a in data]
    assert all(a["role"] == "img" and len(str(a["aria-label"])) > 40 for a in charts)
    assert all(len(page.tables[f"numbers-{name}"]) > 2 for name in NAMES)


def test_numbers_in_the_sentences_are_those_of_the_tables(page: StudyPage, study: StudyTables) -> None:
    ratios: dict[str, list[float]] = {"running": [], "recalibrated:target": []}
    for seed in (0, 1, 2):
        units = study.units[f"bn-s{seed}"]  # type: ignore[index]
        largest = units.groupby(["statistics", "dataset"])["mean"].max()
        for statistics, found in ratios.items():
            found.append(largest[statistics, "noise"] / largest["running", "cifar10"])
    said = [f"{sum(found) / 3:.2f} ({min(found):.2f} to {max(found):.2f})" for found in ratios.values()]
    assert f"{said[0]} and {said[1]} on noise" in page.text["p"]
    changes = study.differences
    assert changes is not None
    wanted = changes.query(
        "network == 'bn' and statistics == 'recalibrated:target' and dataset == 'dtd' and score == 'energy'"
        " and metric == 'auroc'"
    )["value"].mean()
    assert re.search(rf"{re.escape(signed(wanted))} \[\S+, \S+\] on dtd", page.text["p"])


def test_all_metrics_are_there_over_seeds(page: StudyPage, study: StudyTables) -> None:
    names, *rows = page.tables["all"]
    held = [dict(zip(names, row, strict=True)) for row in rows]
    (found,) = [
        row for row in held
        if (row["network"], row["statistics"], row["dataset"], row["score"], row["metric"])
        == ("ln", "running", "svhn", "react", "auroc")
    ]  # fmt: skip
    own = study.table.query("network == 'ln' and dataset == 'svhn' and score == 'react' and metric == 'auroc'")
    assert float(found["mean"]) == pytest.approx(own["value"].mean(), abs=5.1e-5)
    assert found["n seeds"] == "3"
    assert len(rows) == len(study.table) / 3


def test_thresholds_counts_and_limits_are_said(page: StudyPage) -> None:
    rows = {row[0]: row[1:] for row in page.tables["threshold-table"][1:]}
    assert list(rows) == [field.name for field in dataclasses.fields(ClaimOptions)]
    assert rows["minimum_auroc"][0] == "0.01" and "one point of AUROC" in rows["minimum_auroc"][1]
    assert rows["headline_sets"][0] == "svhn, dtd, cifar100"
    assert all(len(reason) > 20 for _, reason in rows.values())
    assert "Thresholds and their reasons" in page.text["h2"]
    assert ["cifar10", "ID", "60"] in page.tables["set-table"]
    assert "Only these OOD sets were scored: svhn, dtd, cifar100, noise." in page.text["li"]
    assert "0123abc" in page.text["dl"]
    assert "What the evaluations left out" not in page.text["h3"]


def test_what_was_not_measured_is_said_in_one_line_each(study: StudyTables, tmp_path: Path) -> None:
    bare = StudyTables("bare", study.table[~study.table["score"].isin(["react", "msp_temperature"])])
    found = StudyPage(write_study_report(tmp_path, bare).read_text(encoding="utf-8"))
    assert [a["id"] for a in found.all("section") if a["id"] in NAMES] == ["detection", "confidence"]
    assert "No verdict was computed" in found.text["p"]
    for words in ("no unit table", "layers.parquet was", "layer_distances.csv was", "no shifted sets", "neither ReAct"):
        assert words in found.text["li"]


def test_one_seed_says_so(tmp_path: Path) -> None:
    alone = make_study(seeds=(0,), n=40)
    found = StudyPage(write_study_report(tmp_path, alone).read_text(encoding="utf-8"))
    assert "Each network was trained with 1 seed. With one seed there is no interval" in found.text["li"]
    assert "bn (1 seed)" in found.text["dd"]
    assert "of one seed, with 95 % intervals over images" in found.text["caption"]
    assert not re.search(r"1 seeds|1 to 1|over seeds and images", "".join(found.text[tag] for tag in found.text))
    assert "95 % intervals over images; 1 seed, n = " in found.text["p"]
    assert [a["id"] for a in found.all("section") if a["id"] in NAMES] == NAMES


def test_the_number_of_seeds_and_images_stands_beside_every_figure(page: StudyPage) -> None:
    says = re.findall(r"[^.]*3 seeds[^.]*\.", page.text["p"])
    assert len(says) == len(NAMES)
    of_images = [sentence for sentence in says if "n = " in sentence]
    assert len(of_images) == len(NAMES) - 2, "the tables of layers hold no number of images"


@pytest.mark.parametrize(
    ("mixed", "matched", "says"),
    [
        (True, True, "; mixed batches and held-out target statistics are shown beside"),
        (True, False, "; mixed batches are shown beside"),
        (False, True, "; held-out target statistics are shown beside"),
        (False, False, "; neither mixed batches nor held-out target statistics were evaluated"),
    ],
)
def test_only_what_was_evaluated_is_said_to_be_shown(
    study: StudyTables, tmp_path: Path, mixed: bool, matched: bool, says: str
) -> None:
    table = study.table[study.table["network"] == "bn"]
    table = table[mixed | ~table["composition"].str.startswith("mixed")]
    table = table[matched | table["statistics"].ne("recalibrated:target")]
    found = StudyPage(write_study_report(tmp_path, StudyTables("part", table)).read_text(encoding="utf-8"))
    assert says in found.text["li"]
    without = StudyTables("running", table[table["statistics"] == "running"])
    assert "Pure OOD batches" not in write_study_report(tmp_path, without).read_text(encoding="utf-8")


def test_the_verdict_stays_a_table_where_style_makes_it_cards(page: StudyPage) -> None:
    tags = [tag for tag, _ in page.elements]
    start = next(i for i, (_, attributes) in enumerate(page.elements) if attributes.get("id") == "verdict-table")
    inside = page.elements[start : start + tags[start + 1 :].index("table") + 1]
    roles = {"table": {"table"}, "thead": {"rowgroup"}, "tbody": {"rowgroup"}, "tr": {"row"}, "td": {"cell"}}
    roles["th"] = {"columnheader", "rowheader"}
    for tag, wanted in roles.items():
        assert {attributes.get("role") for name, attributes in inside if name == tag} == wanted


def test_an_empty_table_makes_no_page(study: StudyTables, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        write_study_report(tmp_path, dataclasses.replace(study, table=study.table.iloc[:0]))
    assert list(tmp_path.iterdir()) == []


def test_hostile_names_are_text(study: StudyTables, tmp_path: Path) -> None:
    table = study.table[study.table["network"].isin(["bn", "ln"])].replace({"dataset": {"svhn": HOSTILE}})
    layers = study.layers
    assert layers is not None
    hostile = StudyTables(
        HOSTILE, table, layers=layers.replace({"dataset": {"svhn": HOSTILE}}), commands=[HOSTILE],
        networks=pd.DataFrame({HOSTILE: [HOSTILE]}), made={HOSTILE: HOSTILE}, limits=[HOSTILE],
        notes=[f"{HOSTILE} was left out."],
    )  # fmt: skip
    found = StudyPage(write_study_report(tmp_path, hostile).read_text(encoding="utf-8"))
    tags = [tag for tag, _ in found.elements]
    scripts = [a for a in found.all("script") if "type" not in a]
    assert len(scripts) == 2 and tags.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert HOSTILE in found.text["title"] and HOSTILE in found.text["li"] and HOSTILE in found.text["pre"]
    assert f"{HOSTILE} was left out." in found.text["li"] and "What the evaluations left out" in found.text["h3"]


def test_a_screen_reader_finds_its_way(page: StudyPage) -> None:
    assert page.all("html") == [{"lang": "en"}]
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("header", "nav", "main", "h1")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert tags.count("caption") == tags.count("table")
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    identifiers = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    named = [str(a["href"])[1:] for a in page.all("a")] + [a["for"] for _, a in page.elements if a.get("for")]
    named += [a["aria-labelledby"] for a in page.all("section")]
    named += [a["data-chooses"] for a in page.all("select")]
    assert set(named) <= set(identifiers)
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none';")


@pytest.fixture(scope="module")
def browser(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    opened = Browser(tmp_path_factory.mktemp("profile"), width=390)
    try:
        opened("/url", url=path.as_uri())
        opened("/timeouts", script=100_000)
        wait = "const done = arguments[0], look = () => document.documentElement.dataset.charts ? done(1) : "
        opened("/execute/async", script=wait + "setTimeout(look, 100); look()", args=[])
        yield opened
    finally:
        opened.quit()


def test_all_charts_are_drawn_without_a_complaint_or_a_request(browser: Browser, path: Path) -> None:
    assert browser("/se/log", type="browser") == []
    events = browser("/se/log", type="performance")
    sent = [json.loads(entry["message"])["message"] for entry in events]
    requests = [event["params"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    asked = [request["request"]["url"] for request in requests if request["documentURL"] == path.as_uri()]
    assert path.as_uri() in asked, "the log does see requests"
    assert [url[:60] for url in asked if not url.startswith(("data:", "blob:", path.as_uri()))] == []
    seen = "[...document.querySelectorAll('.chart')].filter((place) => place.offsetParent)"
    marks = browser.run(f"return {seen}.map((place) => place.querySelectorAll('svg path, svg image').length)")
    assert len(marks) > 40
    assert min(marks) > 5


def test_the_page_and_every_chart_fit_a_phone(browser: Browser) -> None:
    assert browser.run("return innerWidth") == 390
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    wide = "(place) => place.scrollWidth > place.clientWidth + 1"
    assert browser.run(f"return [...document.querySelectorAll('.chart')].filter({wide}).length") == 0
    sizes = browser.run("return [...document.querySelectorAll('.chart .main-svg')].map((svg) => svg.clientWidth)")
    assert min(sizes) > 250 and max(sizes) <= 390


def test_the_numbers_in_the_cells_of_a_heat_map_do_not_touch_on_a_phone(browser: Browser) -> None:
    look = "[...document.querySelectorAll('#batches-panels .panel:not([hidden]) .heatmap-label text')]"
    boxes = browser.run(f"return {look}.map((text) => text.getBoundingClientRect().toJSON())")
    edge = browser.run("return document.querySelector('#batches-panels .nsewdrag').getBoundingClientRect().right")
    assert len(boxes) > 16 and max(box["right"] for box in boxes) <= edge
    by_row = defaultdict(list)
    for box in boxes:
        by_row[round(box["top"])].append((box["left"], box["right"]))
    for row in by_row.values():
        assert all(left[1] + 4 < right[0] for left, right in pairwise(sorted(row)))


def test_links_can_be_hit_and_options_are_whole_on_a_phone(browser: Browser) -> None:
    """WCAG 2.2, 2.5.8 asks for targets of 24 by 24 pixels."""
    sizes = browser.run("return [...document.querySelectorAll('nav a')].map((a) => a.getBoundingClientRect().toJSON())")
    assert len(sizes) > 10
    assert min(min(size["width"], size["height"]) for size in sizes) >= 24
    heights = browser.run("return [...document.querySelectorAll('.option')].map((part) => part.clientHeight)")
    assert heights and max(heights) < 30, "one line each"


def test_a_title_is_folded_only_where_there_is_no_room(browser: Browser) -> None:
    fit = "fitTitle({{dataset: {{}}, clientWidth: {width}}}, 'AUROC (share; higher is<br>better)')"
    assert browser.run(f"return {fit.format(width=330)}") == "AUROC (share; higher is<br>better)"
    assert browser.run(f"return {fit.format(width=570)}") == "AUROC (share; higher is better)"
    shown = "document.querySelector('#detection-panels .chart').layout.xaxis.title.text"
    assert "<br>" in browser.run(f"return {shown}")


def test_another_choice_shows_and_draws_other_panels(browser: Browser) -> None:
    shown = "return [...document.querySelectorAll('#batches-panels .panel')].map((panel) => !panel.hidden)"
    assert browser.run(shown) == [True] * 4 + [False] * 8
    change = "const select = document.getElementById('choose-batches'); select.selectedIndex = 1; "
    script = change + "choose(select).then(arguments[0])"
    browser("/execute/async", script=script, args=[])
    assert browser.run(shown) == [False] * 4 + [True] * 4 + [False] * 4
    drawn = "return [...document.querySelectorAll('#batches-panels .panel:not([hidden]) .heatmaplayer')].length"
    assert browser.run(drawn) == 4
    assert browser("/se/log", type="browser") == []


def test_enter_on_a_heading_sorts_and_the_filter_keeps_rows(browser: Browser) -> None:
    names = browser.run("return [...document.querySelectorAll('#all thead th')].map((cell) => cell.textContent)")
    number = names.index("mean")
    browser.press("#filter", "svhn auroc ln energy")
    kept = browser.column(number)
    assert 0 < len(kept) < 20
    for reverse in (False, True):
        browser.press(f"#all th:nth-child({number + 1}) button", "\ue007")  # the Enter key
        assert browser.column(number) == sorted(kept, key=float, reverse=reverse)
    said = browser.run("return [...document.querySelectorAll('#all th')].map((cell) => cell.ariaSort)")
    assert said == ["descending" if place == number else "none" for place in range(len(names))]
    assert browser.run("return document.getElementById('shown').value") == f"{len(kept)} rows"
    assert browser("/se/log", type="browser") == []
