"""Blind studies: pages driven in a real browser, their JSON turned into figures."""

import json
import random
import time

import pytest

from jobs import exits
from jobs.human import show_human
from jobs.report.study import LEVELS, Wanted, build_pairwise, build_rating
from manifests.errors import ManifestError, OriginalError
from pipeline.human import StudyError, read_key
from tests.browser import chromium, complaints, missing, set_theme
from tests.jobs.test_report_page import CONTRAST, keys, wait
from tests.reports import UGLY, finished_folder, personalised_folder

needs_browser = pytest.mark.skipif(missing() is not None, reason=missing() or "")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def edited(root):
    return finished_folder(root, 24)


@pytest.fixture(scope="module")
def pairs(root, edited):
    page = build_pairwise(Wanted(str(edited), number=10), root / "pairs")
    return page, read_key(root / "pairs")


@pytest.fixture(scope="module")
def likeness(root):
    out = personalised_folder(root, 3, prompt='"><script>window.hacked=1</script> on the moon')
    return build_rating(Wanted(str(out)), root / "rating"), read_key(root / "rating")


@pytest.fixture(scope="module")
def browser(root):
    with chromium(root / "profile") as driver:
        yield driver


def page_data(page):
    text = page.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def saved(key, rater, choices):
    """Return what the page saves, of choices by item."""
    return {
        "doodl_study": 1, "study": key["study"], "kind": key["kind"], "rater": rater,
        "choices": [{"item": i, "choice": c, "seconds": 1.0} for i, c in choices.items()],
    }  # fmt: skip


def by_method(key, wanted):
    """Return the side to press for each item so that the choices are of these methods."""
    sides = {}
    for (item, entry), method in zip(key["items"].items(), wanted, strict=True):
        side = "left" if entry["left"] == method else "right"
        sides[item] = "draw" if method == "draw" else side
    return sides


def test_the_page_tells_nothing_of_what_is_what(pairs):
    page, key = pairs
    text = page.read_text()
    assert set(page_data(page)) == {"study", "kind", "question", "items", "levels"}
    for word in ("before", "after", "row_id", "IMG_", "shoot", "_key", *UGLY):
        assert word not in json.dumps(page_data(page))
    assert "-before.jpg" not in text
    assert {path.name for path in page.parent.iterdir()} == {"index.html", "pictures"}
    assert sorted(key["methods"]) == ["after", "before"]


def test_left_and_right_are_drawn_evenly_and_a_seed_draws_the_same_rows(root, edited, pairs):
    _, key = pairs
    sides = [entry["left"] for entry in key["items"].values()]
    assert sides.count("before") == sides.count("after") == 5
    build_pairwise(Wanted(str(edited), number=10), root / "again")
    again = read_key(root / "again")
    assert again["items"] == key["items"]
    other = build_pairwise(Wanted(str(edited), number=10, seed=1), root / "other").parent.parent
    rows = [{e["row_id"] for e in read_key(f)["items"].values()} for f in (root / "again", other)]
    assert rows[0] != rows[1]


def test_two_runs_can_be_set_against_each_other(root, edited):
    other = finished_folder(root, 24, name="other", seed=5)
    page = build_pairwise(Wanted(str(edited), str(other)), root / "runs")
    key = read_key(root / "runs")
    assert key["methods"] == ["against", "out"]
    assert len(page_data(page)["items"]) == len(key["items"]) > 5


def test_a_folder_of_other_files_is_left_alone(root, edited, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OriginalError, match="other files"):
        build_pairwise(Wanted(str(edited)), tmp_path)
    with pytest.raises(ManifestError, match="no subjects"):
        build_rating(Wanted(str(edited)), root / "no")
    with pytest.raises(StudyError, match="no study"):
        read_key(tmp_path)


@needs_browser
def test_pairs_are_judged_by_keys_and_saved_as_json_that_gives_the_figures(
    browser, root, pairs, capsys
):
    from selenium.webdriver import Keys

    page, key = pairs
    browser.get(page.as_uri())
    wait(browser, "document.documentElement.dataset.ready === 'true'")
    browser.find_element("id", "rater").send_keys("Ä/..\\ nna", Keys.ENTER)
    wait(browser, "!document.getElementById('task').hidden")
    pictures = {item["left"]: item["id"] for item in page_data(page)["items"]}
    wanted = dict(zip(key["items"], ["after"] * 6 + ["draw"] * 2 + ["before"] * 2, strict=True))
    presses = {"left": Keys.ARROW_LEFT, "right": Keys.ARROW_RIGHT, "draw": Keys.ARROW_DOWN}
    for _ in range(10):
        wait(browser, "[...document.images].every((i) => i.naturalWidth > 0)")
        shown = browser.find_element("css selector", "#pictures img").get_attribute("src")
        item = pictures["pictures/" + shown.rsplit("/", 1)[1]]
        entry, method = key["items"][item], wanted[item]
        side = "draw" if method == "draw" else "left" if entry["left"] == method else "right"
        keys(browser, presses[side])
    assert browser.find_element("id", "summary").text == "10 of 10 answered."
    # Back and again: the later word stands, and nothing is counted twice.
    browser.find_element("id", "review").click()
    keys(browser, "s", Keys.BACKSPACE)
    browser.get(page.as_uri())
    browser.find_element("id", "begin").click()  # the name and the place are remembered
    keys(browser, *["s"] * 10)
    path = download(browser, root)
    assert json.loads(path.read_text())["rater"] == "Ä/..\\ nna"
    assert show_human(root / "pairs", [path], 3, as_json=True) == exits.OK
    figures = json.loads(capsys.readouterr().out)
    assert figures["aggregate"] == {"win": 6, "draw": 2, "loss": 2, "undecided": 0}
    assert figures["score"]["mean"] == pytest.approx(0.7)
    assert complaints(browser) == []


def download(browser, root):
    """Press the save button at the end of a study and return the file."""
    folder = root / "profile" / "downloads"
    before = set(folder.glob("*.json"))
    browser.find_element("css selector", "#end .save").click()
    end = time.monotonic() + 30
    while not (new := set(folder.glob("*.json")) - before):
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.05)
    return new.pop()


@needs_browser
def test_likeness_is_rated_on_four_levels_and_told_by_method(browser, root, likeness, capsys):
    from selenium.webdriver import Keys

    page, key = likeness
    browser.get(page.as_uri())
    browser.find_element("id", "rater").send_keys("ben", Keys.ENTER)
    pictures = {item["picture"]: item["id"] for item in page_data(page)["items"]}
    for _ in range(6):
        wait(browser, "[...document.images].every((i) => i.naturalWidth > 0)")
        assert len(browser.find_elements("css selector", ".subjects img")) == 2
        assert "<script>" in browser.find_element("id", "prompt").text
        shown = browser.find_elements("css selector", "#pictures > figure > img")[-1]
        item = pictures["pictures/" + shown.get_attribute("src").rsplit("/", 1)[1]]
        level = 4 if key["items"][item]["method"] == "guided" else 2
        if level == 4:
            keys(browser, "4")
        else:
            browser.find_element("css selector", "[data-choice='2']").click()
    path = download(browser, root)
    assert show_human(root / "rating", [path], 3, as_json=True) == exits.OK
    guided, unguided = json.loads(capsys.readouterr().out)["methods"]
    assert (guided["method"], guided["counts"]) == ("guided", [0, 0, 0, 3])
    assert (unguided["counts"], unguided["aggregate"]) == ([0, 3, 0, 0], 0)
    assert complaints(browser) == []
    assert browser.execute_script("return window.hacked") is None


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_study_pages_stand_out_in_both_themes(browser, pairs, likeness, theme):
    from selenium.webdriver import Keys

    for page, _ in (pairs, likeness):
        browser.get(page.as_uri())
        set_theme(browser, theme)
        assert browser.execute_script(CONTRAST)[1] == []
        browser.find_element("id", "rater").send_keys(f"looker {theme}", Keys.ENTER)
        wait(browser, "!document.getElementById('task').hidden")
        measured, faint = browser.execute_script(CONTRAST)
        assert measured > 8
        assert faint == []
        assert all(browser.execute_script("return [...document.images].map((i) => i.alt)"))


def test_a_recorded_set_of_choices_gives_majority_unanimous_and_aggregate(
    root, pairs, tmp_path, capsys
):
    _, key = pairs
    rng = random.Random(0)
    sure = ["after"] * 4 + ["before"] * 2 + ["draw"] * 2
    for rater in ("anna", "ben", "carla"):
        doubtful = ["after", "after" if rater != "carla" else "before"]
        choices = by_method(key, [*sure, *doubtful])
        items = list(choices.items())
        rng.shuffle(items)
        (tmp_path / f"{rater}.json").write_text(json.dumps(saved(key, rater, dict(items))))
    assert show_human(root / "pairs", [tmp_path], 3, as_json=True) == exits.OK
    figures = json.loads(capsys.readouterr().out)
    assert figures["raters"] == 3
    assert figures["majority"] == {"win": 6, "draw": 2, "loss": 2, "undecided": 0}
    assert figures["unanimous"] == {"win": 5, "draw": 2, "loss": 2, "undecided": 1}
    assert figures["aggregate"] == {"win": 17, "draw": 6, "loss": 7, "undecided": 0}
    assert figures["kappa"] > 0.8
    assert show_human(root / "pairs", [tmp_path], 3, as_json=False) == exits.OK
    shown = capsys.readouterr().out
    assert "after against before: 10 pairs, 3 raters" in shown
    assert "17 (56.7%)" in shown


def test_ratings_of_several_people_are_told_by_method(root, likeness, tmp_path, capsys):
    _, key = likeness
    levels = {"anna": (4, 1), "ben": (3, 2), "carla": (2, 3)}
    for rater, (guided, unguided) in levels.items():
        choices = {
            item: guided if entry["method"] == "guided" else unguided
            for item, entry in key["items"].items()
        }
        (tmp_path / f"{rater}.json").write_text(json.dumps(saved(key, rater, choices)))
    show_human(root / "rating", [tmp_path], 3, as_json=True)
    first, second = json.loads(capsys.readouterr().out)["methods"]
    assert (first["majority"], first["unanimous"]) == (1, 0)
    assert first["aggregate"] == pytest.approx(2 / 3)
    assert (second["majority"], second["mean"]["mean"]) == (0, 2)
    show_human(root / "rating", [tmp_path], 3, as_json=False)
    assert LEVELS[2] in capsys.readouterr().out


def spoilt(key, **changes):
    item = next(iter(key["items"]))
    return {**saved(key, "x", {item: "left"}), **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"study": "0" * 16}, "another study"),
        ({"kind": "rating"}, "another study"),
        ({"doodl_study": 2}, "not what a study's page saves"),
        ({"choices": {}}, "not what a study's page saves"),
        ({"choices": [{"item": "nothing", "choice": "left"}]}, "cannot have made"),
        ({"choices": [{"item": ["x"], "choice": "left"}]}, "cannot have made"),
        ({"choices": []}, "no choice"),
    ],
)
def test_files_that_are_not_this_studys_are_refused(root, pairs, tmp_path, changes, words):
    path = tmp_path / "choices.json"
    path.write_text(json.dumps(spoilt(pairs[1], **changes)))
    with pytest.raises((exits.UsageError, StudyError), match=words):
        show_human(root / "pairs", [path], 3, as_json=False)


@pytest.mark.parametrize("choice", ["up", 1, None, ["left"]])
def test_choices_that_no_page_offers_are_refused(root, pairs, tmp_path, choice):
    item = next(iter(pairs[1]["items"]))
    path = tmp_path / "choices.json"
    path.write_text(json.dumps(saved(pairs[1], "x", {item: choice})))
    with pytest.raises(StudyError, match="cannot have made"):
        show_human(root / "pairs", [path], 3, as_json=False)
