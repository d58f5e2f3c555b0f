"""How long a report of many photos takes to build, and to answer in a browser.

    python -m tests.benchmarks.report_scale                  # 5,000 photos of the shipped samples
    python -m tests.benchmarks.report_scale --rows 300 --keep --at /tmp/report

The photos are real ones, at most 1,024 px a side, written again and again under names of their
own: a build reads, decodes and scales each file, as it would of a collection. Their scores are
drawn. The page is opened from disk in headless Chromium; every figure of it is the browser's own
clock, from what a person does to the second frame painted after it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.report.build import build_report
from tests.benchmarks.plan_scale import machine
from tests.browser import chromium, complaints, missing
from tests.reports import encoded, finished_folder

SAMPLES = Path(__file__).parents[2] / "doodl" / "pocket" / "samples"

# Does what a person would do, and waits until it is on the screen.
_TIMED = """
const reply = arguments[0];
const began = performance.now();
{action};
const done = () => reply(performance.now() - began);
requestAnimationFrame(() => requestAnimationFrame(done));
"""
_SCROLLED = """
const reply = arguments[0];
const began = performance.now();
const gallery = document.getElementById('gallery');
scrollTo(0, gallery.offsetTop + {action} * (gallery.offsetHeight - innerHeight));
const look = () => {{
  const near = [...document.querySelectorAll('.item')].filter((item) => {{
    const box = item.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  }});
  const pictures = near.flatMap((item) => [...item.querySelectorAll('img')]);
  const there = near.length && pictures.every((picture) => picture.complete);
  if (there) reply(performance.now() - began);
  else requestAnimationFrame(look);
}};
requestAnimationFrame(look);
"""


def photos(side_px: int) -> list[tuple[bytes, bytes]]:
    """Return (source, edited) of each shipped sample: the edit is a little brighter."""
    made = []
    for path in sorted(SAMPLES.glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        image.thumbnail((side_px, side_px))
        values = np.asarray(image).astype(float)
        made.append((encoded(values), encoded(values * 1.1 + 4)))
    return made


def build(root: Path, rows: int, side_px: int) -> tuple[Path, dict[str, Any]]:
    """Return the page of so many photos, and what building it took."""
    made = photos(side_px)
    out = finished_folder(root, rows, photo=lambda index: made[index % len(made)])
    facts: dict[str, Any] = {}
    for name in ("first", "again"):
        began, cpu = time.perf_counter(), time.process_time()
        page = build_report(str(out))
        facts[f"build_{name}_seconds"] = round(time.perf_counter() - began, 2)
        facts[f"build_{name}_cpu_seconds"] = round(time.process_time() - cpu, 2)
    thumbnails = list((page.parent / "thumbnails").iterdir())
    facts["page_bytes"] = page.stat().st_size
    facts["thumbnails"] = len(thumbnails)
    facts["thumbnail_bytes"] = sum(path.stat().st_size for path in thumbnails)
    return page, facts


def browse(page: Path, profile: Path, repeats: int) -> dict[str, Any]:
    """Return how quickly the page answers, in seconds; medians and the slowest of the repeats."""
    facts: dict[str, Any] = {}
    with chromium(profile) as driver:
        began = time.perf_counter()
        driver.get(page.as_uri())
        while not driver.execute_script("return document.documentElement.dataset.ready"):
            time.sleep(0.01)
        facts["open_seconds"] = round(time.perf_counter() - began, 2)

        def timed(name: str, script: str, actions: list[Any]) -> None:
            # Whole scripts, for the page's own policy lets nothing be evaluated in it.
            scripts = [script.format(action=action) for action in actions]
            taken = [driver.execute_async_script(each) / 1000 for each in scripts]
            facts[f"{name}_seconds"] = round(statistics.median(taken), 3)
            facts[f"{name}_slowest_seconds"] = round(max(taken), 3)

        places = [(i * 0.61803) % 1 for i in range(1, repeats + 1)]
        timed("scroll_far", _SCROLLED, places)
        sort = (
            "const s = document.getElementById('sort'); s.value = '{}';"
            "s.dispatchEvent(new Event('change'));"
        )
        timed("sort", _TIMED, [sort.format(("judge", "psnr", "id")[i % 3]) for i in range(repeats)])
        find = (
            "const s = document.getElementById('search'); s.value = '{}';"
            "s.dispatchEvent(new Event('input'));"
        )
        timed("search", _TIMED, [find.format(("img_0", "1", "")[i % 3]) for i in range(repeats)])
        timed("open_photo", _TIMED, [f"view({i})" for i in range(repeats)])
        facts["cards_in_page"] = driver.execute_script(
            "return document.querySelectorAll('.item').length"
        )
        driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        facts["heap_bytes"] = driver.execute_script("return performance.memory.usedJSHeapSize")
        facts["complaints"] = complaints(driver)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--side", type=int, default=1024, help="longer side of the photos, px")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--at", type=Path, help="where to build (default: a temporary folder)")
    parser.add_argument("--page", type=Path, help="measure this page, kept before; build nothing")
    parser.add_argument("--keep", action="store_true", help="leave what was built")
    args = parser.parse_args()
    if (why := missing()) is not None:
        raise SystemExit(why)
    root = args.at or Path(tempfile.mkdtemp(prefix="report-scale-"))
    root.mkdir(parents=True, exist_ok=True)
    try:
        if args.page is None:
            page, facts = build(root, args.rows, args.side)
        else:
            page, facts = args.page.absolute(), {}
        facts |= browse(page, root / "profile", args.repeats)
        print(json.dumps({"rows": args.rows, "machine": machine(), **facts}, indent=1))
    finally:
        if not args.keep:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
