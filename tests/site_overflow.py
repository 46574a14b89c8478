"""Measures in Chromium which code blocks and tables of a site reach beyond their page or are cut by their box.

    python tests/site_overflow.py SITE [PATTERN]

Each page is opened in a frame of the width of a phone, a small and a large window.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

WIDTHS = (390, 1000, 1400)
SECONDS = 1200
# Waits for each frame, opens what is folded, and lists what is wider than its box or than the window.
PROBE = """<!doctype html><meta charset="utf-8"><body><pre id="out"></pre><script>
const pages = PAGES, widths = WIDTHS, cut = [], counts = {pages: 0, pre: 0, table: 0};
const frame = document.createElement("iframe");
frame.style.height = "900px"; document.body.append(frame);
const load = page => new Promise(done => { frame.onload = done; frame.src = page; });
(async () => {
  for (const page of pages) {
    frame.style.width = widths[0] + "px"; await load(page);
    const doc = frame.contentDocument;
    for (const details of doc.querySelectorAll("details")) details.open = true;
    for (const width of widths) {
      frame.style.width = width + "px"; counts.pages += 1;
      for (const kind of ["pre", "table"]) for (const element of doc.querySelectorAll("article " + kind)) {
        counts[kind] += 1;
        const boxes = [element, element.querySelector("code"), element.parentElement].filter(Boolean);
        const hidden = boxes.some(box => box.clientWidth && box.scrollWidth > box.clientWidth + 1);
        const beyond = element.getBoundingClientRect().right > width + 1;
        if (hidden || beyond) cut.push([page, width, kind, element.textContent.trim().slice(0, 60),
          Math.max(...boxes.map(box => box.scrollWidth - box.clientWidth))]);
      }
    }
  }
  document.getElementById("out").textContent = JSON.stringify({counts, cut});
  document.title = "done";
})();
</script>"""


def browser() -> str | None:
    """Returns the path of Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def measure(site: Path, pattern: str = "*.html", widths: tuple[int, ...] = WIDTHS) -> dict[str, Any]:
    """Returns how many boxes were measured (`counts`), and those that are cut: page, width, kind, beginning, pixels."""
    pages = sorted(str(path.absolute().as_uri()) for path in site.rglob(pattern) if path.name != "404.html")
    program = browser()
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.html"
        probe.write_text(PROBE.replace("PAGES", json.dumps(pages)).replace("WIDTHS", json.dumps(widths)))
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--disable-web-security",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}/profile", "--window-size=1500,1000",
            f"--virtual-time-budget={SECONDS * 1000}", "--dump-dom",
        ]  # fmt: skip
        command = [program, *options, probe.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False).stdout
    out = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    return json.loads(unescape(out[1])) if out and out[1] else {"counts": {}, "cut": [["no result"]]}


if __name__ == "__main__":
    result = measure(Path(sys.argv[1]), (sys.argv[2:] or ["*.html"])[0])
    for line in result["cut"]:
        print(*line, sep="  ")
    print(result["counts"], f"{len(result['cut'])} cut")
