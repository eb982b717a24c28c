"""A page in a headless browser: what it draws, what it complains about, what it asks for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
#: What pages must show as it is: each would run, load or format something if it were taken for markup.
SCRIPT = "<script>alert(1)</script>"
IMAGE = "</script><img src=x onerror=alert(1)>"
LINK = "<a href='javascript:alert(1)'>b</a><b>bold</b>"
ENTITY = "&lt;i&gt; $x^2$ %{x} {{ 7 * 7 }}"
LONG = "W" * 300

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt install chromium)")


@contextmanager
def headless() -> Iterator[Browser]:
    """A browser that closes with the block."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Visit:
    """A page that was opened, and everything it complained about or asked for."""

    def __init__(self, browser: Browser, path: Path, width: int, scheme: Any) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page: Page = context.new_page()
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self._request(request.url, path))
        self.page.goto(path.as_uri(), timeout=120_000)  # milliseconds; neighbours may have the cores
        self.wait_for(
            "(plots => plots.length > 0 && plots.every(plot => plot.querySelector('svg.main-svg')))"
            "([...document.querySelectorAll('.plot')])"
        )

    def wait_for(self, condition: str) -> None:
        """Until this JavaScript is true; playwright's own way needs an eval that the page's policy forbids."""
        for _ in range(600):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never became true: {condition}")

    def _dialog(self, dialog: Any) -> None:
        self.trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, url: str, path: Path) -> None:
        if url != path.as_uri():
            self.trouble.append(f"request: {url}")

    def drawn(self) -> dict[str, int]:
        """For each figure the marks that are seen: lines and points, a heatmap (an image), the net's lines."""
        count: dict[str, int] = self.page.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll('figure')].map((figure, i) => {
                const plot = figure.querySelector('.plot');
                const marks = figure.querySelectorAll('.trace path, .hm image, .point path, .drawn path');
                const boxes = [...marks].map(mark => mark.getBoundingClientRect());
                const seen = boxes.filter(box => box.width + box.height > 0);
                return [plot ? plot.id : 'net', seen.length];
            }))"""
        )
        return count

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        wider: int = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return wider
