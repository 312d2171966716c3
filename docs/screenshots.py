"""Photographs `usam web` in Chromium, wide and narrow, light and dark: python docs/screenshots.py MODEL OTHER FOLDER.

docs/web-light.png and docs/web-dark.png are its wide-light-ask.png and wide-dark-ask.png in 64 colours.
"""

from __future__ import annotations

import shutil
import sys
from itertools import product
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from usam.generate import Answerer
from usam.serving.page import served
from usam.serving.page_answers import Listener

SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
CLIPS = {"ask": "Sounds 2", "compare": "Speech 1"}


def shoot(models: list[str], folder: Path) -> None:
    """Write a picture of each tab, and of a refusal, in each window and each scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    listeners = [Listener(Path(model).name, Answerer.load(model)) for model in models]
    with served(listeners) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for (size, (width, height)), scheme in product(SIZES.items(), ("light", "dark")):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            for tab in CLIPS:
                page.goto(url)
                _ask(page, tab)
                page.screenshot(path=folder / f"{size}-{scheme}-{tab}.png", full_page=True)
            page.goto(url)
            page.get_by_role("button", name="Ask", exact=True).click()
            page.locator("#answer-message [role=alert]").wait_for()
            page.screenshot(path=folder / f"{size}-{scheme}-refused.png", full_page=True)
        browser.close()


def _ask(page: Page, tab: str) -> None:
    """Take an example, ask, and wait for the last figure."""
    if tab == "compare":
        page.get_by_role("tab", name="Compare two models").click()
    example = page.get_by_role("button", name=CLIPS[tab], exact=True).locator("visible=true")
    example.click()
    page.get_by_role("button", name="Clear").locator("visible=true").first.wait_for()  # the clip is there
    page.get_by_role("button", name="Ask both" if tab == "compare" else "Ask", exact=True).click()
    page.locator("#answer-second-figures svg" if tab == "compare" else "#answer-figures svg").last.wait_for()
    page.wait_for_timeout(500)  # the waveform is drawn


if __name__ == "__main__":
    shoot(sys.argv[1:-1], Path(sys.argv[-1]))
