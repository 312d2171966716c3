"""Every Triton kernel compiles for GPUs that are not at hand, and fits into their registers and shared memory."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import kernels_aot  # noqa: E402

RECORDED = {
    int(name.removeprefix("sm_")): [kernels_aot.Report(**report) for report in found]
    for name, found in json.loads((ROOT / "benchmarks/results/kernels_aot.json").read_text())["raw"].items()
}


@pytest.mark.parametrize("architecture", kernels_aot.SHARED)
def test_every_kernel_compiles_without_spills(architecture):
    reports = kernels_aot.compiled(architecture)
    assert [report.kernel for report in reports] == [name for _, name, _ in kernels_aot.examples()]
    assert {report.kernel: report.spilled for report in reports if report.spilled} == {}
    assert max(report.shared for report in reports) <= kernels_aot.SHARED[architecture]


def test_every_kernel_file_is_compiled():
    files = (ROOT / "usam" / "kernels").glob("_*.py")
    assert {file.stem for file in files if "@triton.jit" in file.read_text(encoding="utf-8")} - {"_triton"} == set(
        kernels_aot.WIDTHS
    )


def test_the_recorded_kernels_are_those_of_the_code():
    names = [name for _, name, _ in kernels_aot.examples()]
    assert {a: [report.kernel for report in found] for a, found in RECORDED.items()} == dict.fromkeys((80, 90), names)


def test_the_page_shows_what_was_recorded():
    page = kernels_aot.PAGE.read_text(encoding="utf-8")
    assert kernels_aot.written(page, RECORDED) == page, "run benchmarks/kernels_aot.py"
    assert kernels_aot.table(RECORDED) in page
