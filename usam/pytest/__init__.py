"""`pytest --usam`: all that installed packages offer is held to its promises, and a report says what was kept.

A plugin of pytest, found by its entry point. Where `--usam` is not given, it imports no component and no torch.
"""

from __future__ import annotations

import importlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from usam.registry import GROUPS, ComponentError, Entry, did_you_mean, discover, why_not

WITHOUT = ("usam.readers",)  # families without promises: their components load
MARK = "usam"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Three options."""
    group = parser.getgroup("usam", "what installed packages offer to usam")
    group.addoption("--usam", action="store_true", help="Hold every component of an installed package to its promises.")
    group.addoption(
        "--usam-options",
        metavar="FILE.yaml",
        help="Options of components for their tests, by place: `encoders.birdsong: {arch: {layers: 1}, seconds: 0.5}`.",
    )
    group.addoption("--usam-report", metavar="FILE.md", help="Where the report that is printed is written, too.")


def pytest_configure(config: pytest.Config) -> None:
    """What cannot be written is told before anything is tried."""
    report = config.getoption("--usam-report")
    if report and not config.getoption("--usam"):
        raise pytest.UsageError("--usam-report is of what --usam tests: give both")
    if report and (Path(report).is_dir() or not Path(report).absolute().parent.is_dir()):
        raise pytest.UsageError(f"--usam-report: {report}: name a file in a folder that there is")


@pytest.hookimpl(tryfirst=True)  # so that -k chooses among them
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Behind the tests that were collected come the promises, one test each."""
    if config.getoption("--usam-options") and not config.getoption("--usam"):
        raise pytest.UsageError("--usam-options says how to test what --usam tests: give both")
    if config.getoption("--usam"):
        items += _promises(session, _options(config.getoption("--usam-options")))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The report, to be pasted into an issue."""
    config = terminalreporter.config
    if config.getoption("--usam"):
        report = _report(terminalreporter.stats)
        terminalreporter.section("usam")
        terminalreporter.write_line(report)
        if file := config.getoption("--usam-report"):
            Path(file).write_text(f"{report}\n", encoding="utf-8")


class Promised(pytest.Item):
    """One promise of one component."""

    def __init__(self, *, call: Callable[[], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.call = call

    def runtest(self) -> None:
        """Put it to the test."""
        self.call()

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """What is wrong, in the kit's words; of anything else the traceback."""
        from usam.spec.page import SpecError

        known = isinstance(excinfo.value, (AssertionError, ComponentError, SpecError))
        return str(excinfo.value) if known else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """It stands in no file."""
        return self.path, None, self.nodeid


def _place(entry: Entry, group: str) -> str:
    return f"{group.removeprefix('usam.')}.{entry.name}"


def _offers() -> list[tuple[str, Entry]]:
    """(family, entry) of all that packages beside usam offer."""
    found = [(group, entry) for group in GROUPS for entry in discover(group) if entry.version]
    return [(group, entry) for group, entry in found if entry.provider != "usam"]


def _options(file: str | None) -> dict[str, Any]:
    """What the file says, by the places of components.

    Raises:
        pytest.UsageError: it cannot be read, or names what no package offers.
    """
    if file is None:
        return {}
    from usam.spec.page import Places, SpecError, parse_yaml

    try:
        found = parse_yaml(Path(file).read_text(encoding="utf-8"), file, Places()) or {}
    except (OSError, SpecError) as error:
        raise pytest.UsageError(f"--usam-options: {error}") from error
    known = {_place(entry, group) for group, entry in _offers()}
    for place, options in found.items() if isinstance(found, Mapping) else [(found, None)]:
        if place not in known:
            hint = did_you_mean(str(place), known)
            raise pytest.UsageError(f"--usam-options: {file}: no package offers '{place}'; {hint}")
        if not isinstance(options, Mapping):
            raise pytest.UsageError(
                f"--usam-options: {file}: {place}: expected a map of options, found {options!r:.80}"
            )
    return dict(found)


def _promises(session: pytest.Session, options: Mapping[str, Any]) -> Iterator[pytest.Item]:
    for group, entry in _offers():
        place, package = _place(entry, group), f"{entry.provider} {entry.version}"
        given = options.get(place, {})
        for name, call in _calls(group, entry, given):
            item = Promised.from_parent(session, name=name, nodeid=f"{entry.provider}:{place}::{name}", call=call)
            item.user_properties.append((MARK, (place, package, _shown(given), name)))
            item.extra_keyword_matches.update({place, entry.provider})
            yield item


def _calls(group: str, entry: Entry, options: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, function) of each promise; of what does not load, or cannot be tried, one that says why."""
    fault = why_not(group, str(entry))
    if fault is not None or group in WITHOUT:
        yield "loads", lambda: _fail_unless(fault is None, fault)
        return
    if group == "usam.suites" and "root" not in options:
        reason = f"give --usam-options a file with `{_place(entry, group)}: {{root: FOLDER}}`, of files in its layout"
        yield "every_promise", lambda: pytest.skip(reason)
        return
    for promise in promises_of(group)(str(entry), **options):
        yield promise.name, promise


def promises_of(group: str) -> Any:
    """The function of the kit that gives a family's promises."""
    family = group.removeprefix("usam.")
    kind = "loss" if family == "losses" else family.removesuffix("s")
    return getattr(importlib.import_module("usam.testing"), f"{kind}_promises")


def _fail_unless(holds: bool, why: str | None) -> None:
    if not holds:
        raise ComponentError(why)


def _shown(options: Mapping[str, Any]) -> str:
    """Options on one line, as a table of Markdown takes them."""
    if not options:
        return "defaults"
    return f"`{json.dumps(options, ensure_ascii=False, default=str)}`".replace("|", "\\|")


def _report(stats: Mapping[str, Any]) -> str:
    """What was kept by whom, in Markdown."""
    told: dict[tuple[str, str, str], Counter[str]] = {}
    said: dict[tuple[str, str, str], list[str]] = {}
    for outcome, word in (("passed", "kept"), ("failed", "broken"), ("error", "broken"), ("skipped", "not tried")):
        for report in stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", []):
                if key == MARK and (report.when == "call" or outcome != "passed"):
                    place, package, options, name = value
                    told.setdefault((place, package, options), Counter())[word] += 1
                    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
                    said.setdefault((place, word, text.strip()), []).append(name)
    versions = [f"{name} {metadata.version(name)}" for name in ("usam", "torch", "transformers", "pydantic")]
    lines = [", ".join([*versions, f"Python {platform.python_version()}", platform.platform()])]
    if not told:
        return "\n".join([*lines, "", "No other package offers anything to usam."])
    lines += ["", "| component | package | options | promises |", "|---|---|---|---|"]
    for (place, package, options), counts in told.items():
        found = ", ".join(f"{counts[word]} {word}" for word in ("kept", "broken", "not tried") if counts[word])
        lines.append(f"| `{place}` | {package} | {options} | {found} |")
    for (place, word, text), names in said.items():
        if word != "kept":
            lines.append(f"\n**{place}: {', '.join(names)}** {word}: {text}")
    return "\n".join(lines)
