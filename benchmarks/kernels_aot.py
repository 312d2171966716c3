"""Every Triton kernel compiled ahead of time for two architectures, without a GPU: registers, spills, shared memory.

Triton compiles the kernels at their default tiles (`KERNELS` of each kernel file) for widths that divide by 16, as a
model's do, and any number of rows; `cuobjdump` from Triton's own wheel reads the machine code. Writes docs/kernels.md's
table.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
# What a program may take at most, by architecture (CUDA C++ Programming Guide, table of compute capabilities).
SHARED = {80: 163 * 1024, 90: 227 * 1024}
# Arguments that are widths, or strides of whole rows; the others count rows.
WIDTHS = {
    "_routing": set(),
    "_dense": {"H"},
    "_sparse": {"D", "H", "K", "M", "N", "stride", "dy_stride", "x_stride"},
}


@dataclass(frozen=True)
class Report:
    """What a compiled kernel takes."""

    kernel: str
    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread that did not fit into registers."""
    shared: int
    """Bytes of a program."""


def examples() -> Iterator[tuple[str, str, Any]]:
    """Module, name with the options that are on, and example of every kernel."""
    from usam.kernels import _dense, _routing, _sparse

    for module in (_routing, _dense, _sparse):
        for example in module.KERNELS:
            on = [name.lower() for name, value in example.constexprs.items() if value is True]
            if example.constexprs.get("BIAS") in ("a", "b"):
                on.append(f"bias of {example.constexprs['BIAS']}")
            if example.constexprs.get("E", 0) > 8:
                on.append(f"{example.constexprs['E']} experts")
            file = module.__name__.rsplit(".", 1)[1]
            yield file, example.kernel.__name__.removesuffix("_kernel") + (f" ({', '.join(on)})" if on else ""), example


def compile_all(architecture: int) -> None:
    """Print the reports of all kernels as JSON."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    reports = []
    for file, name, example in examples():
        whole = [n for n, kind in example.signature.items() if kind.startswith("*") or n in WIDTHS[file]]
        # What Triton finds out by itself when a kernel is started.
        hints = {(example.kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in whole}
        source = ASTSource(example.kernel, example.signature, example.constexprs, hints)
        made = compile(source, target=GPUTarget("cuda", architecture, 32), options=example.options)
        cubin.write_bytes(made.asm["cubin"])
        said = subprocess.run([tool, "--dump-resource-usage", cubin], check=True, capture_output=True, text=True).stdout
        used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
        reports.append(Report(name, used["REG"], used["STACK"] + used["LOCAL"], made.metadata.shared))
    print(json.dumps([asdict(report) for report in reports]))


def compiled(architecture: int) -> list[Report]:
    """Reports of all kernels, by a process of its own: Triton that was imported to interpret compiles no more."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": cache}
        command = [sys.executable, __file__, str(architecture)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"The kernels do not compile for sm_{architecture}:\n{done.stderr}")
    return [Report(**report) for report in json.loads(done.stdout.splitlines()[-1])]


def table(reports: dict[int, list[Report]]) -> str:
    """A row a kernel."""
    architectures = " | ".join(f"sm_{a}: registers | shared memory" for a in reports)
    lines = [f"| kernel | {architectures} | spills |", "|---" * (2 + 2 * len(reports)) + "|"]
    for same in zip(*reports.values(), strict=True):
        cells = " | ".join(f"{report.registers} | {report.shared / 1024:.1f} KiB" for report in same)
        lines.append(f"| `{same[0].kernel}` | {cells} | {sum(report.spilled for report in same)} |")
    return "\n".join(lines)


def written(text: str, reports: dict[int, list[Report]]) -> str:
    """The page with its table anew."""
    pattern = r"(<!-- compiled: [^\n]*-->\n).*?(<!-- /compiled -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{table(reports)}\n{found[2]}", text, flags=re.DOTALL)


def main() -> None:
    """Both architectures."""
    from _record import record

    reports = {architecture: compiled(architecture) for architecture in SHARED}
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), reports), encoding="utf-8")
    every = [report for found in reports.values() for report in found]
    names = " and ".join(f"sm_{architecture}" for architecture in SHARED)
    spilling = sum(report.spilled > 0 for report in every)
    most = max(report.registers for report in every)
    rows = [
        row(f"kernels compiled for {names} without a GPU", str(len(every)), str(2 * len(list(examples()))), True),
        row(f"kernels that spill registers on {names}", str(spilling), "0", spilling == 0),
        row(f"registers of a thread, the most of any kernel on {names}", str(most), "255", most <= 255),
    ]
    for architecture, limit in SHARED.items():
        shared = max(report.shared for report in reports[architecture])
        what = f"shared memory of a program, the most of any kernel on sm_{architecture}"
        rows.append(row(what, f"{shared / 1024:.0f} KiB", f"{limit // 1024} KiB", shared <= limit))
    record(__file__, rows, {f"sm_{a}": [asdict(report) for report in found] for a, found in reports.items()})


def row(what: str, measured: str, bound: str, ok: bool) -> dict[str, object]:
    return {"what": what, "measured": measured, "bound": bound, "ok": ok}


if __name__ == "__main__":
    compile_all(int(sys.argv[1])) if len(sys.argv) > 1 else main()
