"""Report pages as a program reads them, and as a browser shows them."""

import json
import re
import subprocess
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "input", "br", "hr", "wbr"}
# What a name may hold that ends up in a page.
HOSTILE = "</title><script>alert('x')</script>\"><img src=https://example.org/x.png onerror=alert(1)> & {{ 7*7 }}"


class Page(HTMLParser):
    """Every element with its attributes and text; tables as lists of rows; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text: dict[str, str] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = self.tables.setdefault(str(dict(attrs)["id"]), [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.text[tag] = self.text.get(tag, "") + data
        if "td" in self.open or "th" in self.open:
            self.table[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


class Browser:
    """Chromium, driven through chromedriver's own HTTP interface (the W3C WebDriver protocol)."""

    def __init__(self, profile: Path, width: int) -> None:
        command = ["chromedriver", "--port=0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        port = next(m[1] for line in self.process.stdout if (m := re.search(r"successfully on port (\d+)", line)))
        self.address = f"http://127.0.0.1:{port}/session"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--disable-background-networking"]
        options = {
            "args": [*flags, f"--user-data-dir={profile}"],
            "mobileEmulation": {"deviceMetrics": {"width": width, "height": 900, "pixelRatio": 1, "touch": False}},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = self("", capabilities={"alwaysMatch": wanted})["sessionId"]
        self.address += f"/{session}"

    def __call__(self, path: str, method: str = "POST", **body: object):
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def run(self, script: str):
        return self("/execute/sync", script=script, args=[])

    def press(self, selector: str, keys: str) -> None:
        found = self("/element", using="css selector", value=selector)
        self(f"/element/{next(iter(found.values()))}/value", text=keys)

    def column(self, number: int) -> list[str]:
        """The visible cells of a column of the metric table, from top to bottom."""
        visible = "[...document.querySelectorAll('#all tbody tr')].filter((row) => !row.hidden)"
        return self.run(f"return {visible}.map((row) => row.cells[{number}].textContent)")

    def quit(self) -> None:
        try:
            self("", method="DELETE")
        finally:
            self.process.terminate()
            self.process.wait(timeout=30)
            if self.process.stdout is not None:
                self.process.stdout.close()
