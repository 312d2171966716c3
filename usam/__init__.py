"""usam: a modular component library for audio language models.

Public names are loaded on first use (PEP 562): importing usam imports neither torch nor transformers, and
yet is enough for `AutoConfig`, `AutoModelForMultimodalLM`, `AutoProcessor` and pipelines to know its models.
"""

from __future__ import annotations

import importlib
from typing import Any

from usam.versions.auto import wait

__version__ = "0.1.0"

_HOME = {
    "build_model": "usam.model.build",
    "pipeline": "usam.generate.pipeline",
    "UsamModel": "usam.model.checkpoint",
    "UsamForConditionalGeneration": "usam.model.checkpoint",
    "UsamConfig": "usam.model.checkpoint",
    "UsamProcessor": "usam.model.checkpoint",
    "load_spec": "usam.spec.spec",
    "Spec": "usam.spec.spec",
    "json_schema": "usam.spec.schema",
    "Config": "usam.spec.spec",
    "SpecError": "usam.spec.page",
    "ComponentError": "usam.registry",
    "Encoder": "usam.encoders",
    "Fusion": "usam.fusions",
    "Projector": "usam.projectors",
    "Loss": "usam.losses",
    "LLM": "usam.llm",
    "build_encoder": "usam.encoders",
    "build_fusion": "usam.fusions",
    "build_projector": "usam.projectors",
    "build_loss": "usam.losses",
    "build_llm": "usam.llm",
    "Audio": "usam.types",
    "Frames": "usam.types",
    "Prompt": "usam.types",
    "Vocabulary": "usam.types",
    "LossInputs": "usam.types",
    "LossOutput": "usam.types",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from usam.versions.tested import explained

        with explained():
            value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'usam' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)


wait()
