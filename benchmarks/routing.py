"""Whether the router routes: what its gates tell of the task, and what they are worth.

The run of the demo, or another (`--run`), is trained with three seeds, with the prompt normalised and as it is. Mutual
information is that of task and expert in bits, tasks being alike in number and an expert taken as often as its mean
gate says. It is at most log2(min(experts, tasks)). Then each model's cross entropy on development data, with the gates
as learned, all even, those of another task (the mean over all others, which is that over all ways to exchange them),
and with the largest alone.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _record import record
from _runs import HeldOut, Study, mean

from usam.projectors.moe import even, fixed_gates, largest
from usam.training.routing import Routing

Gates = dict[str, list[float]]  # by task
PICTURE = Path(__file__).parents[1] / "docs" / "routing.svg"
VARIANTS = {"normalised": True, "as it is": False}
GATES = ("as learned", "even", "of another task", "the largest alone")


def main() -> None:
    """Train, measure, and write it down."""
    study = Study.asked(str(__doc__))
    option = f"{study.place('moe')}.normalize_prompt"
    raw: dict[str, Any] = {"seeds": study.seeds}
    for name, normalize in VARIANTS.items():
        for seed in study.seeds:
            folder = "base" if normalize else "not-normalised"
            out = study.trained(folder, seed, f"{option}={str(normalize).lower()}")
            raw.setdefault(name, []).append(measured(study, out))
            print(name, seed, json.dumps(raw[name][-1]["losses"]), flush=True)
    record(__file__, [row for name in VARIANTS for row in rows(name, raw[name])], raw)
    draw(raw)


def draw(raw: Mapping[str, Any]) -> None:
    """The largest gate of each task over training: a line a task, a panel a seed, a row a way to read the prompt."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "routing"
    figure, panels = plt.subplots(
        len(VARIANTS), len(raw["seeds"]), figsize=(9, 5), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    styles = ("-", "--", ":", "-.")
    for row, name in zip(panels, VARIANTS, strict=True):
        for axes, seed, found in zip(row, raw["seeds"], raw[name], strict=True):
            for style, (task, gate) in zip(styles, found["gates"].items(), strict=True):
                expert = gate.index(max(gate))
                lines = [(line["step"], line["gates"][task][expert]) for line in found["training"]]
                axes.plot(*zip(*lines, strict=True), color="black", linestyle=style, label=f"{task}, expert {expert}")
            axes.set(title=f"prompt {name}, seed {seed}", ylim=(0, 1))
            axes.legend(fontsize=7)
            axes.grid(alpha=0.3)
    figure.supxlabel("step")
    figure.supylabel("gate of the expert that the task takes most in the end")
    figure.savefig(PICTURE, metadata={"Date": None})


def measured(study: Study, out: Path) -> dict[str, Any]:
    """Gates over training and on development data, what they tell, and losses by gates and task."""
    log = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    held_out = study.held_out(out)
    found = gates(held_out)
    losses = {"as learned": held_out.losses()}
    for name, change in (("even", even), ("the largest alone", largest)):
        with fixed_gates(held_out.model, change):
            losses[name] = held_out.losses()
    under = {}
    for task in found:
        with fixed_gates(held_out.model, found[task]):
            under[task] = held_out.losses()
    losses["of another task"] = {
        task: statistics.mean(under[other][task] for other in under if other != task) for task in found
    }
    return {
        "training": [{"step": line["step"], "gates": by_task(line)} for line in log if by_task(line)],
        "gates": found,
        "information": information(found),
        "most": math.log2(min(len(found), len(next(iter(found.values()))))),
        "losses": losses,
        "under the gates of": under,
    }


@torch.no_grad()
def gates(held_out: HeldOut) -> Gates:
    """The mean gates of each task on development data."""
    routing = Routing()
    for tasks, inputs in held_out.batches():
        routing.add(tasks, held_out.model(**inputs).aux)
    return by_task(routing.means())


def by_task(log: Mapping[str, Any]) -> Gates:
    """The gates in a line of the log: one mixture's, `router/<task>/expert<i>`."""
    found: Gates = {}
    places = sorted((m[1], int(m[2])) for key in log if (m := re.fullmatch(r"router/(.+)/expert(\d+)", key)))
    for task, expert in places:
        found.setdefault(task, []).append(log[f"router/{task}/expert{expert}"])
    return found


def information(found: Mapping[str, Sequence[float]]) -> float:
    """I(task; expert) in bits: how many of the task are known to whoever sees which expert is taken."""
    shares = torch.tensor(list(found.values()), dtype=torch.float64)
    shares = shares / shares.sum(-1, keepdim=True)
    nats = (torch.xlogy(shares, shares) - torch.xlogy(shares, shares.mean(0))).sum(-1).mean()
    return max(0.0, nats.item() / math.log(2))


def rows(name: str, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What stands on the page for one way to read the prompt."""
    seeds = f"mean of {len(found)} seeds"
    bits = [each["information"] for each in found]
    told = [
        {
            "what": f"prompt {name}: mutual information of task and expert, {seeds}",
            "measured": f"{statistics.mean(bits):.2f} bits ({', '.join(f'{value:.2f}' for value in bits)})",
            "bound": f"at most {found[0]['most']:.2f}",
        }
    ]
    for gates_name in GATES:
        losses = [each["losses"][gates_name] for each in found]
        tasks = ", ".join(f"{task} {statistics.mean(each[task] for each in losses):.3f}" for task in losses[0])
        told.append(
            {
                "what": f"prompt {name}: cross entropy on development data, gates {gates_name}, {seeds}",
                "measured": f"{statistics.mean(map(mean, losses)):.3f} ({tasks})",
                "bound": "-",
            }
        )
    return [{**row, "ok": True} for row in told]


if __name__ == "__main__":
    main()
