"""Draw the picture of a page: the first table of a report, or a timeline at the first bout of its list.

python docs/pictures/page.py RUN/report.html docs/pictures/report.png
python docs/pictures/page.py OUT/RECORDING.html docs/pictures/timeline.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Open the page in Chromium. Save a timeline whole, and of a report what a desktop shows first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    words = parser.parse_args()
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page(viewport={"width": 1140, "height": 1000})
        page.goto(words.page.absolute().as_uri())
        bouts = page.locator("#bouts button")
        if bouts.count():
            bouts.first.click()
            page.wait_for_timeout(1500)
            page.evaluate("document.getElementById('video').pause()")
            page.wait_for_timeout(500)
            page.screenshot(path=words.out, full_page=True)
        else:
            # From below the path of the run to the end of the first table.
            head, rows = (page.locator(tag).first.bounding_box() for tag in ("h1", "table"))
            assert head is not None
            assert rows is not None
            top, bottom = head["y"] - 8, rows["y"] + rows["height"] + 16
            page.screenshot(path=words.out, clip={"x": 0, "y": top, "width": 1140, "height": bottom - top})
        browser.close()
    print(f"{words.out}: {words.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
