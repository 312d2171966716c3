"""Metrics say how good answers are: texts and their references in, one number out, and the counts it is made of."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from usam.component import build, own_config
from usam.registry import ComponentError, Registry
from usam.spec.spec import Config

Statistics = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """What a metric found."""

    value: float
    """Of the corpus."""
    statistics: Statistics  # samples, what the metric counts
    """What `value` is made of: the value of a resample is `metric.value(statistics[rows])`."""
    each: tuple[float, ...]
    """Of each sample alone."""
    id: str
    """The metric's."""
    details: Mapping[str, float] = field(default_factory=dict)
    """What else there is to say of the corpus: the share of answers that could not be read."""


class MetricConfig(Config):
    """Options that every metric has."""

    component: ClassVar[type[Any]]


class Metric(ABC):
    """How good answers are.

    A metric counts something in each sample (`statistics`), and makes one number of the counts of a corpus (`value`):
    by default of their sum (`of`). So the value of any part of the corpus, or of a resample of it, needs no text. A
    metric whose corpus value is no function of a sum, such as one that ranks, overrides `value`, which sees the counts
    of all samples; one in which a sample's counts depend on the other samples' texts overrides `over`, and says so
    (`decomposes`).
    """

    Config: ClassVar[type[MetricConfig]] = MetricConfig

    higher_is_better: ClassVar[bool]
    unit: ClassVar[str]
    """What a value of 1 is, in words: `share of the words`."""
    bounds: ClassVar[tuple[float, float]]
    """The least and the greatest value; infinity where there is none."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What it is computed by, so that their versions belong to its id."""
    decomposes: ClassVar[bool] = True
    """Whether a sample counts what it counts alone. Where not, its counts are those that it has among the samples that
    were given together: a part's value and a resample's are then made of these."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own_config(cls)

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """Its component's name, without the package's."""
        return str(self.config.type or type(self).__name__.lower()).rpartition(":")[2]

    @property
    def id(self) -> str:
        """Its name, its options and the versions of its packages: equal ids are comparable values."""
        options = {name: value for name, value in self.config.to_dict().items() if name != "type"}
        versions = {package: metadata.version(package) for package in self.packages}
        return "|".join([self.name, *(f"{key}:{value}" for key, value in {**options, **versions}.items())])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a sample's `extra` that it reads beside the texts; `statistics` takes each by its name."""
        return ()

    @abstractmethod
    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """What is counted in one sample: as many numbers for every sample, also where a text is empty.

        Args:
            prediction: the answer; empty where there is none.
            references: every right answer, at least one, in an order that says nothing.

        Raises:
            ValueError: the sample is none that can be measured; `over` adds which one it is.
        """

    def of(self, total: Statistics) -> float:
        """The value where the statistics of all samples add up to `total`."""
        raise NotImplementedError(f"{type(self).__name__} has neither of(total) nor value(statistics)")

    def value(self, statistics: Statistics) -> float:
        """The value of the samples (rows) that these statistics are of.

        Raises:
            ValueError: there are none.
        """
        if len(statistics) == 0:
            raise ValueError(f"{self.name}: there are no samples, so that there is no value")
        return self.of(np.asarray(statistics, dtype=np.float64).sum(0))

    def details(self, statistics: Statistics) -> dict[str, float]:
        """What else there is to say of the samples (rows) that these statistics are of, by name."""
        return {}

    def over(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str] | str],
        ids: Sequence[Any] | None = None,
        extra: Sequence[Mapping[str, Any]] | None = None,
    ) -> Statistics:
        """The statistics of each sample: (samples, counts).

        Args:
            predictions: one text a sample.
            references: of each sample one text, or all that are right.
            ids: what to call the samples in errors.
            extra: each sample's further columns (`Sample.extra`), of which a metric reads its `columns`.

        Raises:
            ValueError: there are no samples, not as many references (ids, extra) as predictions, two samples of one id,
                or a sample without a reference or without a column that the metric reads.
        """
        found = []
        given = checked(predictions, references, ids)
        columns = self._columns(len(given), extra)
        for place, (pair, own) in enumerate(zip(given, columns, strict=True)):
            try:
                if missing := [name for name in self.columns if name not in own]:
                    raise ValueError(f"{self.name} reads its column '{missing[0]}', which it does not have")
                found.append(self.statistics(*pair, **{name: own[name] for name in self.columns}))
            except ValueError as error:
                name = place if ids is None else ids[place]
                raise ValueError(f"sample {name!r}: {error}") from error
        return np.array(found, dtype=np.float64)

    def _columns(self, count: int, extra: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]]:
        if extra is None and self.columns:
            raise ValueError(f"{self.name} reads the column '{self.columns[0]}' of each sample: give them as extra")
        if extra is not None and len(extra) != count:
            raise ValueError(f"{count} predictions and {len(extra)} extra: give one for each sample")
        return [{}] * count if extra is None else extra

    def __call__(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str] | str],
        ids: Sequence[Any] | None = None,
        extra: Sequence[Mapping[str, Any]] | None = None,
    ) -> Score:
        """The value of a corpus, and of each sample; arguments and errors as `over` has them."""
        statistics = self.over(predictions, references, ids, extra)
        each = tuple(self.value(statistics[i : i + 1]) for i in range(len(statistics)))
        return Score(self.value(statistics), statistics, each, self.id, self.details(statistics))


registry: Registry[Metric] = Registry(Metric, "usam.metrics")  # type: ignore[type-abstract]
register = registry.register


def build_metric(component: str | Mapping[str, Any] | MetricConfig, /, **options: Any) -> Metric:
    """One metric: `build_metric("wer", normalizer="basic")`.

    Raises:
        SpecError, ComponentError: its name or options are wrong, or a package that it needs is not installed.
    """
    cls, config = build("usam.metrics", component, options)
    metric: Metric = cls(config)
    return metric


def checked(
    predictions: Sequence[str], references: Sequence[Sequence[str] | str], ids: Sequence[Any] | None = None
) -> list[tuple[str, tuple[str, ...]]]:
    """(prediction, references) of each sample; arguments and errors as `Metric.over` has them."""
    if isinstance(predictions, str):
        raise ValueError(f"predictions are a list of texts, one a sample; found one text, {predictions!r}")
    if isinstance(references, str):
        raise ValueError(f"references are a list, one item a sample; found one text, {references!r}")
    names = list(range(len(predictions))) if ids is None else list(ids)
    for what, found in (("references", references), ("ids", names)):
        if len(found) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions and {len(found)} {what}: give one for each sample")
    if not names:
        raise ValueError("there are no samples to compare")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two samples have the id {twice!r}")
    pairs = []
    for name, prediction, right in zip(names, predictions, references, strict=True):
        right = (right,) if isinstance(right, str) else tuple(right)
        if not right:
            raise ValueError(f"sample {name!r} has no reference to compare with")
        for what, text in (("prediction", prediction), *(("reference", text) for text in right)):
            if not isinstance(text, str):
                raise ValueError(f"sample {name!r}: its {what} is {text!r}, and no text")
        pairs.append((prediction, right))
    return pairs


def needed(package: str) -> ModuleType:
    """A package that metrics are computed by.

    Raises:
        ComponentError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ComponentError(
            f"{package} is not installed: pip install 'usam[metrics]', or pip install {package}"
        ) from error
