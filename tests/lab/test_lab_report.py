"""The lab's page: its numbers computed once more, parsed as a reader's program would, and opened in a browser."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from report_pages import HOSTILE, Browser, Page
from synthetic_lab import VERDICTS, make_lab

from bnood.errors import UserError
from bnood.lab.figures import lab_figure_names
from bnood.lab.report import PICTURES, write_lab_report
from bnood.lab.results import LabTables
from bnood.lab.sentences import STATEMENTS, caption, listed, over_seeds


def draw(folder: Path, lab: LabTables) -> list[Path]:
    """Small pictures under the names of the real ones, which test_lab_figures.py draws."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    paths = [folder / "figures" / f"{name}.png" for name in lab_figure_names(lab)]
    for place, path in enumerate(paths):
        picture = Figure(figsize=(8, 1 + place / 10))
        picture.text(0.1, 0.5, path.stem)
        picture.savefig(path)
    return paths


def write(folder: Path, lab: LabTables) -> Page:
    draw(folder, lab)
    return Page(write_lab_report(folder, lab).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lab() -> LabTables:
    return make_lab(layers=4, epochs=4)


@pytest.fixture(scope="module")
def path(lab: LabTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    draw(folder, lab)
    return write_lab_report(folder, lab)


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def measured(lab: LabTables, network: str, quantity: str, layer: int) -> pd.Series:
    """The last record of each seed."""
    rows = lab.measurements[(lab.measurements["network"] == network) & (lab.measurements["quantity"] == quantity)]
    return rows[(rows["layer"] == layer) & (rows["step"] == rows["step"].max())].set_index("seed")["value"]


def test_every_statement_has_its_verdict_or_says_that_it_has_none(page: Page) -> None:
    rows = page.tables["overview"][1:]
    assert [row[0] for row in rows] == [statement.title for statement in STATEMENTS]
    for row, statement in zip(rows, STATEMENTS, strict=True):
        assert row[1].strip() == (VERDICTS[statement.check] if statement.check else "measured, not tested")
    assert {statement.check for statement in STATEMENTS} == {"", *VERDICTS}, "each check of the issue is on the page"
    for letter in VERDICTS:
        assert f"effect {letter} 0.31 [0.12, 0.50]" in page.text["p"]
        assert f"Reading of {letter}." in page.text["p"]


def test_a_check_whose_parts_differ_says_how_many_held(lab: LabTables, tmp_path: Path) -> None:
    mixed = json.loads(json.dumps(lab.checks))
    (check,) = [each for each in mixed["checks"] if each["check"] == "b"]
    parts = ("supported", "supported", "refuted", "inconclusive")
    check["estimates"] = [dict(check["estimates"][0], verdict=verdict) for verdict in parts]
    page = write(tmp_path, replace(lab, checks=mixed))
    told = {row[0]: row[1] for row in page.tables["overview"][1:]}
    title = next(statement.title for statement in STATEMENTS if statement.check == "b")
    assert told[title].split("(")[1].strip() == "of 4 parts, 2 supported, 1 refuted and 1 open)"
    assert not any("parts" in held for name, held in told.items() if name != title)


def test_gradient_ratios_are_those_of_the_table(page: Page, lab: LabTables) -> None:
    for activation in ("sigmoid", "relu"):
        network = f"mlp-{activation}-none"
        found = measured(lab, network, "gradient_norm", 1) / measured(lab, network, "gradient_norm", 4)
        low, middle, high = (f"{number:.2g}" for number in (found.min(), found.median(), found.max()))
        assert re.search(
            rf"MLP, {activation}, without norm: the first layer's gradient norm was [^:]* "
            rf"at the first record and {middle} \({low} to {high}\) at the last\.",
            page.text["li"],
        )


def test_accuracies_are_those_of_the_last_epoch(page: Page, lab: LabTables) -> None:
    last = lab.accuracy[lab.accuracy["epoch"] == 4].set_index("network")["validation_accuracy"] * 100
    for activation in ("sigmoid", "relu"):
        values = last[f"mlp-{activation}-bn"]
        said = f"with BatchNorm {np.median(values):.1f} % ({values.min():.1f} to {values.max():.1f} %)"
        assert page.text["li"].count(said) == 2, "under the statement on accuracy and under GroupNorm"


def test_lost_units_are_those_at_the_highest_learning_rate(page: Page, lab: LabTables) -> None:
    shares = [measured(lab, "mlp-relu-none-high", "dead_share", layer) for layer in range(1, 5)]
    mean = pd.concat(shares, axis=1).mean(axis=1).median() * 100
    said = "learning rate 0.5: share of units dead at the last record (mean of the layers): without norm"
    assert f"{said} {mean:.1f} %" in page.text["li"]


def test_the_drift_is_told_in_evaluation_and_in_training_mode(page: Page) -> None:
    assert "with BatchNorm in evaluation mode from 1.6 to 0.1, with" in page.text["li"]
    assert "with BatchNorm in training mode from 1.2 to 0" in page.text["li"]


def test_seeds_that_broke_off_are_counted(lab: LabTables, tmp_path: Path) -> None:
    rows = lab.accuracy
    gone = rows["network"].eq("mlp-relu-none") & rows["epoch"].gt(2)
    text = write(tmp_path, replace(lab, accuracy=rows[~(gone & rows["seed"].ne(1))])).text["li"]
    assert "(2 of 3 seeds broke off)" in text
    text = write(tmp_path, replace(lab, accuracy=rows[~gone])).text["li"]
    assert "without norm undefined (3 of 3 seeds broke off)" in text


def test_captions_name_the_extremes(lab: LabTables, page: Page) -> None:
    accuracy = lab.accuracy[(lab.accuracy["epoch"] == 4) & (lab.accuracy["learning_rate"] == 0.05)]
    means = accuracy.groupby("network")["validation_accuracy"].mean() * 100
    assert means.idxmin() == "mlp-sigmoid-none"
    said = caption(lab, "accuracy", "mlp")
    assert f"lowest for sigmoid without norm ({means.min():.1f} %" in said
    assert f"({means.drop(means.index[means.index.str.endswith('-after')]).max():.1f} %)" in said
    assert "smallest for sigmoid without norm (" in caption(lab, "gradient_norm", "mlp")
    assert "dead (layer 4, relu without norm, learning rate 0.5)" in caption(lab, "units", "mlp")
    start = lab.measurements.query("network == 'mlp-sigmoid-none' and quantity == 'preactivation_mean' and layer == 4")
    first = start.query("seed == 0 and step == 0")["value"].item()
    assert f"from {first:.2g} to" in caption(lab, "preactivations", "mlp")
    for kind in PICTURES:
        assert caption(lab, kind, "mlp") in page.text["figcaption"]


def test_numbers_in_words() -> None:
    assert over_seeds(pd.Series([0.3, 0.1, 0.2])) == "0.2 (0.1 to 0.3)"
    assert over_seeds(pd.Series([0.2])) == over_seeds(pd.Series([0.2, np.nan])) == "0.2"
    assert over_seeds(pd.Series([np.nan])) == "undefined"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a, b", "c"]) == "a, b; and c"


def test_the_table_of_checks_holds_every_estimate(page: Page) -> None:
    head, *rows = page.tables["all"]
    assert head == ["Check", "Network", "Estimate", "Effect", "Interval", "Threshold", "Seeds", "Verdict"]
    assert len(rows) == 2 * len(VERDICTS)
    assert rows[0] == ["a", "MLP", "effect a (accuracy)", "0.310", "[0.120, 0.500]", "0.020", "3", "supported"]
    assert rows[1][5:] == ["", "3", "only reported"]


def test_images_are_embedded_with_alt_texts(page: Page, path: Path, lab: LabTables) -> None:
    names = lab_figure_names(lab)
    for image, name in zip(page.all("img"), names, strict=True):
        head, _, content = str(image["src"]).partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(content, validate=True) == (path.parent / "figures" / f"{name}.png").read_bytes()
        assert len(str(image["alt"])) > 20
    assert len(page.all("figcaption")) == len(names)


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert re.match(r"(data:|#)", attributes.get(name) or "#"), (tag, name)
    assert not re.search(r"https?://|url\(|@import", page.text["style"])
    assert not page.all("script")


def test_a_screen_reader_finds_its_way(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("header", "nav", "main", "h1")] == [1, 1, 1, 1]
    assert tags.count("caption") == tags.count("table")
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    identifiers = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    named = [str(a["href"])[1:] for a in page.all("a")] + [a["aria-labelledby"] for a in page.all("section")]
    assert set(named) <= set(identifiers)
    scrolled = [a for a in page.all("div") if "scroll" in str(a.get("class"))]
    assert scrolled and all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolled)


def test_how_it_was_made_is_said(page: Page, lab: LabTables) -> None:
    assert lab.commands[0] in page.text["code"]
    assert json.dumps(lab.record, indent=2) in page.text["pre"]
    assert "4.3% of the training time" in page.text["dd"]


def test_hostile_names_are_text(lab: LabTables, tmp_path: Path) -> None:
    checks = {"checks": [{**lab.checks["checks"][0], "sentence": HOSTILE, "statement": HOSTILE}]}
    hostile = replace(lab, name=HOSTILE, checks=checks, record={"machine": HOSTILE}, commands=[HOSTILE])
    page = write(tmp_path, hostile)
    assert not page.all("script")
    assert len(page.all("img")) == 4
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(HOSTILE in page.text[tag] for tag in ("title", "h1", "p", "code", "dd"))


def test_what_is_missing_leaves_the_old_page(lab: LabTables, tmp_path: Path) -> None:
    draw(tmp_path, lab)
    (tmp_path / "lab_report.html").write_text("the page of before")
    check = lab.checks["checks"][0]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"checks": {}}, r"checks\.json of lab 'synthetic' has no list 'checks'"),
        ({"checks": {"checks": [{"check": "a"}]}}, "lacks statement, verdict, sentence, estimates"),
        ({"checks": {"checks": [check | {"verdict": "true"}]}}, "is 'true'; expected one of supported"),
        ({"accuracy": lab.accuracy.drop(columns="epoch")}, r"lacks the column\(s\) epoch"),
        ({"measurements": lab.measurements.iloc[:0]}, "has no rows"),
    ]
    for changed, message in wrong:
        with pytest.raises(UserError, match=message):
            write_lab_report(tmp_path, replace(lab, **changed))
    (tmp_path / "figures" / "units_mlp.png").unlink()
    with pytest.raises(UserError, match=r"units_mlp\.png: no such figure"):
        write_lab_report(tmp_path, lab)
    assert (tmp_path / "lab_report.html").read_text() == "the page of before"


def test_a_lab_of_few_networks_says_what_it_lacks(lab: LabTables, tmp_path: Path) -> None:
    few = replace(
        lab,
        measurements=lab.measurements.query("network == 'mlp-relu-ln'"),
        histograms=lab.histograms.query("network == 'mlp-relu-ln'"),
        accuracy=lab.accuracy.query("network == 'mlp-relu-ln'"),
        checks={"checks": []},
    )
    page = write(tmp_path, few)
    assert page.text["p"].count("nothing; this lab has no network for it") == 5
    assert {row[1].strip() for row in page.tables["overview"][1:]} == {"measured, not tested"}


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


def test_the_page_loads_without_a_complaint_or_a_request(browser: Browser, path: Path) -> None:
    assert browser("/se/log", type="browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser("/se/log", type="performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [request["request"]["url"] for request in sent if request["documentURL"] == path.as_uri()]
    assert path.as_uri() in asked, "the log does see requests"
    assert [url[:60] for url in asked if not url.startswith(("data:", path.as_uri()))] == []
    assert browser.run("return [...document.images].map((image) => image.naturalWidth)") == [800] * 4


def test_the_page_fits_a_phone(browser: Browser) -> None:
    assert browser.run("return innerWidth") == 390
    assert browser.run("return document.documentElement.scrollWidth") <= 390
