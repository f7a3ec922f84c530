"""Fills the one page template: a self-contained HTML file beside its pictures as PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnood.report.charts import Picture

WIDE = 3.6  # inches: wider panels scroll sideways on a phone instead of shrinking


def write_page(
    folder: Path,
    kind: str,
    *,
    title: str,
    pictures: Sequence[Picture],
    commands: Sequence[str],
    record: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    **content: Any,
) -> list[Path]:
    """Write `report.html` and `figures/*.png` into `folder`; returns these files, the page first.

    `kind` is run, study or lab. `commands` get the page again, `record` has versions, commit and machine, `config` is
    complete; `content` is what else the template shows: notes, a sentence, tables as a pair of columns and rows.
    """
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bnood.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )

    def as_yaml(mapping: Mapping[str, Any] | None) -> str:
        return yaml.safe_dump(json.loads(json.dumps(mapping, default=str)), sort_keys=False) if mapping else ""

    panels = [
        [(panel.title, svg, panel.width > WIDE) for panel, svg in zip(picture.panels, picture.svgs(), strict=True)]
        for picture in pictures
    ]
    text = environment.get_template("page.html.j2").render(
        kind=kind, title=title, pictures=zip(pictures, panels, strict=True), commands=commands, record=as_yaml(record),
        config=as_yaml(config), **content,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(text, encoding="utf-8")
    return [page, *(picture.write_png(folder / "figures") for picture in pictures)]
