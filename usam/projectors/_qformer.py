"""The Q-Former (Li et al., 2023, section 3.1): learned queries that read a sequence through cross-attention."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

EPS = 1e-12  # BERT's


class QFormer(nn.Module):
    """Queries through layers that norm last, as BERT's do (U-SAM, eq. 2).

    Args:
        in_dim: width of the sequence.
        dim: width of the queries.
        queries: how many.
        layers: how many.
        heads: of every attention; they divide `dim`.
        intermediate: width between the two linear maps that end a layer.
        cross_attention_frequency: every so many layers, from the first on, one reads the sequence.
        dropout: on what each map gives, and on attention's shares.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        queries: int,
        layers: int,
        heads: int,
        intermediate: int,
        cross_attention_frequency: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, dim))
        self.norm = nn.LayerNorm(dim, EPS)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList()
        for i in range(layers):
            among = Attention(dim, heads, dropout) if queries > 1 else Alone(dim, heads, dropout)
            reads = i % cross_attention_frequency == 0
            cross = CrossAttention(dim, heads, dropout, in_dim) if reads else None
            self.layers.append(Layer(dim, intermediate, dropout, among, cross))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random queries; a norm follows, so that their scale is of no consequence."""
        nn.init.normal_(self.query, std=0.02)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """What the queries read in each of n sequences.

        Args:
            x: (n, time, in_dim), finite.
            mask: (n, time), True where it may be read; a sequence without any is read whole.

        Returns:
            (n, queries, dim).
        """
        mask = mask | ~mask.any(-1, keepdim=True)  # a softmax over nothing would be NaN
        h = self.dropout(self.norm(self.query).expand(len(x), -1, -1))
        for layer in self.layers:
            h = layer(h, x, mask)
        return cast(Tensor, h)


class Layer(nn.Module):
    """The queries attend to each other, then to the sequence, then each is mapped on its own."""

    def __init__(
        self, dim: int, intermediate: int, dropout: float, among: nn.Module, cross: CrossAttention | None
    ) -> None:
        super().__init__()
        self.self_attention, self.self_norm = among, nn.LayerNorm(dim, EPS)
        self.cross_attention = cross
        self.cross_norm = None if cross is None else nn.LayerNorm(dim, EPS)
        self.up, self.down = nn.Linear(dim, intermediate), nn.Linear(intermediate, dim)
        self.norm = nn.LayerNorm(dim, EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Queries (n, query, dim) to the same."""
        h = self.self_norm(h + self.dropout(self.self_attention(h)))
        if self.cross_attention is not None and self.cross_norm is not None:
            h = self.cross_norm(h + self.dropout(self.cross_attention(h, x, mask)))
        return cast(Tensor, self.norm(h + self.dropout(self.down(F.gelu(self.up(h))))))


class Alone(nn.Module):
    """Self-attention of a single query: its share of itself is 1, and only the way of its value remains."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout1d(dropout)  # of shares: of whole heads, for each has but one

    def forward(self, h: Tensor) -> Tensor:
        """(n, 1, dim) to the same."""
        value = self.dropout(rearrange(self.value(h), "n 1 (h d) -> n h d", h=self.heads))
        return cast(Tensor, self.out(rearrange(value, "n h d -> n 1 (h d)")))


class Attention(nn.Module):
    """Attention of the queries to a sequence of `in_dim`, by default to each other.

    Keys have no bias: it adds the same to all scores of a query, and the softmax takes no notice.
    """

    def __init__(self, dim: int, heads: int, dropout: float, in_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key, self.value = nn.Linear(in_dim or dim, dim, bias=False), nn.Linear(in_dim or dim, dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """(n, query, dim) to the same."""
        return self._attend(h, h, None)

    def _attend(self, h: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            rearrange(part, "n t (h d) -> n h t d", h=self.heads)
            for part in (self.query(h), self.key(x), self.value(x))
        )
        dropout = self.dropout.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return cast(Tensor, self.out(rearrange(x, "n h q d -> n q (h d)")))


class CrossAttention(Attention):
    """Attention of the queries to a sequence; few of them go to the sequence instead of having it come to them."""

    def forward(self, h: Tensor, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Queries (n, query, dim), sequence (n, time, in_dim) and its mask (n, time), to (n, query, dim)."""
        if self._few(h.shape[1], x.shape[1]):
            return self._go(h, x, mask)
        return self._attend(h, x, mask[:, None, None])

    def _few(self, queries: int, time: int) -> bool:
        """Whether going costs a fifth at most: it takes more memory. Adapters have to be called, and exclude it."""
        dim = self.query.out_features
        plain = type(self.key) is type(self.value) is nn.Linear
        return plain and 5 * queries * (dim + self.heads * time) <= time * dim

    def _go(self, h: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """The same without keys and values: q·(Kx) = (Kᵀq)·x, and Σ a (Vx + b) = V(Σ a x) + b Σ a."""
        heads, queries = self.heads, h.shape[1]
        key = rearrange(self.key.weight, "(h d) w -> h d w", h=heads)
        value = rearrange(self.value.weight, "(h d) w -> h w d", h=heads)
        q = rearrange(self.query(h) * key.shape[1] ** -0.5, "n q (h d) -> h (n q) d", h=heads)
        scores = rearrange(q @ key, "h (n q) w -> n (h q) w", q=queries) @ x.mT
        scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
        shares = self.dropout(scores.softmax(-1))  # n (h q) t
        read = rearrange(shares @ x, "n (h q) w -> h (n q) w", q=queries) @ value
        bias = rearrange(self.value.bias, "(h d) -> h 1 d", h=heads)
        read = read + bias * reduce(shares, "n (h q) t -> h (n q) 1", "sum", q=queries)  # dropout keeps no sum
        return cast(Tensor, self.out(rearrange(read, "h (n q) d -> n q (h d)", q=queries)))
