"""The page in a browser: a file is given, the button pressed, the answer read; where Chromium is installed."""

import importlib.util
import shutil

import pytest
import soundfile
from conftest import noise
from heard_models import save_model

if importlib.util.find_spec("gradio") is None or importlib.util.find_spec("playwright") is None:
    pytest.skip("gradio and playwright are not both installed", allow_module_level=True)
if shutil.which("chromium") is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright

from usam.generate import Answerer
from usam.serving.page import served
from usam.serving.page_answers import Limits, Listener

WAIT = 60_000  # milliseconds, on a busy machine
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def listeners(tmp_path_factory):
    folders = [save_model(tmp_path_factory.mktemp("model"), seed) for seed in (0, 1)]
    limits = Limits(seconds=5, clips=2, tokens=4)
    return [Listener(f"model {i}", Answerer.load(folder), limits) for i, folder in enumerate(folders)]


@pytest.fixture(scope="module")
def page(listeners):
    """The page in a window as narrow as a telephone; what goes wrong in it, and whom it asks, is in `page.seen`."""
    with served(listeners, with_examples=False) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.set_default_timeout(WAIT)
        page.faults, page.asked = [], set()
        page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
        page.on("response", lambda answer: page.faults.append(answer.url) if answer.status >= 400 else None)
        page.on("request", lambda request: page.asked.add(request.url.split("/")[2]) if "//" in request.url else None)
        page.goto(url)
        yield page
        assert [fault for fault in page.faults if "Waveform" not in fault] == []  # what is no sound has none
        assert page.asked == {url.split("/")[2]}
        browser.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    file = tmp_path_factory.mktemp("clip") / "a.wav"
    soundfile.write(file, noise(1.2), 16000)
    return file


@pytest.fixture(scope="module")
def expected(listeners, clip):
    """What each answers, by task; a box of text shows neither the end of a line nor what is no character."""
    return {
        task: [
            next(one.answerer.answer([one.answerer.ask(str(clip), task=task)], max_new_tokens=4)) for one in listeners
        ]
        for task in ("asr", "aac")
    }


def give(panel, file):
    panel.locator("input[type=file]").first.set_input_files(file)
    panel.get_by_label("Clear").first.wait_for()


def test_a_file_a_task_and_the_button_give_an_answer(page, clip, expected):
    panel = page.get_by_role("tabpanel")
    panel.get_by_label("asr").check()
    expect(panel.get_by_label("Question")).to_have_value("Transcribe this audio.")
    give(panel, clip)
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(panel.locator("#answer textarea")).to_have_value(expected["asr"][0], timeout=WAIT)
    panel.locator("#answer-figures svg").nth(1).wait_for()
    assert "1.20 s" in panel.locator("#answer-timing").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


def test_what_is_no_sound_is_said_in_place_of_an_answer(page, tmp_path):
    (tmp_path / "words.wav").write_text("no sound at all")
    panel = page.get_by_role("tabpanel")
    panel.get_by_label("Clear").first.click()
    give(panel, tmp_path / "words.wav")
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(panel.get_by_role("alert")).to_contain_text("words.wav: not audio", timeout=WAIT)
    assert panel.locator("#answer-figures svg").count() == 0


def test_two_models_answer_the_same_question(page, clip, expected):
    page.get_by_role("tab", name="Compare two models").click()
    panel = page.get_by_role("tabpanel")
    panel.get_by_label("Question").fill("Describe the sounds.")
    expect(panel.get_by_label("aac")).to_be_checked()
    give(panel, clip)
    panel.get_by_role("button", name="Ask both").click()
    for place, text in zip(("first", "second"), expected["aac"], strict=True):
        expect(panel.locator(f"#answer-{place} textarea")).to_have_value(text, timeout=WAIT)
        panel.locator(f"#answer-{place}-figures svg").nth(1).wait_for()
