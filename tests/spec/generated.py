"""Specs drawn from the JSON schema: every option at, within and beyond its bounds, on architectures of milliseconds."""

import random
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from usam import json_schema

HUBERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
HUBERT |= {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
WORDS = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS |= {"num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 1024}
ARCHS: dict[str, list[dict[str, Any]]] = {
    "usam.encoders.whisper": [
        {
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "max_source_positions": n,
        }
        for n in (25, 60)
    ],
    "usam.encoders.ced": [{"embed_dim": 16, "depth": 1, "num_heads": 2}, {"embed_dim": 8, "depth": 2, "num_heads": 1}],
    "usam.encoders.mert": [HUBERT],
    "usam.encoders.beats": [
        {"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 2}
        | {"embed_dim": 8, "conv_pos": 8, "conv_pos_groups": 2, "relative_position_embedding": True}
    ],
    "usam.encoders.timm": [{"architecture": "vit_tiny_patch16_224", "embed_dim": 16, "depth": 1, "num_heads": 2}],
    "usam.encoders.transformers": [
        {"model_type": "hubert", **HUBERT},
        {"model_type": "wavlm", **HUBERT},
        {"model_type": "audio-spectrogram-transformer", "max_length": 96, **dict(list(HUBERT.items())[:4])},
    ],
    "usam.llm.transformers": [
        {"model_type": "llama", **WORDS},
        {"model_type": "qwen3", **WORDS, "head_dim": 8, "tie_word_embeddings": True},
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 320},
    ],
}
NAMES = ["ear", "second", "keys", "pop", "train", "whisper", "half_"]
# What stands for an option whose schema is only "a text", "a list" or "a map".
TEXTS = {
    "attn_implementation": ["sdpa", "eager", "sdpa", "eager", "nonsense"],
    "path": ["/no/such/folder"],
    "revision": ["main"],
    "target_modules": ["all-linear", ".*proj", "(("],
}
LISTS = {
    "freeze": [["*"], ["*bias"], ["*weight"], ["*weight"], [], [], ["*"], ["no.such"]],
    "target_modules": [["q_proj"], ["q_proj", "v_proj"], ["map.0"], ["q_proj"], ["q_porj"], []],
    "layers": [[0], [-1], [0, 1], [0], [1], [9], []],
    "gates": [[1.0], [0.2, 0.8], [0, 0, 1]],
}
MAPS = {"preprocessor": [{}, {"do_normalize": True}, {"sampling_rate": 24000}, {"sampling_rate": 10**9}]}
MAPS["quantization_config"] = [{"quant_method": "nonsense"}]
# Options whose defaults cost more than milliseconds.
SMALL = {"dim", "hidden", "intermediate", "heads", "head_dim", "router_hidden", "slots", "latents", "layers", "frames"}
SMALL |= {"mels", "feed_forward", "queue_tokens", "arch", "tokenizer"}
WIDTHS = {"dim", "hidden", "intermediate", "router_hidden", "head_dim"}
RARE = {"path", "revision", "quantization_config", "lora", "gates", "preprocessor"}
STRANGE = [-1, 0, 0.5, 10**9, 1e9, 1e-9, "", "abc", True, [], {}, [[]], {"type": "abc"}, "é", 10**30]


class Specs:
    """Specs by seed; `tokenizer` is a folder with one, for language models that come without."""

    def __init__(self, seed: int, tokenizer: str) -> None:
        self.draw, self.tokenizer = random.Random(seed), tokenizer
        self.known = json_schema()["$defs"]
        self.types = {
            group: sorted(entry.name for entry in import_module(group).registry.entries() if entry.provider == "usam")
            for group in ("usam.encoders", "usam.fusions", "usam.projectors", "usam.losses", "usam.llm")
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield self.spec()

    def spec(self) -> dict[str, Any]:
        draw = self.draw
        spec: dict[str, Any] = {
            "encoders": {
                name: self.component("usam.encoders") for name in draw.sample(NAMES, draw.choice([1, 1, 1, 1, 2]))
            },
            "projector": [self.component("usam.projectors") for _ in range(draw.choice([1, 1, 1, 2]))],
            "llm": self.component("usam.llm"),
        }
        if self.sometimes(0.5):
            spec["fusion"] = self.component("usam.fusions")
        if self.sometimes(0.5):
            names = draw.sample(self.types["usam.losses"], draw.choice([1, 2]))
            spec["losses"] = {name: self.component("usam.losses", name) for name in names}
            if {"load_balance", "router_z"} & {*names} and self.sometimes(0.8):  # which are of a router
                spec["projector"].append(self.component("usam.projectors", "moe"))
            if self.sometimes(0.7):
                spec["losses"].setdefault("cross_entropy", {"type": "cross_entropy"})
        if self.sometimes(0.2):
            spec["template"] = draw.choice(
                [*["auto", "{prompt}{audio}{answer}", "Q: {prompt} {audio} A: {answer}"] * 3, "abc"]
            )
        if self.sometimes(0.5):
            spec["prompts"] = {
                "asr": "Write it down.",
                "aac": draw.choice(["What is it?", "Sag es.", "", "é {x}", "What is it?", "<|audio|>"]),
            }
        if self.sometimes(0.02):
            spec[draw.choice([*spec, "nonsense"])] = draw.choice(STRANGE)
        return spec

    def component(self, group: str, name: str | None = None) -> dict[str, Any]:
        name = name or self.draw.choice(self.types[group])
        node: dict[str, Any] = {"type": name}
        for option, schema in self.known[f"{group}.{name}"]["properties"].items():
            often = 1.0 if option in SMALL else 0.02 if option in RARE else 0.12
            if option != "type" and self.sometimes(often):
                value = self.value(option, schema, f"{group}.{name}")
                if value is not None:
                    node[option] = value
        return node

    def value(self, option: str, schema: dict[str, Any], component: str) -> Any:
        draw = self.draw
        if self.sometimes(0.003):
            return draw.choice(STRANGE)
        if "$ref" in schema:
            schema = self.known[schema["$ref"].removeprefix("#/$defs/")]
        if option == "arch":
            return self.arch(component)
        if option == "tokenizer":
            return self.tokenizer
        if "anyOf" in schema:
            kinds = [kind for kind in schema["anyOf"] if kind.get("type") != "null" or option not in SMALL]
            return self.value(option, draw.choice(kinds), component)
        if "enum" in schema:
            return draw.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        kind = schema.get("type")
        if kind == "object" and "properties" in schema:
            inner = [name for name in schema["properties"] if name != "type" and self.sometimes(0.4)]
            node = {name: self.value(name, schema["properties"][name], component) for name in inner}
            return {name: value for name, value in node.items() if value is not None}
        found = {"string": TEXTS, "array": LISTS, "object": MAPS}.get(str(kind))
        if found is not None:
            return draw.choice(found.get(option, [None]))
        if kind == "boolean":
            return draw.choice([True, False])
        if kind in ("integer", "number"):
            return self.number(option, schema, whole=kind == "integer")
        return None

    def number(self, option: str, schema: dict[str, Any], whole: bool) -> Any:
        """Mostly small and within the bounds; now and then at them, or beyond."""
        step = 1 if whole else 1e-3
        low = schema.get("minimum", schema.get("exclusiveMinimum", -2) + step)
        high = schema.get("maximum", schema.get("exclusiveMaximum", 10**9) - step)
        if self.sometimes(0.01):
            return self.draw.choice([low, high, low - step, high + step, 10**9 if whole else 1e-9])
        some = (
            [8, 16, 32]
            if option in WIDTHS
            else [1, 2, 4]
            if whole
            else [0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0, 2.0, 10.0]
        )
        return self.draw.choice([n for n in some if low <= n <= high] or [low])

    def arch(self, component: str) -> Any:
        if component not in ARCHS:
            return None
        arch = dict(self.draw.choice(ARCHS[component]))
        if self.sometimes(0.03):
            arch[self.draw.choice(list(arch))] = self.draw.choice([*STRANGE, 3, 7])
        return arch

    def sometimes(self, share: float) -> bool:
        return self.draw.random() < share
