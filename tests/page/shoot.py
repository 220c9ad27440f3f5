"""Take the picture for docs/plan.md: .venv/bin/python tests/page/shoot.py [PLAN.json] [PICTURE.png]"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "collections"), str(ROOT / "tests" / "page")]

from chromium import executable  # noqa: E402
from plans import v100s  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from ansible_collections.llamacpp.cluster.plugins.module_utils._page import plan_page  # noqa: E402

WIDTH, HEIGHT = 1080, 1180


def main() -> None:
    """Write the picture."""
    plan = json.loads(Path(sys.argv[1]).read_text("utf-8")) if len(sys.argv) > 1 else v100s()
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "images" / "plan.png"
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        file = Path(scratch) / "plan.html"
        file.write_text(plan_page(plan), "utf-8")
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(file.as_uri())
        page.screenshot(path=picture)
        browser.close()
    print(f"{picture}: {picture.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
