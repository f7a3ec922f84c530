"""The pages of a run and a study: self-contained, complete, in display names."""

import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import report_pages as made
from claim_tables import Truth, made_study

from bnood.report.figures import rows
from bnood.report.names import change, display, number, scale
from bnood.report.page import write_run_report, write_study_report
from bnood.study.hypotheses import STATEMENTS
from bnood.study.verdict import judge

COMMANDS = ["python scripts/eval_ood.py --run 'runs/a <b>'"]
INTERNAL = ("msp_temperature", "bn-at-gn", "batch:128", "unit_mean", "max_logit")
Written = tuple[list[Path], str]


class Page(HTMLParser):
    """Headings and text outside of style and pictures, and what would be loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings, self.text, self.links, self.ids, self._inside = [], "", [], [], []  # type: ignore
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br"):
            self._inside.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._inside or "svg" in self._inside:
            return
        self.text += data
        if self._inside and self._inside[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder, config = tmp_path_factory.mktemp("run"), {"model": {"norm": "bn"}, "folder": Path("x")}
    files = write_run_report(folder, made.evaluated(), title="a <b>", commands=COMMANDS, config=config)
    return files, files[0].read_text()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Written:
    found = made.evaluated()
    table, units = (pd.concat([each.assign(run=f"bn-s{n}") for n in (0, 1)]) for each in (found.table, found.units))
    judged = made_study(Truth(auroc=-0.034, fpr95=-0.1), seeds=(0, 1, 2))
    verdict = judge(*judged.where(judged.draws["network"] == "bn"))
    files = write_study_report(
        tmp_path_factory.mktemp("study"), verdict, table, units, title="Small <b> study", commands=COMMANDS,
        changes=[["bn-at-gn", "AUROC of MSP", "85.0", "90.0", "+5.0 [4.0, 6.0] points"]], sentence="The answer.",
        notes=["one network is missing"],
    )  # fmt: skip
    return files, files[0].read_text()


def test_run_page_begins_with_the_answer_and_reacts_picture(run: Written) -> None:
    files, text = run
    names = [path.name for path in files]
    assert names[:2] == ["report.html", "units.png"] and len(names) == len(set(names)) == 5
    for path in files[1:]:
        assert path.read_bytes().startswith(b"\x89PNG") and path.parent.name == "figures"
    page = Page(text)
    assert page.headings[0] == "a <b>"
    assert page.headings[1].startswith("ReAct's picture") and page.headings[2].startswith("Detectors")
    assert page.headings[-1] == "Background"
    found = made.evaluated()
    assert found.notes and all(note in page.text for note in found.notes) and COMMANDS[0] in page.text
    row = rows(found.table, "auroc", "energy").set_index(["statistics", "dataset"]).loc[("recalibrated:target", "far")]
    before, after = (number(each, 100) for each in (row["value"] - row["difference"], row["value"]))
    difference = change(row["difference"], row["difference_low"], row["difference_high"], 100)
    assert f"AUROC of energyfar{before}{after}{difference}" in page.text


@pytest.fixture(params=["run", "study"])
def text(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)[1]


def test_pages_load_nothing_use_no_script_and_have_display_names(text: str) -> None:
    page = Page(text)
    assert "<script" not in text and "<b>" not in text
    assert all(link == "data:," or link.startswith("#") for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    words = re.sub(r'<pre.*?</pre>|<style.*?</style>|id="[^"]*"|<use[^>]*>|url\([^)]*\)', "", text, flags=re.DOTALL)
    assert [name for name in INTERNAL if name in words] == []


def test_every_picture_has_a_caption_alternative_text_and_svgs_in_the_colours_of_the_page(text: str) -> None:
    sections = re.findall(r'<section id="([\w.-]+)">\s*(.*?)</section>', text, flags=re.DOTALL)
    pictures = [(name, body) for name, body in sections if "<figure" in body]
    assert len(pictures) == 4
    for name, body in pictures:
        assert re.search(r"<h2>.+</h2>\s*<p>.{40,}</p>", body), name
        assert re.search(r'<figure role="img" aria-label="([^"]{30,})"', body), name
        for svg in re.findall(r"<svg.*?</svg>", body, flags=re.DOTALL):
            ElementTree.fromstring(svg)
            assert "currentColor" in svg and "#1b1b1b" not in svg


def test_study_page_begins_with_the_answer(study: Written) -> None:
    page = Page(study[1])
    assert page.headings[1] == "Running against target statistics" and page.headings[2].startswith("ReAct's picture")
    head = page.text[: page.text.index("Running against target")]
    assert "The answer." in head and f"H3: {STATEMENTS['H3']}" in head
    assert "refuted\u22123." in head and "points (energy AUROC, target - running)" in head
    assert "not tested\u2013no LN and GN networks" in head
    assert "BatchNorm at GroupNorm's accuracyAUROC of MSP85.090.0" in page.text
    assert "one point of confidence" in page.text[page.text.index("Background") :]


def test_page_without_batchnorm_says_that_nothing_was_replaced(tmp_path: Path) -> None:
    page, *figures = write_run_report(tmp_path, made.evaluated("gn"), title="gn", commands=[])
    assert "nothing to replace" in page.read_text()
    assert [path.stem for path in figures] == ["units", "detectors", "detection", "confidence"]


def test_display_names_and_numbers() -> None:
    names = ("batch:128", "batch:128@0.1", "recalibrated:mixture@0.5", "my_own_set")
    shown = ["batch of 128, pure", "batch of 128, 10 % OOD", "mixture, 50 % OOD", "my own set"]
    assert [display(name).replace("\u00a0", " ") for name in names] == shown
    assert number(0.9146, scale("auroc", "energy")) == "91.5\u00a0%"
    assert change(-0.0234, -0.03, -0.01, scale("auroc", "msp")) == "\u22122.3 [\u22123.0, \u22121.0] points"
    assert scale("mean", "energy") == scale("unit_mean_max_ratio", "units") == 1
    assert number(8.4785, 1) == "8.48" and change(0.5, math.nan, math.nan, 1) == "+0.50"
    assert number(math.nan, 100) == change(math.nan, 0, 0, 1) == "\u2013"
