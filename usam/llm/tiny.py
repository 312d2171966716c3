"""A small random Llama over bytes: embedded, so that everything runs without a download."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from usam.llm import LLM
from usam.registry import ComponentError
from usam.spec.sizes import HEADS, LAYERS, WIDTH
from usam.weights import read

PAD, END = "<|pad|>", "<|end|>"
HALVES = {"model.language_model.": "backbone.", "lm_head.": "head."}


class Tiny(LLM):
    """Two Llama layers over bytes; random without a `path`, and trained whole unless frozen."""

    class Config(LLM.Config):
        """Options of the embedded language model."""

        path: str | None = None
        """A folder that usam saved, whose language model has these sizes; null draws the weights."""
        freeze: Literal["all", "none"] | list[str] = "none"
        """What does not train: all, none, or patterns of parameter names."""
        dim: int = Field(128, ge=8, le=WIDTH)
        """Width."""
        layers: int = Field(2, ge=1, le=LAYERS)
        """Decoder layers."""
        heads: int = Field(4, ge=1, le=HEADS)
        """Attention heads."""
        tie_word_embeddings: bool = False
        """Whether the head is the embedding table."""
        attn_implementation: str | None = None
        """Attention of transformers; null takes the default."""

    @property
    def dim(self) -> int:
        """Width of the token embeddings."""
        return int(self.config.dim)

    def text_config(self) -> PreTrainedConfig:
        """A Llama config over 256 bytes and two special tokens."""
        config = LlamaConfig(
            vocab_size=258,
            hidden_size=self.config.dim,
            intermediate_size=4 * self.config.dim,
            num_hidden_layers=self.config.layers,
            num_attention_heads=self.config.heads,
            num_key_value_heads=self.config.heads,
            max_position_embeddings=32768,
            tie_word_embeddings=self.config.tie_word_embeddings,
            pad_token_id=256,
            bos_token_id=None,
            eos_token_id=257,
        )
        config._attn_implementation = self.config.attn_implementation
        return config

    def backbone(self, text_config: PreTrainedConfig) -> nn.Module:
        """A LlamaModel."""
        backbone: nn.Module = AutoModel.from_config(text_config)
        return backbone

    def head(self, text_config: PreTrainedConfig) -> nn.Linear:
        """A linear layer without bias."""
        return nn.Linear(self.config.dim, text_config.vocab_size, bias=False)

    def pretrained(self) -> dict[str, Tensor]:
        """The language model of a model that usam saved.

        Raises:
            ComponentError: the folder does not hold it whole.
        """
        source = self.source()
        if source is None:
            return {}
        stored = read(source)
        found = {
            half + n.removeprefix(p): t for p, half in HALVES.items() for n, t in stored.items() if n.startswith(p)
        }
        if "head.weight" not in found:
            raise ComponentError(
                f"{source.path}: holds no whole language model; `usam export {source.path} FOLDER` writes one: name "
                "that folder as 'path'"
            )
        return found

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """One token a byte, and tokens for padding and the end of a turn."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(PAD, special=True), AddedToken(END, special=True)])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
        )
