"""The pages as a reader sees them, in headless Chromium."""

import pytest

from appssl.reports.index import write_index

pytestmark = pytest.mark.browser
PAGE = "wearable/tiny/s0/report/report.html"


def assert_sound(browser) -> None:
    """Nothing loaded from elsewhere, every image shown, no script run, nothing wider than the window, no complaint."""
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length"
        )
        == 0
    )
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.title != "taken"
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_report_of_classification_opens_whole_and_links_to_times(browser, results):
    browser.get((results / PAGE).as_uri())
    assert browser.title == "wearable/tiny, seed 0"
    assert_sound(browser)
    assert len(browser.find_elements("css selector", "figure img")) == 6
    assert "macro F1 is" in browser.find_element("css selector", ".lead").text
    for link in browser.find_elements("css selector", "nav a"):
        anchor = link.get_attribute("href").rpartition("#")[2]
        assert browser.find_element("id", anchor).text == link.text
    closed = browser.find_element("xpath", "//details[summary[text()='Examples of reasons']]")
    assert not closed.find_element("css selector", "table").is_displayed()
    closed.find_element("css selector", "summary").click()
    assert '<script>document.title="taken"</script>' in closed.find_element("css selector", "table").text
    browser.find_element("link text", "Times and machine").click()
    assert browser.title == "Times of wearable/tiny, seed 0"
    assert_sound(browser)


def test_report_of_ranking_and_index_open_whole(browser, results):
    browser.get(write_index(results).as_uri())
    assert_sound(browser)
    browser.find_element("link text", "tiny_rank").click()
    assert browser.title == "recsys/tiny_rank, seed 0"
    assert_sound(browser)


def test_report_is_readable_on_a_small_screen(browser, results):
    browser.set_window_size(500, 900)
    browser.get((results / PAGE).as_uri())
    assert_sound(browser)
