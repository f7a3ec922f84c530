"""Fills the one page template: a self-contained HTML file beside its pictures as PNG."""

from __future__ import annotations

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
    others: Sequence[tuple[str, Sequence[Picture]]] = (),
    record: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    **content: Any,
) -> list[Path]:
    """Write `report.html` and `figures/*.png` into `folder`, which is made if it does not exist.

    Args:
        folder: of a run, a study or a lab.
        kind: ``run``, ``study`` or ``lab``.
        title: the page's heading.
        pictures: in reading order.
        commands: what to type to get the page again.
        others: further pictures, folded away, under the network that they show.
        record: versions, commit and machine.
        config: the complete configuration.
        **content: what else the template shows: tables as rows of text with their ``..._columns``, notes.

    Returns:
        The files that were written, the page first.
    """
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bnood.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    text = environment.get_template("page.html.j2").render(
        kind=kind,
        title=title,
        pictures=[_rendered(picture) for picture in pictures],
        others=[(network, [_rendered(picture) for picture in found]) for network, found in others],
        commands=commands,
        record=yaml.safe_dump(_plain(record or {}), sort_keys=False),
        config=yaml.safe_dump(_plain(config), sort_keys=False) if config else "",
        **content,
    )
    page.write_text(text, encoding="utf-8")
    drawn = [*pictures, *(picture for _, found in others for picture in found)]
    return [page, *(picture.write_png(folder / "figures") for picture in drawn)]


def _rendered(picture: Picture) -> dict[str, Any]:
    panels = [
        {"title": panel.title, "svg": svg, "wide": panel.width > WIDE}
        for panel, svg in zip(picture.panels, picture.svgs(), strict=True)
    ]
    return {"picture": picture, "panels": panels}


def _plain(value: Any) -> Any:
    """As YAML can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | None) else str(value)
