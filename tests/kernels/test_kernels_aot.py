"""Every Triton kernel compiles for GPUs that are not at hand, and fits into their registers and shared memory."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import kernels_aot  # noqa: E402

import usam.kernels  # noqa: E402


@pytest.mark.parametrize("architecture", kernels_aot.SHARED)
def test_every_kernel_compiles_without_spills(architecture):
    reports = kernels_aot.compiled(architecture)
    assert [report.kernel for report in reports] == [example.name for example in kernels_aot.examples()]
    assert {report.kernel: report.spilled for report in reports if report.spilled} == {}
    assert max(report.shared for report in reports) <= kernels_aot.SHARED[architecture]


def test_every_kernel_is_compiled_with_all_its_arguments():
    compiled = {}
    for example in kernels_aot.examples():
        compiled[example.kernel.__name__] = example
        assert {*example.signature, *example.constexprs} == set(example.kernel.arg_names)
    text = "".join(file.read_text(encoding="utf-8") for file in Path(usam.kernels.__file__).parent.glob("_*.py"))
    started = set(re.findall(r"^ +(\w+)\[.+\]\(", text, re.MULTILINE))
    assert started & set(re.findall(r"^@triton\.jit.*\ndef (\w+)", text, re.MULTILINE)) == set(compiled)


def test_the_recorded_kernels_are_those_of_the_code():
    names = [example.name for example in kernels_aot.examples()]
    made = kernels_aot.recorded()
    constraints = ROOT / "constraints.txt"
    text = constraints.read_text(encoding="utf-8") if constraints.exists() else ""
    assert set(re.findall(r"^triton==(\S+)", text, re.MULTILINE)) <= set(made)
    assert len(made) >= 2, "of the Triton that is pinned and of the newest one"
    for reports in made.values():
        assert {a: [report.kernel for report in found] for a, found in reports.items()} == dict.fromkeys(
            (80, 90), names
        )
        assert not any(report.spilled for found in reports.values() for report in found)


def test_the_page_shows_what_was_recorded():
    page, made = kernels_aot.PAGE.read_text(encoding="utf-8"), kernels_aot.recorded()
    assert kernels_aot.written(page, made) == page, "run benchmarks/kernels_aot.py"
    assert kernels_aot.table(made) in page
