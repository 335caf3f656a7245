"""Make the pictures of this folder from runs: pages as a browser shows them. No picture of a patient gets into any.

    python docs/images/make.py runs/pruned                             # report-*.png and serve.png
    python docs/images/make.py runs/pruned --compare runs/dense runs/deep      # comparison.png too

Those here are of seed 1 of `benchmarks/studies/targets.yaml` on HAM10000 and, compared, of the records of seed 0 in
../results/targets. What the served model is asked about is a drawn lesion. Needs Playwright, of the extra `dev`, and
Chromium.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from fedskew.demo.generator import generate
from fedskew.report.comparison import write_comparison
from fedskew.report.page import write_report

HERE = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"
COLOURS = 256  # of a palette: half the bytes, and no difference to be seen
SHOTS = {  # width, colours of the system, pixels of a point, what comes first below the picture
    "report-desktop": (1200, "light", 1, "section:nth-of-type(2)"),
    "report-dark": (1200, "dark", 1, "section:nth-of-type(1) figure:nth-of-type(1)"),
    "report-phone": (375, "light", 2, "section:nth-of-type(1) figure:nth-of-type(2)"),
}


@contextmanager
def opened(browser: Browser, address: str, width: int, height: int, scheme: str, scale: float = 1) -> Iterator[Any]:
    """A page of that size."""
    size = {"width": width, "height": height}
    with browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=scale) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(address)
        yield page


def keep(page: Any, name: str) -> None:
    """What the page shows as `NAME.png`, in few bytes."""
    path = HERE / f"{name}.png"
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, path.stat().st_size)


def report(browser: Browser, page: Path) -> None:
    """The report at a desk, in the dark, on a phone."""
    for name, (width, scheme, scale, below) in SHOTS.items():
        with opened(browser, page.as_uri(), width, 800, scheme, scale) as shown:
            edge = shown.locator(below).first.bounding_box()["y"]
            shown.set_viewport_size({"width": width, "height": round(edge) - 16})
            keep(shown, name)


def drawn(folder: Path) -> Path:
    """A picture that the demo's generator drew: the one with the largest contrast of colours, a lesion that is seen."""
    generate(folder, images=60, seed=0)
    return max(sorted(folder.rglob("*.jpg")), key=lambda file: float(np.asarray(Image.open(file)).std()))


def serve(browser: Browser, run: Path, picture: Path) -> None:
    """The page of `fedskew serve` with an answer."""
    command = [sys.executable, "-m", "fedskew", "serve", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with opened(browser, address, 900, 1160, "light") as page:
                page.set_input_files("#file", picture)
                page.get_by_label("Age in years").fill("61")
                page.get_by_label("Sex").select_option("female")
                page.get_by_label("Body site").select_option("back")
                page.get_by_role("button", name="Ask the model").click()
                page.wait_for_selector("#answer:not([hidden])")
                page.wait_for_timeout(500)  # the map is drawn
                keep(page, "serve")
        finally:
            process.terminate()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Make docs/images from runs.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="RUN")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        folder = Path(place)
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        report(browser, write_report(given.run, folder / "report.html"))
        if given.compare:
            page = write_comparison(given.compare, folder / "comparison.html")
            with opened(browser, page.as_uri(), 1200, 1500, "light") as shown:
                keep(shown, "comparison")
        serve(browser, given.run, drawn(folder / "drawn"))
        browser.close()


if __name__ == "__main__":
    main()
