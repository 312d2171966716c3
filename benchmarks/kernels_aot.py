"""Every Triton kernel compiled ahead of time for two architectures, without a GPU: registers, spills, shared memory.

Triton compiles the kernels at their default tiles (`examples`) for widths that divide by 16, as a model's do, and any
number of rows; `cuobjdump` from Triton's own wheel reads the machine code. What this environment's Triton makes goes
beside what others made: run it in an environment of each version. Writes docs/kernels.md's table.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
RESULT = Path(__file__).parent / "results" / "kernels_aot.json"
# What a program may take at most, by architecture (CUDA C++ Programming Guide, table of compute capabilities).
SHARED = {80: 163 * 1024, 90: 227 * 1024}
# Arguments that are widths, or strides of whole rows, and so divide by 16; the others count rows.
WIDTHS = {"D", "H", "K", "M", "N", "stride"}
INDEXES = {"experts", "counts", "src", "dst", "offs", "bases"}
WHOLE = {"N", "SHARE", "H", "SLOTS", "row_stride", "stride", "slots", "tiles", "T", "D", "K", "M"}


class Example(NamedTuple):
    """A kernel and its options, as it is started by default."""

    kernel: Any
    name: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, int]
    widths: set[str]


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


def examples(architecture: int = 90) -> Iterator[Example]:
    """All kernels: bfloat16, float32 logits, two of eight experts or all three."""
    import triton.language as tl

    from usam.kernels import _dense, _routing, _sparse

    def example(kernel: Any, widths: set[str], says: str = "", reals: str = "*bf16", **known: Any) -> Example:
        # Capitals that no tile or option sets are sizes.
        taken = {name: value for name, value in known.items() if name in kernel.arg_names}
        kinds = dict.fromkeys(WHOLE, "i32") | dict.fromkeys(INDEXES, "*i32") | {"mask": "*i1"}
        kinds |= dict.fromkeys(("gates", "d_gates", "dgates", "z"), "*fp32")
        signature = {name: kinds.get(name, reals) for name in kernel.arg_names if name not in taken}
        options = {name: value for name, value in known.items() if name in ("num_warps", "num_stages", "maxnreg")}
        name = kernel.__name__.removesuffix("_kernel") + (f" ({says})" if says else "")
        return Example(kernel, name, signature, taken, options, widths)

    def routing(kernel: Any, says: str = "", count: int = 8, **known: Any) -> Example:
        shape = {"E": count, "K": 2, "EP": count, "KP": 2, "RENORMALIZE": True, "WIDE": tl.float32}
        shape |= {"ROWS": _routing._rows(count), "expert_stride": 1, "mask_stride": 1, **_routing._span(count, 2)}
        return example(kernel, set(), says, "*fp32", **shape | known)

    yield routing(_routing.route_forward)
    yield routing(_routing.route_place)
    for count in (8, 64):
        rows = _routing._rows(count) // _routing.BACKWARD
        yield routing(_routing.route_backward_kernel, f"{count} experts", count, ROWS=rows)
    middle = {"E": 3, "ACTIVATION": "gelu", "WIDE": tl.float32, **_dense.TILE, **_dense.OPTIONS}
    yield example(_dense.gate_act_kernel, {"H"}, **middle)
    yield example(_dense.gate_act_backward_kernel, {"H"}, **middle)
    types = {"WIDE": tl.float32, "OPERAND": tl.bfloat16, "PRECISION": "ieee"}
    best = {"TOP_K": 2, "COUNT": 8, "POWER": 8, "ACTIVATION": "gelu", "SAVE": True, "SCATTER": False, **types}
    hopper = _sparse.HOPPER if architecture >= 90 else {}
    tiles = {product: by_bytes[2] | hopper.get(product, {}) for product, by_bytes in _sparse.TILES.items()}
    yield example(_sparse.up_kernel, WIDTHS, **best, **tiles["up"])
    yield example(_sparse.down_kernel, WIDTHS, **best, **tiles["down"])
    yield example(_sparse.down_kernel, WIDTHS, "scatter", **best | {"SCATTER": True, "TOP_K": 1}, **tiles["down"])
    yield example(_sparse.combine_kernel, WIDTHS, **best, **_sparse.COMBINE)
    yield example(_sparse.dh_kernel, WIDTHS, **best, **tiles["dh"])
    yield example(_sparse.dh_kernel, WIDTHS, "linear", **best | {"ACTIVATION": "none"}, **tiles["dh"])
    yield example(_sparse.dw_kernel, WIDTHS, "bias of a", **best, BIAS="a", **tiles["dw"])
    yield example(_sparse.dw_kernel, WIDTHS, "bias of b", **best, BIAS="b", **tiles["dw"])


def compile_all(architecture: int) -> None:
    """Print the reports of all kernels as JSON."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    reports = []
    for example in examples(architecture):
        whole = [n for n, kind in example.signature.items() if kind.startswith("*") or n in example.widths]
        # What Triton finds out by itself when a kernel is started.
        hints = {(example.kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in whole}
        source = ASTSource(example.kernel, example.signature, example.constexprs, hints)
        made = compile(source, target=GPUTarget("cuda", architecture, 32), options=example.options)
        cubin.write_bytes(made.asm["cubin"])
        said = subprocess.run([tool, "--dump-resource-usage", cubin], check=True, capture_output=True, text=True).stdout
        used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
        reports.append(Report(example.name, used["REG"], used["STACK"] + used["LOCAL"], made.metadata.shared))
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


Made = dict[str, dict[int, list[Report]]]  # by Triton's version and the architecture


def table(made: Made) -> str:
    """A row a kernel."""
    columns = [(triton, architecture) for triton, reports in made.items() for architecture in reports]
    heads = " | ".join(f"Triton {triton}, sm_{architecture}" for triton, architecture in columns)
    lines = [f"| kernel | {heads} | spills |", "|---" * (2 + len(columns)) + "|"]
    for same in zip(*(made[triton][architecture] for triton, architecture in columns), strict=True):
        cells = " | ".join(f"{report.registers}, {report.shared / 1024:.1f} KiB" for report in same)
        lines.append(f"| `{same[0].kernel}` | {cells} | {sum(report.spilled for report in same)} |")
    return "\n".join(lines)


def written(text: str, made: Made) -> str:
    """The page with its table anew."""
    pattern = r"(<!-- compiled: [^\n]*-->\n).*?(<!-- /compiled -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{table(made)}\n{found[2]}", text, flags=re.DOTALL)


def recorded() -> Made:
    """What was made so far."""
    raw = json.loads(RESULT.read_text(encoding="utf-8"))["raw"] if RESULT.exists() else {}
    return {
        triton: {int(name.removeprefix("sm_")): [Report(**report) for report in found] for name, found in by.items()}
        for triton, by in raw.items()
    }


def main() -> None:
    """Both architectures, by the Triton of this environment; versions whose kernels are not today's are forgotten."""
    from _record import record

    names = [example.name for example in examples()]
    made = {
        triton: by
        for triton, by in recorded().items()
        if all([report.kernel for report in found] == names for found in by.values())
    }
    made[version("triton")] = {architecture: compiled(architecture) for architecture in SHARED}
    made = dict(sorted(made.items()))
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    every = [report for by in made.values() for found in by.values() for report in found]
    by_what = f"for sm_80 and sm_90 by Triton {' and '.join(made)}"
    spilling = sum(report.spilled > 0 for report in every)
    most = max(report.registers for report in every)
    rows = [
        row(f"kernels compiled {by_what}, without a GPU", str(len(every)), str(2 * len(names) * len(made)), True),
        row(f"kernels that spill registers, compiled {by_what}", str(spilling), "0", spilling == 0),
        row("registers of a thread, the most of any kernel", str(most), "255", most <= 255),
    ]
    for architecture, limit in SHARED.items():
        shared = max(report.shared for by in made.values() for report in by[architecture])
        what = f"shared memory of a program, the most of any kernel on sm_{architecture}"
        rows.append(row(what, f"{shared / 1024:.0f} KiB", f"{limit // 1024} KiB", shared <= limit))
    raw = {t: {f"sm_{a}": [asdict(report) for report in found] for a, found in by.items()} for t, by in made.items()}
    record(__file__, rows, raw)


def row(what: str, measured: str, bound: str, ok: bool) -> dict[str, object]:
    return {"what": what, "measured": measured, "bound": bound, "ok": ok}


if __name__ == "__main__":
    compile_all(int(sys.argv[1])) if len(sys.argv) > 1 else main()
