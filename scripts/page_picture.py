"""Draw the README's picture of the report page: its first sections, shortened, as a PNG.

    python scripts/page_picture.py runs                 # writes docs/report.png

Needs Chromium, which takes the picture without a window or a network, and the extra ``report``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from clipadapt.core.report.page import build_report

SIZE = 1300, 1550
COLORS = 128
# Of long lists only the beginning, so that the charts are in the picture; the page itself stays as it is.
SHORTENED = """<style>
#findings details, #leaderboard details, #findings .lede, #leaderboard .lede { display: none }
#findings tbody tr:nth-child(n+4), #leaderboard tbody tr:nth-child(n+8) { display: none }
main section { margin-top: 1rem }
</style>"""


def main() -> int:
    """Write the picture of the runs in a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of the records")
    parser.add_argument("--output", type=Path, default=Path("docs/report.png"))
    arguments = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        print("error: Chromium is not installed", file=sys.stderr)
        return 2
    html, _ = build_report(arguments.runs)
    with tempfile.TemporaryDirectory() as scratch:
        page, picture = Path(scratch, "report.html"), Path(scratch, "report.png")
        page.write_text(html.replace("</head>", f"{SHORTENED}</head>"), encoding="utf-8")
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={scratch}/profile", f"--window-size={SIZE[0]},{SIZE[1]}",
                f"--screenshot={picture}", page.as_uri(),
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        with Image.open(picture) as image:
            image.convert("RGB").quantize(COLORS).save(arguments.output, optimize=True)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
