"""The review page as a reviewer uses it, in headless Chromium: served and decided by keyboard, and from the disk."""

import multiprocessing
import threading
import time

import polars as pl
import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from appssl.reports.review_server import ReviewServer
from appssl.stages.review import review
from tests.judged import AWKWARD, EVIL, RUN, write_results
from tests.stages.test_review import near

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("built"))


@pytest.fixture
def made(built, tmp_path):
    out = tmp_path / "review"
    near(
        out,
        (1, "i0", "train", "red", 0.991, "t0", True),
        (1, "t0", "test", "red", 0.991, "i0", True),
        (2, "i2", "train", "blue", 0.98, "i5", False),
        (2, "i5", "train", "blue", 0.98, "i2", False),
    )
    return review(built / RUN, out)


@pytest.fixture
def served(made):
    with ReviewServer(made.page.read_bytes(), made.decisions, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def press(browser, *keys):
    ActionChains(browser).send_keys(*keys).perform()


def current(browser):
    found = browser.find_elements("css selector", ".card[aria-current]")
    assert len(found) == 1
    return found[0].get_attribute("data-id")


def wait(browser, name, text):
    deadline = time.monotonic() + 60
    while browser.find_element("id", name).text != text:
        assert time.monotonic() < deadline, browser.find_element("id", name).text
        time.sleep(0.05)


def complaints(browser):
    """What the browser refused or failed at, since it was last asked."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def assert_sound(browser):
    """The policy holds and is not broken by the page itself, nothing was loaded from elsewhere, all images show."""
    assert complaints(browser) == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:") and not name.endswith("/decisions")] == []
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.title == "Review of webnoisy/tiny, seed 0"  # which EVIL would have changed
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_three_images_are_decided_by_keyboard_and_still_are_after_a_reload(browser, served, made):
    browser.get(served.address)
    wait(browser, "count", "0 of 6 decided")
    assert current(browser) == "i1"
    press(browser, "s")  # the labeler's suggestion, blue
    assert current(browser) == AWKWARD
    press(browser, "k")
    assert current(browser) == "i2"
    press(browser, "i")
    assert current(browser) == "i4"
    wait(browser, "saved", "all saved")
    rows = [(AWKWARD, "keep", "blue"), ("i1", "relabel", "blue"), ("i2", "irrelevant", None)]
    assert pl.read_csv(made.decisions.path).rows() == rows
    browser.refresh()
    wait(browser, "count", "3 of 6 decided")
    marks = {card.get_attribute("data-id"): card.text for card in browser.find_elements("css selector", ".decided")}
    assert {name: text.splitlines()[-1] for name, text in marks.items()} == {
        "i1": "→ blue", AWKWARD: "keep", "i2": "irrelevant",
    }  # fmt: skip
    assert current(browser) == "i4"
    assert pl.read_csv(made.decisions.path).rows() == rows
    assert_sound(browser)


def test_another_class_a_number_undo_and_arrows(browser, served, made):
    browser.get(served.address)
    wait(browser, "count", "0 of 6 decided")
    press(browser, "c")
    press(browser, "re", Keys.ENTER)  # the only class that begins so
    press(browser, "2")  # the second class, blue: of AWKWARD that is to keep it
    press(browser, "d", "u", "u")
    assert current(browser) == AWKWARD
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert current(browser) == "i2"
    press(browser, "1")  # the first class: hostile text, and only text
    press(browser, "c", Keys.ESCAPE)
    assert not browser.find_element("id", "picker").is_displayed()
    wait(browser, "saved", "all saved")
    assert pl.read_csv(made.decisions.path).rows() == [("i1", "keep", "red"), ("i2", "relabel", EVIL)]
    for _ in range(9):  # more than was done
        press(browser, "u")
    wait(browser, "count", "0 of 6 decided")
    wait(browser, "saved", "all saved")
    assert pl.read_csv(made.decisions.path).is_empty()
    assert_sound(browser)


KEYS_IN_ONE_FRAME = """
    const press = (key) => document.activeElement.dispatchEvent(
        new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
    for (const key of arguments[0]) press(key);
"""


@pytest.mark.parametrize("end", ["Enter", "Escape"])
def test_no_key_is_lost_while_the_picker_closes(browser, served, end):
    browser.get(served.address)
    wait(browser, "count", "0 of 6 decided")
    browser.execute_script(KEYS_IN_ONE_FRAME, ["c", end, "i", "d"])  # before the browser takes the focus from what hid
    wait(browser, "count", f"{3 if end == 'Enter' else 2} of 6 decided")
    assert not browser.find_element("id", "picker").is_displayed()


def test_filters_show_a_kind_a_label_and_what_is_open(browser, served):
    browser.get(served.address)
    wait(browser, "count", "0 of 6 decided")

    def shown(**values):
        for name, value in values.items():
            Select(browser.find_element("id", name)).select_by_value(value)
        return [card.get_attribute("data-id") for card in browser.find_elements("css selector", ".card")]

    assert shown(kind="id_noise") == ["i1", AWKWARD]
    assert shown(label="blue") == [AWKWARD]
    press(browser, "i")
    assert shown(kind="", label="", state="decided") == [AWKWARD]
    assert shown(state="open") == ["i1", "i2", "i4", "i0", "i5"]
    assert shown(kind="ood_noise", label="red") == []
    assert browser.find_element("id", "empty").is_displayed()
    press(browser, "i", "k", "d", "u")  # nothing is selected: only the undo does something
    wait(browser, "saved", "all saved")
    wait(browser, "count", "0 of 6 decided")


def test_near_duplicates_across_parts_are_red_and_can_be_left_out(browser, served, made):
    browser.get(served.address)
    wait(browser, "count", "0 of 6 decided")
    card = browser.find_element("css selector", ".card[data-id=i0]")
    assert card.find_element("css selector", ".badge.bad").text == "leak"
    browser.find_element("id", "view-groups").click()
    wait(browser, "count", "0 of 4 decided")
    groups = browser.find_elements("css selector", ".group")
    assert [group.find_element("tag name", "h2").text for group in groups] == [
        "Group 1 · similarity 0.991leak: train and test", "Group 2 · similarity 0.980",
    ]  # fmt: skip
    red = browser.execute_script("return getComputedStyle(document.querySelector('h2 .bad')).color")
    assert red == "rgb(179, 54, 43)"  # the report's --bad
    press(browser, "d")
    assert current(browser) == "t0"  # an image of the test part, which was not judged
    press(browser, Keys.ARROW_DOWN)
    assert current(browser) == "i5" or current(browser) == "i2"
    wait(browser, "saved", "all saved")
    assert pl.read_csv(made.decisions.path).rows() == [("i0", "duplicate", None)]
    assert_sound(browser)


def test_a_server_that_is_gone_is_told_and_nothing_decided_is_lost(browser, made):
    server = ReviewServer(made.page.read_bytes(), made.decisions, port=0)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever)
    process.start()
    server.server_close()  # this process's own handle
    browser.get(server.address)
    wait(browser, "count", "0 of 6 decided")
    process.kill()  # with the connections that the browser opened in advance: a thread would still answer these
    process.join()
    press(browser, "i")
    wait(browser, "problem", "Not saved: the server does not answer. Is 'appssl review' still running?")
    assert browser.find_element("id", "saved").text == "1 being saved"
    assert browser.find_element("id", "download").is_displayed()
    again = ReviewServer(b"", made.decisions, port=server.server_address[1])
    again.token = server.token
    thread = threading.Thread(target=again.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        browser.find_element("id", "retry").click()
        wait(browser, "saved", "all saved")
        assert pl.read_csv(made.decisions.path).rows() == [("i1", "irrelevant", None)]
        assert not browser.find_element("id", "alert").is_displayed()
    finally:
        again.shutdown()
        thread.join()
        again.server_close()


def test_from_the_disk_the_same_table_is_downloaded(browser, made, built, tmp_path):
    made.decisions.decide(AWKWARD, "irrelevant", None)
    made.decisions.decide("i4", "keep", None)
    page = review(built / RUN, made.page.parent).page  # with the decisions so far
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "got")})
    browser.get(page.as_uri())
    wait(browser, "count", "2 of 6 decided")
    press(browser, "s")
    wait(browser, "saved", "1 not downloaded")
    browser.find_element("id", "download").click()
    wait(browser, "saved", "")
    got = tmp_path / "got" / "decisions.csv"
    deadline = time.monotonic() + 60
    while not got.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    made.decisions.decide("i1", "relabel", "blue")
    assert got.read_bytes() == made.decisions.path.read_bytes()
    assert_sound(browser)


def test_it_is_usable_on_a_small_screen(browser, made):
    browser.set_window_size(500, 900)
    browser.get(made.page.as_uri())
    wait(browser, "count", "0 of 6 decided")
    browser.find_element("id", "irrelevant").click()
    wait(browser, "count", "1 of 6 decided")
    assert_sound(browser)
