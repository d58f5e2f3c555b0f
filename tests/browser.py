"""A real headless Chromium for pages that open from disk; tests skip where there is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip


def missing() -> str | None:
    """Return why no browser can be driven here, None if one can."""
    if (os.environ.get("DOODL_CHROMIUM") or _found(BROWSERS)) is None:
        return "no Chromium: install Debian's chromium and chromium-driver, or set DOODL_CHROMIUM"
    if _found(("chromedriver",)) is None:
        return "no chromedriver: install Debian's chromium-driver"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "no selenium: it is in the dev extra"
    return None


def _found(names: tuple[str, ...]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def chromium(profile: Path, width: int = 1440, height: int = 900) -> Iterator[Any]:
    """Give a driven browser with a profile of its own; it goes with the context.

    Downloads go to `profile / "downloads"`; console and network are logged for `complaints`.
    """
    if (why := missing()) is not None:
        pytest.skip(why)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = os.environ.get("DOODL_CHROMIUM") or _found(BROWSERS) or ""
    for flag in (*_FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    downloads = profile / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_found(("chromedriver",))))
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(120)
    try:
        yield driver
    finally:
        driver.quit()


def complaints(driver: Any) -> list[str]:
    """Return what the console said and every request that was not for a file beside the page."""
    said = [f"{entry['level']}: {entry['message']}" for entry in driver.get_log("browser")]
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if not url.startswith(("file://", "data:", "blob:", "about:", "chrome://")):
                said.append(f"request: {url}")
    return said


def set_theme(driver: Any, theme: str) -> None:
    """Make the browser prefer light or dark, as a person's system does."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
