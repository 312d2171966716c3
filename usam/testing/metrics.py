"""What a metric promises: one number for a corpus, which any part of its samples has too, in whatever order."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import numpy as np

from usam.metrics import Metric
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.spec import Config, component_config
from usam.testing.every import Named, config_round_trips, refuses_unknown_options
from usam.testing.promises import Broken, Claim, Promise, Report, check, promises, require

Sample = tuple[str, Sequence[str]] | tuple[str, Sequence[str], Mapping[str, Any]]
Samples = Sequence[Sample]

SAMPLES: Samples = (
    ("a dog barks twice and then a door is shut", ["a dog barks and a door is shut", "two barks and then a door"]),
    ("the rain falls on a tin roof", ["the rain falls on a tin roof"]),
    ("six birds", ["sixteen birds sing in the trees at dawn", "six birds sing at dawn", "birds at dawn"]),
    ("Wörter für Äpfel, naïve café", ["Wörter für Äpfel und naïve Cafés"]),
    ("二百三十四人在说话", ["二百三十五人在说话", "有二百三十五个人在说话"]),
    ("\U0001f415 barks \U0001f415", ["\U0001f415 barks \U0001f415 loudly"]),
)
TOLERANCE = 1e-9


def check_metric(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    samples: Samples = SAMPLES,
    **options: Any,
) -> Report:
    """Run every promise of a metric: `check_metric("wer")`.

    Args:
        component: as everywhere: a name, a dict or a Config; `options` are laid over it.
        expected_failures: promises that it cannot keep, each with the reason.
        samples: answers and their references, some right and some wrong, for a metric of a special kind of text; with
            a map of further columns where it reads such.

    Raises:
        BrokenPromises: once, with every promise that is broken.
        SpecError, ComponentError: the component's name or options are wrong.
    """
    return check(metric_promises(component, expected_failures=expected_failures, samples=samples, **options))


def metric_promises(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    samples: Samples = SAMPLES,
    **options: Any,
) -> list[Promise]:
    """The same promises one by one, each to be called; nothing is built before."""
    return promises(MetricCase(component, options, samples), CLAIMS, expected_failures)


@dataclass(frozen=True)
class MetricCase(Named):
    """A metric as its user names it, and texts to try it with."""

    samples: Samples

    group = "usam.metrics"

    def structure(self, **changes: Any) -> Metric:
        """The metric, with changes of its options."""
        cls, config = self._named
        metric: Metric = cls(config.model_copy(update=changes))
        return metric

    def texts(
        self, rows: Sequence[int] | None = None
    ) -> tuple[list[str], list[Sequence[str]], None, list[Mapping[str, Any]]]:
        """Arguments of a metric: answers, references, no ids, further columns; of all samples without `rows`."""
        chosen = [self.samples[i] for i in (range(len(self.samples)) if rows is None else rows)]
        columns: list[Mapping[str, Any]] = [sample[2] if len(sample) == 3 else {} for sample in chosen]
        return [sample[0] for sample in chosen], [sample[1] for sample in chosen], None, columns


def _same(found: float, expected: float, what: str, look_at: str) -> None:
    close = bool(np.isclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE))
    require(close, f"{expected!r}, {what}", f"{found!r}", look_at)


def says_what_it_is(case: MetricCase) -> None:
    """It has a direction, a unit and bounds, and its values lie within them.

    Else the best checkpoint may be the worst, and tables and figures lie about the value.
    """
    metric = case.structure()
    missing = [name for name in ("higher_is_better", "unit", "bounds") if not hasattr(metric, name)]
    require(not missing, "higher_is_better, unit and bounds", f"none of {', '.join(missing)}", "the class")
    score = metric(*case.texts())
    least, most = metric.bounds
    out = [value for value in (score.value, *score.each) if not least - TOLERANCE <= value <= most + TOLERANCE]
    require(not out, f"values from {least} to {most}", f"{out}", "bounds, and value or of")


def is_deterministic(case: MetricCase) -> None:
    """Equal calls give equal values, whatever was called between them, and by another object.

    Else two evaluations of the same answers differ.
    """
    metric = case.structure()
    first = metric(*case.texts())
    metric(*case.texts([0]))
    for again in (metric(*case.texts()), case.structure()(*case.texts())):
        require(
            again.value == first.value and np.array_equal(again.statistics, first.statistics),
            f"{first.value!r} again", f"{again.value!r}", "state that a call leaves behind, or sets that are iterated",
        )  # fmt: skip


def ignores_the_order_of_samples(case: MetricCase) -> None:
    """The same samples in another order give the same value.

    Else the number of processes changes the value.
    """
    metric = case.structure()
    order = list(reversed(range(len(case.samples))))
    value = metric(*case.texts()).value
    _same(metric(*case.texts(order)).value, value, "the value of reordered samples", "what depends on a sample's place")


def ignores_the_order_of_references(case: MetricCase) -> None:
    """A sample's references in another order give the same statistics' value.

    Else the order of lines in a file decides which system is better.
    """
    metric = case.structure()
    answers, right, _, extra = case.texts()
    first = metric(answers, right, extra=extra)
    turned = metric(answers, [list(reversed(texts)) for texts in right], extra=extra)
    look_at = "which of several references statistics() takes where two are equally good"
    _same(turned.value, first.value, "the value with references in another order", look_at)
    for a, b in zip(turned.each, first.each, strict=True):
        _same(a, b, "a sample's value with references in another order", look_at)


def value_comes_from_statistics(case: MetricCase) -> None:
    """The value of any samples, some of them twice, comes from the statistics that they had among all.

    It is the value that they have alone, but for a metric that says that it does not decompose.

    Else intervals and paired tests, which draw samples anew, are of another number than the value.
    """
    metric = case.structure()
    whole = metric(*case.texts())
    require(len(whole.statistics) == len(case.samples), "a row a sample", f"{whole.statistics.shape}", "over")
    count = len(case.samples)
    if not metric.decomposes:
        _same(metric.value(whole.statistics), whole.value, "the value of all samples", "statistics and value")
        for row, each in enumerate(whole.each):
            _same(each, metric.value(whole.statistics[row : row + 1]), "the value of one sample among all", "each")
        return
    for rows in ([*range(count)], [0], [count - 1, 0], [0, 0, *range(1, count)]):
        direct = metric(*case.texts(rows)).value
        _same(metric.value(whole.statistics[rows]), direct, f"the value of samples {rows}", "statistics and value")
    for row, each in enumerate(whole.each):
        _same(each, metric(*case.texts([row])).value, "the value of one sample", "each")


def a_perfect_answer_is_best(case: MetricCase) -> None:
    """Answers that are their references have the best value that there is, and others none that is better.

    Else the direction or the bounds are wrong, and the wrong system wins.
    """
    metric = case.structure()
    _, right, _, extra = case.texts()
    perfect = metric([texts[0] for texts in right], right, extra=extra).value
    best = metric.bounds[1] if metric.higher_is_better else metric.bounds[0]
    _same(perfect, best, "the best value, for perfect answers", "bounds, higher_is_better, and statistics")
    others = metric(*case.texts()).value
    worse = others < perfect if metric.higher_is_better else others > perfect
    require(worse, f"a value worse than {perfect!r} for wrong answers", f"{others!r}", "statistics")


def takes_empty_texts(case: MetricCase) -> None:
    """An empty answer, an empty reference, both, and spaces alone have finite values, and statistics of one length.

    Else a model that says nothing stops the evaluation, or is left out of its own score.
    """
    metric = case.structure()
    width = metric.over(*case.texts()).shape[1]
    wrong = [("", ["a dog barks"]), ("a dog barks", [""]), ("", [""]), ("  \n", ["  "]), ("a", ["", "a dog"])]
    for answer, right in wrong:
        score = metric([answer], [right], extra=case.texts([0])[3])
        shown = f"{score.value!r} and {score.statistics.shape[1]} numbers for {answer!r} against {right!r}"
        holds = bool(np.isfinite([score.value, *score.statistics[0]]).all()) and score.statistics.shape == (1, width)
        require(holds, f"a finite value and {width} numbers", shown, "statistics and of, where something is empty")


def refuses_what_is_no_corpus(case: MetricCase) -> None:
    """No samples, unequal counts, a sample without references, and two samples of one id are ValueErrors.

    Else a broken file has a score.
    """
    metric = case.structure()
    answers, right, _, extra = case.texts()
    for what, given in {
        "no samples": ([], [], None, []),
        "unequal counts": (answers, right[:-1], None, extra),
        "a sample without references": (answers, [[], *right[1:]], None, extra),
        "two samples of one id": (answers, right, ["same"] * len(answers), extra),
    }.items():
        _refused(what, metric, *given)
    _refused("no statistics", metric.value, metric.over(answers, right, extra=extra)[:0])


def _refused(what: str, call: Callable[..., Any], *given: Any) -> None:
    try:
        call(*given)
    except ValueError:
        return
    raise Broken(f"a ValueError for {what}", "that it was accepted", "value, or over if it is one of its own")


def its_id_has_its_options(case: MetricCase) -> str | None:
    """An option that changes changes the id.

    Else values that were counted in different ways are compared as if they were the same.
    """
    metric = case.structure()
    require(metric.id.partition("|")[0] == metric.name, f"an id that begins with '{metric.name}'", metric.id, "id")
    changed = list(_changes(case))
    for name, value in changed:
        other = case.structure(**{name: value})
        require(other.id != metric.id, f"an id with {name}: {value!r} in it", metric.id, "id")
    return None if changed else "it has no option with a known other value"


def _changes(case: MetricCase) -> Iterator[tuple[str, Any]]:
    """Each option with a value that it does not have; those that do not fit the others, or cannot run, are left out."""
    for name, field in type(case.config).model_fields.items():
        value = getattr(case.config, name)
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        if isinstance(value, bool):
            choices = (not value,)
        elif isinstance(value, (int, float)):
            choices = (value + 1,)
        for other in choices:
            if other != value:
                try:
                    component_config(case.group, {**case.config.to_dict(), name: other})
                    case.structure(**{name: other})
                except (SpecError, ComponentError):
                    continue
                yield name, other


def pickles(case: MetricCase) -> None:
    """The metric and what it found survive a pickle, as other processes are given them.

    Else it fails only where several processes evaluate.
    """
    metric = case.structure()
    score = metric(*case.texts())
    again, found = pickle.loads(pickle.dumps((metric, score)))
    require(found.value == score.value, "an equal score", f"{found}", "what statistics returns")
    require(again(*case.texts()).value == score.value, "an equal metric", "another", "what __init__ keeps")


CLAIMS: list[Claim] = [
    config_round_trips,
    refuses_unknown_options,
    says_what_it_is,
    is_deterministic,
    ignores_the_order_of_samples,
    ignores_the_order_of_references,
    value_comes_from_statistics,
    a_perfect_answer_is_best,
    takes_empty_texts,
    refuses_what_is_no_corpus,
    its_id_has_its_options,
    pickles,
]
