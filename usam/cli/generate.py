"""`usam generate`: answer questions about files, folders, manifests, and what comes line by line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from usam.cli._options import PluginOption

if TYPE_CHECKING:
    from usam.cli._answers import Answers
    from usam.generate.pipeline import Answer, Pipeline
    from usam.generate.questions import Asker, Question


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A saved folder or hub id.")],
    audio: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[AUDIO]...",
            help="Files of sound, folders of them, manifests; - reads paths, or rows as JSON, line by line.",
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The instruction; <audio> in it says where a clip stands.")] = None,
    task: Annotated[
        str | None, typer.Option(help="A task of the model's 'prompts', instead of --prompt; needless if it has one.")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="One answer to all files, not one for each.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions answered at once; default: 8.", show_default=False)
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE.jsonl", help="Write a line of JSON for each question into a file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write the --output anew, if it is there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on behind the last line of the --output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print such lines of JSON instead.")] = False,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Print each word as it comes; default: for one question, in a terminal.",
            show_default=False,
        ),
    ] = None,
    reader: Annotated[
        str | None, typer.Option(help="The format of manifests, where it shall not be recognised; see `usam list`.")
    ] = None,
    audio_root: Annotated[
        str | None, typer.Option(help="What {audio_root} at the beginning of paths in manifests stands for.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="For example cuda or cpu; default: the GPU if there is one.")
    ] = None,
    template_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable of the chat template; repeatable.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    r"""Answer questions about sound; prints one line `name<TAB>answer` for each, in the order in which they are asked.

    A file of sound is asked --prompt or --task, and so is each in a folder. A row of a manifest is asked what it asks
    itself, unless --prompt or --task is given. A line break, tab or backslash in a name or an answer is printed as \n,
    \t, \\, as in JSON. What cannot be answered is named on stderr (and is a line with 'error' in JSON), all others are
    answered, and the status is 1; an answer that is cut off is noted there.
    """
    inputs = list(audio or [])
    _refuse(
        (prompt is not None and task is not None, "give either --prompt or --task, not both"),
        (
            together and batch_size is not None,
            "--batch-size does nothing with --together, which asks one question about all files",
        ),
        (as_json and output is not None, "--json prints what --output writes into a file: say one of them"),
        (output is None and (overwrite or resume), "--overwrite and --resume are about a file: name it with --output"),
        (bool(stream) and (as_json or output is not None), "--stream prints text, and no lines of JSON: leave one out"),
        (bool(stream) and batch_size is not None, "--batch-size does nothing with --stream, which follows one answer"),
        (bool(stream) and num_beams > 1, "which beam wins is known at the end alone: --stream needs --num-beams 1"),
        (inputs.count("-") > 1, "- stands for standard input, which is read once"),
    )

    from usam.weights import locate

    locate(model)
    if not inputs:
        raise ValueError(
            "name at least one audio file, folder or manifest: usam generate MODEL a.wav b.wav --task TASK"
        )

    from usam.cli._answers import Answers
    from usam.generate.pipeline import pipeline
    from usam.generate.questions import Asker
    from usam.spec.spec import load_spec

    kinds = [_kind(given, reader) for given in inputs]
    _refuse(
        (together and set(kinds) != {FILES}, "--together asks about files; each row of a manifest asks for itself"),
        (
            set(kinds) == {FILES} and (reader is not None or audio_root is not None),
            "--reader and --audio-root are about manifests, and none is named",
        ),
    )
    answers = None
    if output is not None:
        for given in inputs:
            if Path(given).is_file() and Path(output).exists() and os.path.samefile(given, output):
                raise ValueError(f"--output {output}: is read, too; name another file")
        answers = Answers(output, overwrite=overwrite, resume=resume)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    pipe = pipeline(model, batch_size=batch_size or 8, device=_device(device), **options)
    if template_option:
        answerer = pipe.answerer
        patches = [f"llm.template_options.{option}" for option in template_option]
        answerer.processor = answerer.processor.with_spec(load_spec(answerer.model.config.parsed, *patches))
    said = {"prompt": prompt, "task": task, "reader": reader, "audio_root": audio_root}
    asker = Asker(pipe.answerer, **said, note=partial(_tell, "note"))
    if FILES in kinds:
        asker.words()
    if stream is None:
        one = len(inputs) == 1 and ((kinds == [FILES] and not Path(inputs[0]).is_dir()) or _typed(kinds))
        stream = (one or together) and num_beams == 1 and sys.stdout.isatty() and not as_json and output is None
    printed = _Printed(pipe, answers, as_json, stream, max_new_tokens)
    if _typed(kinds):
        _tell("note", "write the path of a file of sound, or a row as JSON, on a line of its own; Ctrl-D ends")
    try:
        for questions in _asked(asker, list(zip(inputs, kinds, strict=True)), together):
            printed.all(questions if answers is None else answers.rest(questions))
        if answers is not None:
            answers.close()
    except KeyboardInterrupt:
        remedy = f"; --resume goes on with {output}" if output is not None else ""
        _tell("note", f"interrupted after {printed.count:,} answers{remedy}")
        raise typer.Exit(130) from None
    if printed.failed:
        if printed.count > 1:
            print(f"{printed.failed:,} of {printed.count:,} questions were not answered", file=sys.stderr)
        raise typer.Exit(1)


STDIN, FILES, ROWS = "standard input", "files", "rows"


def _refuse(*claims: tuple[bool, str]) -> None:
    """ValueError of the first that is true."""
    for wrong, message in claims:
        if wrong:
            raise ValueError(message)


def _kind(given: str, reader: str | None) -> str:
    from usam.generate.questions import is_manifest

    return STDIN if given == "-" else ROWS if is_manifest(given, reader) else FILES


def _typed(kinds: Sequence[str]) -> bool:
    """Whether a person writes the questions."""
    return STDIN in kinds and sys.stdin.isatty()


def _asked(asker: Asker, inputs: Sequence[tuple[str, str]], together: bool) -> Iterator[Iterable[Question]]:
    """The questions: those that may wait for each other in one go, those of standard input as they come."""
    for kind, some in groupby(inputs, key=lambda pair: pair[1]):
        if kind == STDIN:
            yield from _arriving(asker)
        elif kind == ROWS:
            yield chain.from_iterable(asker.rows(given) for given, _ in some)
        else:
            found = chain.from_iterable(asker.files(given) for given, _ in some)
            yield _grouped(asker, found, None if together else max(asker.clips, 1))


def _grouped(asker: Asker, files: Iterable[str | Question], size: int | None) -> Iterator[Question]:
    """Questions about so many files each; None: one about all."""
    some = list[str]()
    for file in files:
        if not isinstance(file, str):
            yield file
            if size is None:  # it would be a question about the others alone
                return
            continue
        some.append(file)
        if len(some) == size:
            yield asker.about(*some)
            some = []
    if some:
        yield asker.about(*some)


def _arriving(asker: Asker) -> Iterator[Iterable[Question]]:
    """Questions of standard input, as many at once as have come."""
    number, begun = 1, b""
    while come := os.read(sys.stdin.fileno(), 1 << 16):
        *lines, begun = (begun + come).split(b"\n")
        if lines:
            yield asker.lines(lines, number)
            number += len(lines)
    if begun:
        yield asker.lines([begun], number)


class _Printed:
    """Answers where they are wanted, and what is wrong on standard error."""

    def __init__(
        self, pipe: Pipeline, answers: Answers | None, as_json: bool, stream: bool, max_new_tokens: int
    ) -> None:
        self.pipe, self.answers, self.as_json = pipe, answers, as_json
        self.stream, self.longest = stream, max_new_tokens
        self.count = 0 if answers is None else answers.count
        self.failed = 0 if answers is None else answers.failed

    def all(self, questions: Iterable[Question]) -> None:
        """Answer these questions."""
        if self.stream:
            for question in questions:
                self._streamed(question)
            return
        from tqdm import tqdm

        hidden = not sys.stderr.isatty() or (self.answers is None and sys.stdout.isatty())
        for answer in tqdm(self.pipe.answers(questions), desc="answering", unit=" answers", disable=hidden):
            if self.answers is not None:
                self.answers.write(answer.to_dict())
            elif self.as_json:
                print(json.dumps(answer.to_dict()), flush=True)
            elif answer.error is None:
                print(f"{_line(answer.question.name)}\t{_line(str(answer))}", flush=True)
            self._noted(answer)

    def _streamed(self, question: Question) -> None:
        pieces = self.pipe.stream(question)
        begun = False
        try:
            while True:
                piece = next(pieces)
                head = "" if begun else f"{_line(question.name)}\t"
                print(f"{head}{_line(piece)}", end="", flush=True)
                begun = True
        except StopIteration as stop:
            answer: Answer = stop.value
            if answer.error is None and not begun:
                print(f"{_line(question.name)}\t", end="")
        finally:
            pieces.close()
            if begun:
                print(flush=True)
        self._noted(answer)

    def _noted(self, answer: Answer) -> None:
        self.count += 1
        name = answer.question.name
        if answer.error is not None:
            self.failed += 1
            _tell("error", answer.fault)
        elif not answer.complete:
            cut = f"the answer was cut off at {self.longest} tokens; --max-new-tokens allows more"
            _tell("note", f"{name}: {cut}")


def _tell(kind: str, text: str) -> None:
    """A line on standard error, above a bar that is there."""
    from tqdm import tqdm

    tqdm.write(f"{kind}: {_line(text)}", file=sys.stderr)
    sys.stderr.flush()


def _device(device: str | None) -> str | None:
    """The device itself, or an error that says why nothing can run there."""
    import torch

    if device is not None and device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


BREAKS = {ord(c): json.dumps(c)[1:-1] for c in "\\\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"}


def _line(text: str) -> str:
    """Text that stays on one line of any output, in one field of it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.translate(BREAKS).encode(encoding, "backslashreplace").decode(encoding)
