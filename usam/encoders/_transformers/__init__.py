"""The networks of the encoder `transformers`: each file is a family, and says which model types it runs."""

from __future__ import annotations

import importlib
import pkgutil

from usam.encoders._transformers.network import Network


def kinds() -> dict[str, type[Network]]:
    """What runs a model type, by the name that transformers gives the type."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {name: kind for kind in _families(Network) for name in vars(kind).get("types", ())}


def _families(kind: type[Network]) -> list[type[Network]]:
    return [family for child in kind.__subclasses__() for family in (child, *_families(child))]
