"""The service as a process: in a real browser, killed and started again, ended when told to."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from serving_cases import FakeIndex, events, write_export, write_run

SERVE = Path(__file__).parent / "serving_process.py"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 90


class Server:
    """`tfrs-negatives serve` of runs that `serving_cases` wrote."""

    def __init__(self, *arguments):
        command = [sys.executable, "-u", str(SERVE), "serve", *map(str, arguments), "--port", "0"]
        root = str(Path(__file__).parents[1])
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.address, self.lines = None, []
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"serving .* at (http://\S+)", line):
                self.address = found.group(1)
                break

    def recommend(self, **body):
        answer = httpx.post(f"{self.address}/recommend", json=body, timeout=SECONDS)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def await_export(self, created):
        end = time.monotonic() + SECONDS
        while self.recommend(query_id="u1", k=1)["export"]["created"] != created:
            assert time.monotonic() < end, f"{created} did not take over"
            time.sleep(0.05)

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return write_run(folder / "first"), write_run(folder / "second", offset=3, seed=1)


@pytest.fixture(scope="module")
def server(runs):
    server = Server(runs[0], "--beside", runs[1])
    yield server
    assert server.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The service is ours, and containers have no sandbox.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


def best_titles(user, k, **export):
    index = FakeIndex(**export)
    scores = {i: float(v @ index.users[int(user[1:])]) for i, v in index.vectors.items()}
    return [f"<b>Film & {i}</b> ({i})" for i in sorted(scores, key=lambda i: -scores[i])[:k]]


@pytest.mark.slow
def test_the_page_in_a_browser(server, browser):
    page = browser.new_page()
    problems, hosts = [], set()
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    page.goto(server.address)
    page.wait_for_selector("#known option", state="attached")
    assert page.locator("#known option").count() == 20
    page.fill("#query", "u3")
    page.select_option("#k", "5")
    page.keyboard.press("Tab")
    page.click("text=Recommend")
    page.wait_for_selector("#history li")
    history = page.locator("#history .name").all_inner_texts()
    chosen = {f"<b>Film & {item}</b> ({item})" for user, item, _ in events() if user == "u3"}
    assert set(history) <= chosen
    assert len(history) >= 4
    columns = page.locator("section.run")
    assert columns.locator("h2").all_inner_texts() == ["first", "second"]
    shown = []
    for column, export in enumerate(({}, {"offset": 3, "seed": 1})):
        names = columns.nth(column).locator(".name").all_inner_texts()
        shown.append([name.removesuffix("both").strip() for name in names])
        # Titles are shown as text: the tags in them are no tags.
        assert shown[-1] == best_titles("u3", 5, **export)
    both = set(shown[0]) & set(shown[1])
    assert page.locator("li.both").count() == 2 * len(both)
    assert page.locator("section.run .popularity").count() == 10
    page.check("#exclude-seen")
    # Of the thirty items the five that were chosen do not come back.
    page.select_option("#k", "50")
    page.wait_for_selector("section.run >> nth=1 >> li:nth-child(20)")
    names = page.locator("section.run .name").all_inner_texts()
    assert not set(history) & {name.removesuffix("both").strip() for name in names}
    page.fill("#query", "nobody")
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem:not([hidden])")
    assert "nobody" in page.inner_text("#problem")
    # The browser itself notes the two answers of 404, one of each run, and that of the history.
    assert [text for text in problems if "404" not in text] == []
    assert hosts == {urlsplit(server.address).netloc}


@pytest.mark.slow
def test_the_page_on_a_narrow_window(server, browser):
    page = browser.new_page(viewport={"width": 380, "height": 800})
    page.goto(server.address)
    page.wait_for_selector("#known option", state="attached")
    page.fill("#query", "u3")
    page.keyboard.press("Enter")
    page.wait_for_selector("section.run li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


@pytest.mark.slow
def test_killed_and_started_again_it_serves_the_last_complete_export(tmp_path):
    folder = write_run(tmp_path / "first")
    server = Server(folder)
    assert server.recommend(query_id="u1", k=1)["export"]["created"] == "export 0"
    write_export(folder / "index", offset=50)
    server.await_export("export 50")
    # An export that never became complete, and one that was being put in place.
    half = shutil.copytree(folder / "index", folder / ".index.draft-1")
    (half / "manifest.json").unlink()
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    server = Server(folder)
    answer = server.recommend(query_id="u1", k=3)
    assert answer["export"]["created"] == "export 50"
    assert all(abs(item["score"] - 50) < 20 for item in answer["items"])
    assert server.end(signal.SIGTERM) == 0
