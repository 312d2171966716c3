"""The model zoo: what each bundled model builds, beside what its authors say of theirs; writes docs/zoo.md's tables."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _record import record

from usam import Spec, load_spec
from usam.model.summary import difference, table

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
# What never learns in two layers of a Q-Former with one query: self-attention's query and key maps, for its softmax is
# over one element, and the bias of cross-attention's keys, of which no softmax takes notice.
DEAD = 2 * (2 * (768 * 768 + 768) + 768)


@dataclass(frozen=True)
class Model:
    """A published model that a spec is made after."""

    title: str
    arxiv: str
    published: str
    """Trainable parameters, or what else is known of its size, as published."""
    differs: str
    """Why ours has another number."""


MODELS = {
    "paper": Model("U-SAM", "2505.13880", "41M", "widths of the experts, the router and the loss are not published"),
    "paper_sparse": Model(
        "U-SAM", "2505.13880", "", "eight experts, the best two for a clip, which is not in the paper"
    ),
    "paper_beats": Model("U-SAM", "2505.13880", "", "BEATs in CED's place, which is not in the paper"),
    "salmonn": Model(
        "SALMONN", "2310.13289", "33M", "33.33M by its parts, of which 2.36M cannot learn and do not exist here"
    ),
    "slam_asr": Model("SLAM-ASR", "2402.08846", "18.88M", "none"),
    "qwen2_audio": Model("Qwen2-Audio", "2407.10759", "8.2B in all", "the parts as published add up to 8.36B"),
    "naturelm_audio": Model("NatureLM-audio", "2411.07186", "", "the sources give no number"),
    "audio_flamingo": Model(
        "Audio Flamingo",
        "2402.01831",
        "2.2B in all",
        "906M train by the authors' configuration: the frames that are heard are narrower there",
    ),
    "audio_flamingo_2": Model(
        "Audio Flamingo 2", "2503.03983", "3B language model, 203M encoder", "a smaller encoder, of another CLAP"
    ),
    "pam": Model("PaM", "2502.15178", "", "only its abstract was at hand: encoders, widths and routers are ours"),
    "mowe_audio": Model("MoWE-Audio", "2409.06635", "", "only summaries were at hand: encoders and widths are ours"),
    "gama": Model("GAMA", "2406.11768", "", "the sources give no number; one of its two roads for audio"),
}
ABLATIONS = {
    "no_whisper": "w/o Whisper",
    "no_ced": "w/o CED",
    "no_mert": "w/o MERT",
    "no_moe": "w/o TAPM",
    "no_contrastive": "w/o SACLM",
    "no_moe_no_contrastive": "w/o TAPM and SACLM",
}


@dataclass(frozen=True)
class Size:
    """What a spec builds."""

    parts: str
    trainable: int
    frozen: int
    rate: float
    """Audio tokens a second."""


def size(name: str) -> Size:
    """Read off the structure, without weights."""
    spec = load_spec(name)
    total = table(spec)[-1]
    return Size(
        parts(spec), total.trainable, total.parameters - total.trainable, spec.audio_length(spec.sample_rate)[1]
    )


def parts(spec: Spec) -> str:
    """A spec in a line."""
    llm: Any = spec.llm
    trains = f"LoRA {llm.lora.r}" if llm.lora else {"all": "frozen", "none": "trained"}.get(llm.freeze, "partly frozen")
    trains += f", {llm.injection.type.replace('_', '-')}" if llm.injection else ""
    mixture = [spec.fusion.type] if spec.fusion.type != "concat" else []
    stages = " → ".join([*mixture, *(stage.type for stage in spec.projector)])
    return f"{', '.join(spec.encoders)} → {stages} → {Path(llm.path or llm.type).name} ({trains})"


def models_table(sizes: dict[str, Size]) -> str:
    """A row a model."""
    head = ["spec", "after", "parts", "trainable", "published", "difference", "frozen", "tokens a second"]
    rows = []
    for name, model in MODELS.items():
        own = sizes[name]
        source = f"[{model.title}](https://arxiv.org/abs/{model.arxiv})"
        numbers = [millions(own.trainable), model.published or "–", model.differs, millions(own.frozen)]
        rows.append([f"`{name}`", source, own.parts, *numbers, f"{own.rate:.3g}"])
    return markdown(head, rows)


def ablations_table(sizes: dict[str, Size]) -> str:
    """A row for each row of the paper's Table 3, with what `usam show paper NAME` prints."""
    rows = []
    for name, row in ABLATIONS.items():
        changed = {line[2:].split(" = ")[0] for line in difference(load_spec("paper"), load_spec(name))}
        keys = sorted({".".join(key.split(".")[:2]) for key in changed})
        own = sizes[name]
        rows.append(
            [row, f"`{name}`", ", ".join(f"`{k}`" for k in keys), millions(own.trainable), millions(own.frozen)]
        )
    return markdown(["Table 3", "spec", "differs from `paper` in", "trainable", "frozen"], rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def millions(count: int) -> str:
    """`40.9M`, `8.36B`."""
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


def written(text: str, sizes: dict[str, Size]) -> str:
    """The page with its tables anew."""
    for name, content in (("models", models_table(sizes)), ("ablations", ablations_table(sizes))):
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    """All sizes; those that are published are compared."""
    sizes = {name: size(name) for name in [*MODELS, *ABLATIONS]}
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), sizes), encoding="utf-8")
    rows = [
        row("paper", sizes, "41M within 2 %", 0.98 * 41e6, 1.02 * 41e6),
        row(
            "salmonn", sizes, "33M, less 2.36M that cannot learn, within 2 %", *(s * 33e6 - DEAD for s in (0.98, 1.02))
        ),
        row("slam_asr", sizes, "18.88M", 18.875e6, 18.885e6),
    ]
    record(__file__, rows, {name: asdict(own) for name, own in sizes.items()})


def row(name: str, sizes: dict[str, Size], bound: str, low: float, high: float) -> dict[str, object]:
    """A trainable total beside the published one."""
    own = sizes[name].trainable
    what = f"trainable parameters of the spec `{name}` ({MODELS[name].title})"
    return {"what": what, "measured": millions(own), "bound": bound, "ok": low <= own <= high}


if __name__ == "__main__":
    main()
