"""A served model under load, on loopback: against the same model called one by one in the same process.

Clips of five seconds, base64 in JSON, answers of 24 tokens; random weights, a Whisper-shaped encoder that hears clips
alone and a language model of 15M. Server and clients share the process, so the clients' work counts against the server.
First a few at once, as many as may wait; then 300 at once, of which most are told to come again; then clients that hang
up in the middle. `--quick` takes fewer.
"""

from __future__ import annotations

import base64
import io
import resource
import statistics
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import soundfile
import torch
from _record import record

from usam import UsamProcessor, build_model
from usam.generate import Answerer
from usam.serving.server import api, bound
from usam.serving.server_limits import Limits

SECONDS, TOKENS, TOGETHER, WAITING = 5.0, 24, 8, 16
REQUESTS, CROWD, LEAVING = (4, 24, 1) if "--quick" in sys.argv else (64, 300, 20)
ARCH = {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024, "num_mel_bins": 80}
SPEC = {
    "encoders": {"whisper": {"arch": {**ARCH, "max_source_positions": 1500}, "context": "clip"}},
    "projector": {"type": "linear", "stack": 4},
    "llm": {"type": "tiny", "dim": 384, "layers": 8, "heads": 6},
    "prompts": {"asr": "Transcribe this audio."},
}
THROUGHPUT, MEMORY = 0.8, 256  # of the direct calls; MiB


def clip(seed: int) -> bytes:
    """A file of noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 0.1, round(SECONDS * 16000))
    soundfile.write(file, noise.astype(np.float32), 16000, format="WAV")
    return file.getvalue()


def body(data: bytes) -> dict[str, Any]:
    """A request about it."""
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
    content = [sound, {"type": "text", "text": SPEC["prompts"]["asr"]}]  # type: ignore[index]
    return {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS}


def ask(url: str, request: dict[str, Any]) -> tuple[int, float, str]:
    """Status, seconds, answer."""
    start = time.perf_counter()
    response = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=600)
    text = response.json()["choices"][0]["message"]["content"] if response.status_code == 200 else ""
    return response.status_code, time.perf_counter() - start, text


def leave(url: str, request: dict[str, Any]) -> None:
    """Hang up after the first piece."""
    address = f"{url}/v1/chat/completions"
    with httpx.stream("POST", address, json={**request, "stream": True, "max_tokens": 1024}, timeout=600) as response:
        next(response.iter_bytes())


def memory() -> float:
    """The most that the process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """The model alone, a few, a crowd, and those who leave."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build_model(SPEC, seed=0).eval()
    model.generation_config.eos_token_id = None  # random weights would end anywhere
    answerer = Answerer(model, UsamProcessor.from_spec(model.config.parsed))
    clips = [clip(seed) for seed in range(REQUESTS)]
    requests = [body(data) for data in clips]

    def direct() -> tuple[float, list[str]]:
        start = time.perf_counter()
        chats = [[{"role": "user", "content": _content(data)}] for data in clips]
        texts = [next(answerer.answer([chat], max_new_tokens=TOKENS)) for chat in chats]
        return time.perf_counter() - start, texts

    direct()  # warm
    server, held = bound(api(answerer, "m", Limits(waiting=WAITING, timeout=600)), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]})
    thread.start()
    url = f"http://127.0.0.1:{held.getsockname()[1]}"
    try:
        alone, expected = direct()
        with ThreadPoolExecutor(TOGETHER) as threads:
            start = time.perf_counter()
            few = list(threads.map(lambda request: ask(url, request), requests))
            served = time.perf_counter() - start
        before = memory()
        with ThreadPoolExecutor(CROWD) as threads:
            crowd = list(threads.map(lambda i: ask(url, requests[i % REQUESTS]), range(CROWD)))
        grown = memory() - before
        with ThreadPoolExecutor(TOGETHER) as threads:
            list(threads.map(lambda i: leave(url, requests[i % REQUESTS]), range(LEAVING)))
        after = ask(url, requests[0])
    finally:
        server.should_exit = True
        thread.join()
        held.close()
    counts = Counter(status for status, _, _ in crowd)
    same = [text for _, _, text in few] == expected
    kept = after[0] == 200 and after[2] == expected[0]
    ratio = alone / served
    right = set(counts) <= {200, 429} and counts[200] > WAITING
    rows = [
        _row(
            f"requests a second, {REQUESTS} of them, {TOGETHER} at once, over the model called one by one",
            f"{ratio:.2f}",
            f"at least {THROUGHPUT}",
            ratio >= THROUGHPUT,
        ),
        _row("answers that are those of the model", f"{REQUESTS if same else 'not all'}", f"{REQUESTS}", same),
        _row(
            f"{CROWD} requests at once, {WAITING} may wait: answered, refused with 429, anything else",
            f"{counts[200]}, {counts[429]}, {CROWD - counts[200] - counts[429]}",
            f"more than {WAITING}, the rest, 0",
            right,
        ),
        _row("memory that they add, server and clients", f"{grown:.0f} MiB", f"at most {MEMORY} MiB", grown <= MEMORY),
        _row(f"the answer after {LEAVING} clients hung up", "the same" if kept else "another", "the same", kept),
    ]
    latencies = {
        name: {"median": statistics.median(found), "most": max(found)}
        for name, found in {
            "few": [seconds for _, seconds, _ in few],
            "crowd, answered": [seconds for status, seconds, _ in crowd if status == 200],
            "crowd, refused": [seconds for status, seconds, _ in crowd if status == 429] or [0.0],
        }.items()
    }
    raw = {"direct seconds": alone, "served seconds": served, "latencies": latencies, "crowd": dict(counts)}
    record(__file__, rows, raw)


def _content(data: bytes) -> list[dict[str, Any]]:
    return [{"type": "audio", "audio": data}, {"type": "text", "text": SPEC["prompts"]["asr"]}]  # type: ignore[index]


def _row(what: str, measured: str, bound: str, ok: bool) -> dict[str, Any]:
    return {"what": what, "measured": measured, "bound": bound, "ok": ok}


if __name__ == "__main__":
    main()
