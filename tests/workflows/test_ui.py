"""What people look at: the report and the MLflow UI, in a real browser."""

import subprocess
import sys
import time
import urllib.request

import pytest

from tests.commands import environment
from tests.reports.conftest import browser

pytestmark = pytest.mark.slow  # every test runs whole commands

__all__ = ["browser"]


@pytest.fixture
def ui(finished):
    command = [sys.executable, "-m", "appssl", "ui", "--port", "5310"]
    process = subprocess.Popen(
        command,
        cwd=finished,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    page = process.stdout.readline().split("  (")[0].split()[-1]
    address = page.partition("/#")[0]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1).close()
            break
        except OSError:
            time.sleep(0.3)
    yield address, page
    subprocess.run(["pkill", "-TERM", "-s", str(process.pid)], check=False)
    process.wait(timeout=30)


def seen(browser, text, seconds=60):
    """Whether a text appears on the page within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if text in browser.find_element("tag name", "body").text:
            return True
        time.sleep(0.5)
    return False


@pytest.mark.browser
def test_the_mlflow_ui_shows_the_child_runs(ui, finished, browser):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("appssl/wearable")
    address, page = ui
    browser.get(page)
    assert seen(browser, "appssl/wearable")
    browser.get(f"{address}/#/experiments/{experiment.experiment_id}/runs")
    assert seen(browser, "chain/s0")
    child = next(r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == "evaluate")
    browser.get(f"{address}/#/experiments/{experiment.experiment_id}/runs/{child.info.run_id}")
    assert seen(browser, "evaluate")
    assert seen(browser, "chain/s0")  # the parent


@pytest.mark.browser
def test_the_report_of_a_run_opens_without_network_or_errors(finished, browser):
    browser.get((finished / "results/wearable/chain/s0/report/report.html").as_uri())
    text = browser.find_element("tag name", "body").text
    assert "chain" in text
    assert "kept" in text
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
