"""A page to try models on: sound and a question in; the answer, and what the model heard, out."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from threading import Event, Thread
from typing import Any

import gradio as gr
from gradio.themes.utils.fonts import LocalFont
from starlette.middleware import Middleware

from usam.report.drawing import matplotlib
from usam.serving.page_answers import OWN_WORDS, Limits, Listener, Told
from usam.serving.page_door import Door, sweep
from usam.serving.page_examples import MISSING, Example, examples
from usam.serving.page_figures import figures, message, timing

SWEPT = 600  # seconds between two looks for files that nobody needs any more
STYLE = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.gradio-container footer { display: none !important; }
.usam-head h1 { font-size: 1.5rem; font-weight: 600; margin: .4rem 0 0; }
.usam-head p, .usam-foot, .usam-timing dt, .usam-figures p, .usam-figures figcaption { opacity: .75; }
.usam-head p, .usam-foot { margin: .2rem 0 0; max-width: 60rem; }
.usam-foot { font-size: .85rem; }
.usam-fault { border-left: .3rem solid var(--error-border-color); background: var(--background-fill-secondary);
  padding: .6rem .8rem; margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
.usam-note { margin: 0; overflow-wrap: anywhere; }
.usam-timing { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .6rem 1rem;
  margin: 0; }
.usam-timing dt { font-size: .8rem; }
.usam-timing dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.usam-figures section + section { margin-top: 1rem; }
.usam-figures h3 { font-size: 1rem; font-weight: 600; margin: 0; }
.usam-figures p { font-size: .9rem; margin: .1rem 0 .3rem; }
.usam-figures figure { margin: 0 0 .6rem; max-width: 34rem !important; }
.usam-figures figcaption { font-size: .85rem; line-height: 1.4; }
.usam-figures svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
.dark .usam-figures svg { filter: invert(1) hue-rotate(180deg); }
@media (max-width: 640px) { .gradio-container .main.fillable { padding: .4rem .4rem 1rem !important; } }
"""


@contextmanager
def served(
    listeners: Sequence[Listener],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    root_path: str = "",
    share: bool = False,
    open_browser: bool = False,
    queue: int = 16,
    concurrency: int = 1,
    with_examples: bool = True,
) -> Iterator[str]:
    """The page at the address that is given, until the context is left; what visitors uploaded is gone then.

    Args:
        listeners: models by different names, under the same limits; two are compared.
        host, port: where it listens; port 0 is any that is free.
        root_path: under which a reverse proxy shows it, such as /usam.
        share: through Gradio's tunnel, on a public address.
        open_browser: in the browser of this machine.
        queue: questions that wait at most; further ones are refused.
        concurrency: questions that are answered at once.
        with_examples: make example clips.

    Raises:
        OSError: the port is taken.
        ComponentError: matplotlib is not installed.
    """
    port = _free(host, port)
    matplotlib()  # takes seconds, which no visitor shall wait
    with tempfile.TemporaryDirectory(prefix="usam-web-") as made, _apart(Path(made) / "uploads"):
        folder = Path(made)
        given, note = _examples(folder / "world") if with_examples else ([], "")
        known = {example.key: example.known for example in given}
        for listener in listeners:
            listener.known = {**listener.known, **known}
        blocks = page(listeners, given, note, concurrency=concurrency, share=share)
        blocks.queue(max_size=queue, api_open=False, default_concurrency_limit=concurrency)
        largest = listeners[0].limits.megabytes * 1_000_000
        door = Middleware(Door, folder=folder / "uploads", largest=largest)
        done = Event()
        Thread(target=_swept, args=(folder / "uploads", done), daemon=True).start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                _, url, shared = blocks.launch(
                    server_name=host, server_port=port, root_path=root_path, share=share,
                    inbrowser=open_browser, inline=False, quiet=True, prevent_thread_lock=True, show_error=False,
                    allowed_paths=[], max_file_size=largest, enable_monitoring=False, run_history=False,
                    footer_links=[], ssr_mode=False, pwa=False, mcp_server=False, theme=_theme(), css=STYLE,
                    app_kwargs={"middleware": [door], "docs_url": None, "redoc_url": None},
                )  # fmt: skip
            yield shared or url
        finally:
            done.set()
            blocks.close(verbose=False)


def page(
    listeners: Sequence[Listener],
    given: Sequence[Example] = (),
    note: str = "",
    *,
    concurrency: int = 1,
    share: bool = False,
) -> gr.Blocks:
    """The page itself; `note` stands where examples would, if there are none."""
    run: dict[str, Any] = {
        "concurrency_limit": concurrency, "concurrency_id": "answers", "api_visibility": "private",
        "show_progress": "minimal",
    }  # fmt: skip
    with gr.Blocks(title=f"usam: {listeners[0].name}", analytics_enabled=False) as blocks:
        gr.HTML(_head(listeners))
        with gr.Tab("Ask a model"):
            _ask(listeners, given, note, run)
        with gr.Tab("Compare two models"):
            if len(listeners) > 1:
                _compare(listeners, given, note, run)
            else:
                gr.Markdown("Start the page with two models to compare them: `usam web MODEL OTHER`.")
        gr.HTML(_foot(listeners[0].limits, share))
    return blocks


def _ask(listeners: Sequence[Listener], given: Sequence[Example], note: str, run: Mapping[str, Any]) -> None:
    by_name = {listener.name: listener for listener in listeners}
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            clips, taken = _clips(listeners[0].limits, given, note)
            task, prompt, prompts = _words(listeners)
            name = gr.Dropdown(list(by_name), value=listeners[0].name, label="Model", visible=len(by_name) > 1)
            with gr.Row():
                button = gr.Button("Ask", variant="primary", scale=3, min_width=120)
                stop = gr.Button("Stop", scale=1, min_width=80)
        with gr.Column(scale=3, min_width=320):
            shown = _shown("Answer", "answer")
    _take(taken, given, clips, task, prompt, prompts)

    def answer(name: str, prompt: str, *files: str | None) -> Iterator[tuple[Any, ...]]:
        yield ("",) * 4
        for told in by_name[name].told(files, prompt):
            yield _outputs(told, name, "a")

    asked = gr.on([button.click, prompt.submit], answer, [name, prompt, *clips], shown, **run)
    stop.click(None, cancels=[asked])


def _compare(listeners: Sequence[Listener], given: Sequence[Example], note: str, run: Mapping[str, Any]) -> None:
    by_name = {listener.name: listener for listener in listeners}
    names = list(by_name)
    with gr.Row():
        with gr.Column(min_width=320):
            clips, taken = _clips(listeners[0].limits, given, note)
        with gr.Column(min_width=320):
            task, prompt, prompts = _words(listeners)
            left = gr.Dropdown(names, value=names[0], label="First model")
            right = gr.Dropdown(names, value=names[1], label="Second model")
            with gr.Row():
                button = gr.Button("Ask both", variant="primary", scale=3, min_width=120)
                stop = gr.Button("Stop", scale=1, min_width=80)
    with gr.Row():
        with gr.Column(min_width=320):
            first = _shown("Answer of the first", "answer-first")
        with gr.Column(min_width=320):
            second = _shown("Answer of the second", "answer-second")
    _take(taken, given, clips, task, prompt, prompts)

    def answer(left: str, right: str, prompt: str, *files: str | None) -> Iterator[tuple[Any, ...]]:
        same = [gr.skip()] * 4
        yield ("",) * 8
        for told in by_name[left].told(files, prompt):
            yield (*_outputs(told, left, "b"), *same)
        for told in by_name[right].told(files, prompt):
            yield (*same, *_outputs(told, right, "c"))

    asked = gr.on([button.click, prompt.submit], answer, [left, right, prompt, *clips], [*first, *second], **run)
    stop.click(None, cancels=[asked])


def _clips(limits: Limits, given: Sequence[Example], note: str) -> tuple[list[Any], Any]:
    """Where clips are given, and the examples, if there are any."""
    clips = [_clip("Sound")]
    if limits.clips > 1:
        with gr.Accordion("More clips, for a question about several", open=False):
            clips += [_clip(f"Sound {number}") for number in range(2, limits.clips + 1)]
    if not given:
        if note:
            gr.Markdown(note)
        return clips, None
    labels = [example.label for example in given]
    taken = gr.Dataset(
        label="Or take an example", components=[gr.Textbox(visible=False)], samples=[[label] for label in labels],
        sample_labels=labels, samples_per_page=len(labels), type="index",
    )  # fmt: skip
    return clips, taken


def _words(listeners: Sequence[Listener]) -> tuple[Any, Any, dict[str, str]]:
    """Where a task is chosen or a question is written, and the instructions by task."""
    prompts: dict[str, str] = {}
    for listener in listeners:  # the first one's words, where two have a task
        prompts = listener.prompts | prompts
    task = gr.Radio([*prompts, OWN_WORDS], value=next(iter(prompts), OWN_WORDS), label="Task", visible=bool(prompts))
    prompt = gr.Textbox(
        next(iter(prompts.values()), ""), label="Question", lines=2, max_lines=6,
        max_length=listeners[0].limits.letters,
        placeholder="What do you want to know? <audio> says where a clip stands.",
    )  # fmt: skip
    words = json.dumps(prompts)
    task.input(None, [task], [prompt], js=f"(task) => ({words})[task] ?? ''")
    named = f"Object.entries({words}).find(([task, words]) => words === text.trim())?.[0] ?? {json.dumps(OWN_WORDS)}"
    prompt.input(None, [prompt], [task], js=f"(text) => {named}")
    return task, prompt, prompts


def _take(
    taken: Any, given: Sequence[Example], clips: Sequence[Any], task: Any, prompt: Any, prompts: Mapping[str, str]
) -> None:
    """An example that is chosen stands where clips and words do."""
    if taken is None:
        return

    def take(index: int) -> tuple[Any, ...]:
        example = given[index]
        words = prompts.get(example.task, example.prompt)
        own = example.task if example.task in prompts else OWN_WORDS
        return (str(example.file), *[None] * (len(clips) - 1), own, words)

    at_once: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    taken.click(take, [taken], [*clips, task, prompt], **at_once)


def _clip(label: str) -> Any:
    return gr.Audio(
        sources=["upload", "microphone"], type="filepath", label=label, editable=False, buttons=[],
        waveform_options=gr.WaveformOptions(show_recording_waveform=True),
    )  # fmt: skip


def _shown(label: str, place: str) -> list[Any]:
    """Where one answer is shown: its text, what is to be said about it, its timing, its figures."""
    text = gr.Textbox(label=label, lines=3, max_lines=12, interactive=False, buttons=["copy"], elem_id=place)
    return [text, *(gr.HTML(elem_id=f"{place}-{part}") for part in ("message", "timing", "figures"))]


def _outputs(told: Told, model: str, place: str) -> tuple[str, str, str, str]:
    return told.text, message(told), timing(told.timing), figures(told.looks, model, place)


def _head(listeners: Sequence[Listener]) -> str:
    names = " and ".join(f"<b>{escape(listener.name)}</b>" for listener in listeners)
    return (
        f'<div class="usam-head"><h1>Ask {names} about sound</h1><p>Give a clip, choose a task or write a question, '
        "and read the answer as it comes, beside what the model attends to.</p></div>"
    )


def _foot(limits: Limits, share: bool) -> str:
    passes = "clips and questions pass through the servers of Gradio's makers" if share else "nothing is sent elsewhere"
    return (
        f'<p class="usam-foot">Each clip may have {limits.seconds:g} seconds and {limits.megabytes} MB. This server '
        f"removes clips after an hour, and writes no question down; {passes}.</p>"
    )


def _theme() -> Any:
    # Whole in Gradio's package are these weights alone; anything between them is drawn with the heavier one.
    fonts = {
        key: (LocalFont(name, weights=(400, 700)), generic, "system-ui")
        for key, name, generic in (("font", "IBM Plex Sans", "sans-serif"), ("font_mono", "IBM Plex Mono", "monospace"))
    }
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", **fonts)


def _examples(folder: Path) -> tuple[list[Example], str]:
    try:
        return examples(folder), ""
    except ImportError:
        return [], MISSING


def _swept(folder: Path, done: Event) -> None:
    while not done.wait(SWEPT):
        sweep(folder)


def _free(host: str, port: int) -> int:
    """The port, or one that is free instead of 0; OSError where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise OSError(f"{host}:{port} cannot be listened to ({error.strerror}); take another --port") from error
        return int(probe.getsockname()[1])


@contextmanager
def _apart(uploads: Path) -> Iterator[None]:
    """Gradio reads these whenever it likes: what it keeps lies in this folder, and it tells nobody anything."""
    uploads.mkdir(parents=True)
    said = {
        "GRADIO_TEMP_DIR": str(uploads), "GRADIO_EXAMPLES_CACHE": str(uploads / "examples"),
        "GRADIO_ALLOWED_PATHS": "", "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SHARE": "False",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in said}
    os.environ.update(said)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
