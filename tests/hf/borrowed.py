"""transformers' own test classes, out of the source distribution that `make test-hf` unpacks, or a checkout.

The distribution holds the files beside `tests/`, without the folders below it: what these import from there (tests of
`generate`, of exporters, of single pipelines) stands here as an empty class. Set TRANSFORMERS_SOURCE to a checkout of
the same version to run these as well.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

SOURCE = Path(os.environ["TRANSFORMERS_SOURCE"])
PACKAGE = "transformers_tests"
ABSENT = {
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}


def _module(name: str, **content: object) -> ModuleType:
    module = sys.modules[name] = ModuleType(name)
    module.__dict__.update(content)
    return module


_module(PACKAGE, __path__=[str(SOURCE / "tests")])
for _name, _content in ABSENT.items():
    _folder, _, _file = _name.partition(".")
    if not (SOURCE / "tests" / _folder / f"{_file}.py").is_file():
        _module(f"{PACKAGE}.{_folder}", __path__=[])
        _module(f"{PACKAGE}.{_name}", **_content)
if not (SOURCE / "utils" / "fetch_hub_objects_for_ci.py").is_file():
    _module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)


# A list of models on the hub, which the tests of pipelines read when they are imported: ours is none of them.
_reports = Path(tempfile.mkdtemp()) / "reports"
_reports.mkdir()
(_reports / "tiny_model_summary.json").write_text("{}")
os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(_reports.parent)


def borrow(file: str) -> ModuleType:
    """A file of transformers' `tests/`, as a module."""
    return importlib.import_module(f"{PACKAGE}.{file}")
