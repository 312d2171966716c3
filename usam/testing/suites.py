"""What a suite promises: rows that can be asked and scored, the same ones wherever its files lie."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usam.evaluation.record import check_ids
from usam.readers import ManifestError, Sample
from usam.readers.usam import ROOT, sample
from usam.spec.page import SpecError
from usam.spec.spec import Config
from usam.suites import Suite
from usam.testing.every import Named, config_round_trips, refuses_unknown_options
from usam.testing.promises import Broken, Claim, Promise, Report, check, promises, require
from usam.training.held_out import named


def check_suite(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    root: str | Path,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> Report:
    """Run every promise of a suite: `check_suite("librispeech", root="/data/LibriSpeech", split="dev-clean")`.

    Args:
        component: as everywhere: a name, a dict or a Config; `options` are laid over it.
        root: files in the benchmark's layout; a few small ones will do, for they are copied.
        expected_failures: promises that it cannot keep, each with the reason.

    Raises:
        BrokenPromises: once, with every promise that is broken.
        SpecError, ComponentError: the component's name or options are wrong.
    """
    return check(suite_promises(component, root=root, expected_failures=expected_failures, **options))


def suite_promises(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    root: str | Path,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> list[Promise]:
    """The same promises one by one, each to be called; nothing is built before."""
    return promises(SuiteCase(component, options, Path(root)), CLAIMS, expected_failures)


@dataclass(frozen=True)
class SuiteCase(Named):
    """A suite as its user names it, and files in its layout."""

    root: Path

    group = "usam.suites"

    def structure(self, **changes: Any) -> Suite:
        """The suite, with changes of its options."""
        cls, config = self._named
        suite: Suite = cls(config.model_copy(update=changes))
        return suite

    def samples(self, suite: Suite) -> list[Sample]:
        """Its rows, checked as those of any manifest."""
        prompts = {suite.task: "What is it?"}
        rows = suite.load(self.root).rows
        return [sample(row, row["id"], "", prompts, audio_root=str(self.root)) for row in rows]


def says_where_it_comes_from(case: SuiteCase) -> None:
    """It names its splits, its sources and where to get it, and an unknown split is an error that lists them.

    Else nobody can get the files, or check what was asked and scored.
    """
    suite = case.structure()
    for name in ("source", "home"):
        require(bool(getattr(suite, name, "")), f"'{name}'", "none", f"the class attribute '{name}'")
    require(len(set(suite.splits)) == len(suite.splits) > 0, "splits, each once", f"{suite.splits}", "splits")
    try:
        case.structure(split="no such split")
    except SpecError as error:
        require(suite.splits[0] in str(error) or "did you mean" in str(error), "the splits", f"{error}", "__init__")
        return
    raise Broken("a SpecError for an unknown split", "that it was accepted", "__init__, which calls Suite.__init__")


def refuses_a_folder_without_its_files(case: SuiteCase) -> None:
    """An empty folder, and none at all, are errors that say where the benchmark comes from.

    Else a score of nothing is reported.
    """
    suite = case.structure()
    with tempfile.TemporaryDirectory() as folder:
        for root in (Path(folder), Path(folder, "none")):
            try:
                suite.load(root)
            except ManifestError as error:
                require(suite.home in str(error), "where it comes from", f"{error}", "what items() raises")
                continue
            raise Broken("a ManifestError for a folder without its files", "rows", "items")


def rows_are_proper(case: SuiteCase) -> None:
    """Every row is one of usam's own, its id stands once, and its clips lie below the root.

    Else an evaluation fails in its middle, or reads files that are no part of the benchmark.
    """
    suite = case.structure()
    rows = suite.load(case.root).rows
    found = case.samples(suite)
    check_ids([one.id for one in found], [one.origin for one in found])
    for row in rows:
        for clip in row["audio"] if isinstance(row["audio"], list) else [row["audio"]]:
            path = clip.removeprefix(f"{ROOT}/")
            require(path != clip and ".." not in Path(path).parts, "a path below the root", clip, "Item.audio")


def rows_do_not_depend_on_the_place(case: SuiteCase) -> None:
    """Read twice, and from a copy elsewhere, the rows are the same.

    Else two machines score different questions under one name.
    """
    suite = case.structure()
    first = suite.load(case.root)
    require(suite.load(case.root) == first, "the same rows again", "others", "what is drawn, or listed unsorted")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(case.root, Path(folder, "copy"))
        require(suite.load(Path(folder, "copy")) == first, "the same rows", "others", "paths in rows")


def missing_clips_are_told(case: SuiteCase) -> None:
    """Without one clip it stops, or leaves out the items that need it and counts them.

    Else a score of a part is taken for one of the whole.
    """
    suite, skipping = case.structure(missing="stop"), case.structure(missing="skip")
    rows = suite.load(case.root).rows
    require(len({str(row["audio"]) for row in rows}) > 1, "two clips or more", "one", "the root that is given")
    clip = rows[-1]["audio"]
    gone = (clip[-1] if isinstance(clip, list) else clip).removeprefix(f"{ROOT}/")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(case.root, copy)
        (copy / gone).unlink()
        try:
            suite.load(copy)
        except ManifestError as error:
            require(gone in str(error), f"'{gone}' in the error", f"{error}", "items")
        else:
            raise Broken("a ManifestError where a clip is missing", "rows", "items, which looks for clips itself")
        left = skipping.load(copy)
        require(rows[-1]["id"] in left.left_out, "that it is counted", f"{left.left_out}", "Item.audio")
        require(len(left.rows) + len(left.left_out) == len(rows), "all other rows", f"{len(left.rows)}", "items")


def is_scored_by_its_metrics(case: SuiteCase) -> str | None:
    """Its metrics can be built, and take its own answers, or their letters, for perfect.

    Else even the right answers do not score as such, and no model can.
    """
    suite = case.structure()
    metrics = named(suite.metrics)
    if not metrics:
        require(bool(suite.not_computed), "'not_computed', which says why", "nothing", "metrics, not_computed")
        return "it is scored by a judge"
    found = case.samples(suite)
    right, extra = [one.references for one in found], [one.extra for one in found]
    letters = [_letter(one) for one in found]
    for name, metric in metrics.items():
        said = ([texts[0] for texts in right], letters)
        values = [metric(texts, right, [one.id for one in found], extra).value for texts in said]
        value = max(values) if metric.higher_is_better else min(values)
        best = metric.bounds[1] if metric.higher_is_better else metric.bounds[0]
        if best < float("inf") and metric.decomposes:
            require(abs(value - best) < 1e-6, f"{name} of {best} for its own answers", f"{value}", "metrics")
    return None


def _letter(one: Sample) -> str:
    """Of the right choice; empty where there are none."""
    choices = one.extra.get("x_choices", [])
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[choices.index(one.references[0])] if one.references[0] in choices else ""


CLAIMS: list[Claim] = [
    config_round_trips,
    refuses_unknown_options,
    says_where_it_comes_from,
    refuses_a_folder_without_its_files,
    rows_are_proper,
    rows_do_not_depend_on_the_place,
    missing_clips_are_told,
    is_scored_by_its_metrics,
]
