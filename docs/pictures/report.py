"""Draw the picture of a report, from a run: its head and first table.

python docs/pictures/report.py RUN/report.html docs/pictures/report.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Open the page in Chromium and save the part that a desktop shows first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    words = parser.parse_args()
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path="/usr/bin/chromium")
        page = browser.new_page(viewport={"width": 1140, "height": 825})
        page.goto(words.page.absolute().as_uri())
        # From below the path of the run to the end of the first table.
        page.screenshot(path=words.out, clip={"x": 0, "y": 46, "width": 1140, "height": 700})
        browser.close()
    print(f"{words.out}: {words.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
