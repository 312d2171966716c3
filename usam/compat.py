"""What differs between the versions of transformers that usam runs on, and nowhere else."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from usam.versions import explained, refuse_older

refuse_older("transformers")
with explained():
    from transformers.modeling_outputs import BaseModelOutputWithPast

# The cache's name in outputs and in `generate`: transformers 5.24 renamed `past_key_values`.
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


def cache_argument(forward: Callable[..., Any]) -> str | None:
    """The name under which a language model takes its cache; None when it takes none."""
    takes = inspect.signature(forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in takes), None)


def one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache that a caller gave under its new or its old name.

    Raises:
        ValueError: both were given.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("'past_key_values' is the older name of 'cache': give one of the two")
    return past_key_values if cache is None else cache
