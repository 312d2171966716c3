"""`import usam` is enough for transformers' Auto classes: they ask usam for its own when they are first used.

Neither torch nor transformers is imported for it: what waits is a finder, which adds one step to
`from_pretrained` of the Auto classes once transformers itself imports them.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# The three that read a folder; the Auto classes of models, and pipelines, begin with AutoConfig.
ENTRANCES = {
    "transformers.models.auto.configuration_auto": "AutoConfig",
    "transformers.models.auto.feature_extraction_auto": "AutoFeatureExtractor",
    "transformers.models.auto.processing_auto": "AutoProcessor",
}


def wait() -> None:
    """Be there when transformers' Auto classes are used, whether they are imported already or later."""
    for name in ENTRANCES:
        if name in sys.modules:
            open_entrance(sys.modules[name])
    sys.meta_path.insert(0, _Finder())


def open_entrance(module: ModuleType) -> None:
    """Let one Auto class import what usam registers before it reads a folder."""
    auto: Any = getattr(module, ENTRANCES[module.__name__])
    original = auto.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        importlib.import_module("usam.hf")
        return original(cls, *args, **kwargs)

    auto.from_pretrained = classmethod(from_pretrained)


class _Finder(MetaPathFinder):
    """Finds the modules of the Auto classes as everyone does, and opens them when they have run."""

    def __init__(self) -> None:
        self.looking: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in ENTRANCES or name in self.looking:
            return None
        self.looking.add(name)
        try:
            spec = find_spec(name)
        finally:
            self.looking.remove(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Opener(spec.loader)
        return spec


class _Opener(Loader):
    """A module's own loader, and the entrance opened after it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:  # get_source, is_package ... are the loader's
        return getattr(self.__dict__["loader"], name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        open_entrance(module)
