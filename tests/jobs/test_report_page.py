"""The report in a real browser: a run of 300 rows with ugly names, opened from disk."""

import re
import time
from pathlib import Path

import pytest

from jobs.console import plain
from jobs.report.build import build_report
from jobs.report.compare import build_comparison
from tests.browser import chromium, complaints, missing, set_theme
from tests.reports import REASON, UGLY, finished_folder

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")
COUNT = 300
CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def page(root):
    return build_report(str(finished_folder(root, COUNT)))


@pytest.fixture(scope="module")
def browser(root):
    with chromium(root / "profile") as driver:
        yield driver


@pytest.fixture
def report(browser, page):
    browser.get(page.as_uri())
    wait(browser, "document.documentElement.dataset.ready === 'true'")
    to_photos(browser)
    yield browser
    # Whatever a test did: nothing ran that is not the page's, and nothing was asked of a network.
    assert complaints(browser) == []
    assert browser.execute_script("return window.hacked") is None


def wait(driver, condition, seconds=60):
    """Wait until a JavaScript expression is true."""
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return Boolean({condition})"):
        assert time.monotonic() < end, f"never came true: {condition}"
        time.sleep(0.05)


def keys(driver, *pressed):
    from selenium.webdriver import ActionChains

    chain = ActionChains(driver)
    for key in pressed:
        chain.send_keys(key)
    chain.perform()


def to_photos(driver):
    """Go to the photos, as the link at the page's head does; cards are drawn on the next frame."""
    driver.execute_script("document.getElementById('tools').scrollIntoView()")
    wait(driver, "document.querySelector('.item')")


def element(driver, selector):
    return driver.find_element("css selector", selector)


def count(driver):
    return element(driver, "#count").text


def names(driver):
    return driver.execute_script(
        "return [...document.querySelectorAll('.item')]"
        ".sort((a, b) => a.getAttribute('aria-posinset') - b.getAttribute('aria-posinset'))"
        ".map((item) => item.querySelector('.name').textContent)"
    )


def figures(driver, label):
    texts = driver.execute_script(
        "return [...document.querySelectorAll('.item')]"
        ".sort((a, b) => a.getAttribute('aria-posinset') - b.getAttribute('aria-posinset'))"
        ".map((item) => item.querySelector('.about').textContent)"
    )
    found = [re.search(rf"{label} ([+-]?[\d.]+)", text) for text in texts]
    return [float(match[1]) for match in found if match]


def choose(driver, select, value):
    from selenium.webdriver.support.ui import Select

    Select(element(driver, select)).select_by_value(value)


def search(driver, words):
    driver.execute_script(
        "const box = document.getElementById('search'); box.value = arguments[0];"
        "box.dispatchEvent(new Event('input'));", words,
    )  # fmt: skip


def test_every_ugly_name_is_shown_as_text_and_opens_its_photo(report):
    for name in UGLY:
        search(report, plain(name))
        assert names(report) == [plain(name)]
        report.execute_script("document.querySelector('.open').click()")
        assert element(report, "#viewer-name").get_attribute("textContent") == plain(name)
        wait(report, "[...document.querySelectorAll('#stage img')].every(i => i.naturalWidth > 0)")
        element(report, "#close").click()


def test_only_cards_near_the_view_are_in_the_page_and_scrolling_brings_the_rest(report):
    assert count(report) == f"{COUNT} photos"
    assert len(names(report)) < 60
    report.execute_script("scrollTo(0, document.body.scrollHeight)")
    wait(report, f"document.querySelector('[aria-posinset=\"{COUNT}\"]')")
    assert len(names(report)) < 60
    wait(report, "[...document.querySelectorAll('.item img')].some((i) => i.naturalWidth > 0)")


def test_filters_by_status_error_and_name_agree_with_the_counts(report):
    buttons = report.find_elements("css selector", "[data-status]")
    counted = {b.get_attribute("data-status"): int(b.text.split()[-1]) for b in buttons}
    assert sum(counted.values()) == COUNT
    assert all(counted.values())
    for button in buttons:
        if button.get_attribute("data-status") != "failed":
            button.click()
    assert count(report) == f"{counted['failed']} of {COUNT} photos"
    assert REASON in element(report, ".item .why").get_attribute("textContent")
    element(report, "[data-error='OSError']").click()
    assert int(count(report).split()[0]) < counted["failed"]
    shown = report.execute_script("return document.querySelector('.item .why').textContent")
    assert shown.startswith("OSError")
    search(report, "no such photo")
    assert names(report) == []
    assert element(report, "#nothing").is_displayed()


SORTS = [("judge", "Δ judge"), ("psnr", "PSNR"), ("ssim", "SSIM")]


@pytest.mark.parametrize(("key", "label"), SORTS)
def test_sorting_orders_the_cards_both_ways(report, key, label):
    choose(report, "#sort", key)
    upward = figures(report, label)
    element(report, "#order").click()
    assert element(report, "#order").text == "High to low"
    downward = figures(report, label)
    assert len(upward) > 5
    assert upward == sorted(upward)
    assert downward == sorted(downward, reverse=True)
    assert downward[0] > upward[-1]


def opened(driver):
    search(driver, plain(UGLY[0]))
    driver.execute_script("document.querySelector('.open').click()")
    wait(driver, "[...document.querySelectorAll('#stage img')].every((i) => i.naturalWidth > 0)")


def cut(driver):
    """Return how far the slider is, in percent, as the upper picture is really clipped."""
    clip = driver.execute_script(
        "return getComputedStyle(document.querySelector('#stage .over')).clipPath"
    )
    return float(re.search(r"([\d.]+)%\)", clip)[1])


def test_the_slider_answers_to_dragging_and_to_keys(report):
    from selenium.webdriver import ActionChains, Keys

    opened(report)
    assert cut(report) == 50
    keys(report, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert cut(report) == 53
    stage = element(report, "#stage")
    chain = ActionChains(report).move_to_element(stage).click_and_hold()
    chain.move_by_offset(-int(stage.size["width"] * 0.25), 0).release().perform()
    assert cut(report) == pytest.approx(25, abs=1)


def test_space_and_the_button_show_the_original_while_held(report):
    from selenium.webdriver import ActionChains, Keys

    opened(report)
    over = element(report, "#stage .over")
    ActionChains(report).key_down(Keys.SPACE).perform()
    assert not over.is_displayed()
    ActionChains(report).key_up(Keys.SPACE).perform()
    assert over.is_displayed()
    ActionChains(report).click_and_hold(element(report, "#hold")).perform()
    assert not over.is_displayed()
    ActionChains(report).release().perform()
    assert over.is_displayed()


def test_the_whole_report_is_usable_from_the_keyboard(report):
    from selenium.webdriver import Keys

    keys(report, "/")
    assert report.switch_to.active_element.get_attribute("id") == "search"
    keys(report, "shoot", Keys.ESCAPE)
    keys(report, "g")
    keys(report, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    first = report.execute_script("return document.activeElement.getAttribute('aria-label')")
    assert first.startswith("shoot")
    keys(report, Keys.END)
    at = report.execute_script(
        "const item = document.activeElement.closest('.item');"
        "return [item.getAttribute('aria-posinset'), item.getAttribute('aria-setsize')]"
    )
    assert at[0] == at[1]
    keys(report, Keys.HOME, Keys.ENTER)
    assert element(report, "#viewer").is_displayed()
    place = element(report, "#viewer-place").text
    keys(report, "j", "j", "k")
    assert element(report, "#viewer-place").text == place.replace("1 of", "2 of", 1)
    keys(report, Keys.ESCAPE)
    assert not element(report, "#viewer").is_displayed()
    # The dialog's close event, which gives the focus back, is a task of its own.
    place = "document.activeElement.closest('.item')?.getAttribute('aria-posinset')"
    wait(report, f"{place} === '2'")


def test_charts_follow_the_filter_and_say_in_words_what_they_show(report):
    labels = "return [...document.querySelectorAll('#charts svg[role=img]')].map(s => s.ariaLabel)"
    wait(report, "document.querySelectorAll('#charts svg[role=img]').length >= 5")
    before = report.execute_script(labels)
    assert any("Guide and judge" in label for label in before)
    assert any("mean" in label for label in before)
    assert any("Median loss" in label for label in before)
    search(report, "shoot 1/")
    wait(report, "[...document.querySelectorAll('#charts svg[role=img]')]"
                 f".every((s, i) => s.ariaLabel !== {before!r}[i])")  # fmt: skip
    dots = "return document.querySelector('.dots').getAttribute('d').split('M').length - 1"
    assert report.execute_script(dots) < 100


def test_pictures_have_alternative_texts_and_controls_have_names(report):
    opened(report)
    alts = report.execute_script("return [...document.images].map((image) => image.alt)")
    assert alts
    assert all(alts)
    unnamed = report.execute_script(
        "return [...document.querySelectorAll('button, select, input')].filter((node) =>"
        " !(node.textContent.trim() || node.ariaLabel || node.labels?.length))"
        ".map((node) => node.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("opens", [False, True])
def test_text_stands_out_in_both_themes(report, theme, opens):
    set_theme(report, theme)
    if opens:
        opened(report)
    measured, faint = report.execute_script(CONTRAST)
    assert measured > 30
    assert faint == []
    dark = report.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", dark)[0]) < 60) == (theme == "dark")


def test_a_photo_opened_right_after_another_is_closed_stays(report):
    opened(report)
    report.execute_script("byId('viewer').close(); view(1)")
    report.execute_async_script("setTimeout(arguments[0], 200)")
    assert element(report, "#stage img").get_attribute("src")


def test_two_runs_stand_side_by_side_and_either_against_the_photo(browser, root):
    from selenium.webdriver import ActionChains, Keys

    runs = [
        finished_folder(root, 40, name=name, seed=seed, gain=gain)
        for name, seed, gain in (("mild <b>", 1, 0.3), ("strong", 2, 0.9))
    ]
    page = build_comparison(str(runs[0]), str(runs[1]))
    assert page.parent.parent == runs[1] / "report"
    browser.get(page.as_uri())
    wait(browser, "document.documentElement.dataset.ready === 'true'")
    to_photos(browser)
    assert count(browser) == "40 photos"
    choose(browser, "#sort", "judge_lead")
    leads = figures(browser, "judge, B − A")
    assert leads == sorted(leads)
    for button in browser.find_elements("css selector", "[data-status]"):
        if button.get_attribute("data-status") != "B higher":
            button.click()
    browser.execute_script("view(shown.findIndex((row) => row.pics.every(Boolean)))")
    wait(browser, "document.querySelector('#stage .over')")
    below = element(browser, "#stage img")
    assert below.get_attribute("src").endswith("-first.jpg")
    ActionChains(browser).key_down(Keys.SPACE).perform()
    assert below.get_attribute("src").endswith("-before.jpg")
    ActionChains(browser).key_up(Keys.SPACE).perform()
    assert below.get_attribute("src").endswith("-first.jpg")
    element(browser, "#close").click()
    # Where A delivers nothing the photo as it was stands under B.
    lone = "rows.findIndex((r) => r.pics[0] && !r.pics[1] && r.pics[2])"
    browser.execute_script(f"shown = [rows[{lone}]]; view(0)")
    assert element(browser, "#stage img").get_attribute("src").endswith("-before.jpg")
    assert element(browser, "#stage .over").get_attribute("src").endswith("-second.jpg")
    assert [t.text for t in browser.find_elements("css selector", "#stage .tag")] == ["B", "before"]
    assert complaints(browser) == []
