"""A browser without a window, and pages of composed plans in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from plans import PLANS
from playwright.sync_api import Browser, Page, sync_playwright

from ansible_collections.llamacpp.cluster.plugins.module_utils._page import plan_page

# Debian calls it by one of the first two names.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """The Chromium of this machine; the variable CHROMIUM names another."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Seen:
    """A page in the browser, and what happened while it was there."""

    page: Page
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def ask(self, expression: str, argument: Any = None) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.page.evaluate(expression, argument)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = executable()
    if path is None:
        pytest.skip(f"no Chromium here; install the package {NAMES[0]} (Debian), or name one in CHROMIUM")
    with sync_playwright() as playwright:
        # The sandbox refuses root, as whom machines without people run tests. The pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Seen]]:
    """A function that shows the page of a plan, by name or as it is, and returns what is seen."""
    contexts = []

    def show(plan: str | dict[str, Any], width: int = 1280, **options: Any) -> Seen:
        file = tmp_path / "plan.html"
        file.write_text(plan_page(PLANS[plan]() if isinstance(plan, str) else plan), "utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        seen = Seen(context.new_page())
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("console", lambda message: seen.messages.append(message.text))
        seen.page.on("pageerror", lambda error: seen.messages.append(str(error)))
        seen.page.goto(file.as_uri())
        return seen

    yield show
    for context in contexts:
        context.close()
