"""Attention between cells and tokens, and the block of a vision transformer."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention of several heads (Vaswani et al., 2017, eq. 1).

    Written out, because the backward pass of the fused kernels adds in an order that differs between runs on a GPU.

    Args:
        query: (B, M, F); F divisible by `heads`.
        key: (B, N, F).
        value: (B, N, F).
        heads: Number of heads.

    Returns:
        (B, M, F) and the weights (B, heads, M, N) in float32, which sum to 1 over N.
    """
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).float().softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2), weights


class TransformerLayer(nn.Module):
    """Block of a vision transformer (Dosovitskiy et al., 2021): norms come first, GELU between the dense layers.

    Args:
        hidden: Width of the tokens.
        heads: Attention heads, a divisor of `hidden`.
        mlp: Width between the dense layers.
        dropout: After each of them.
    """

    def __init__(self, hidden: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden, eps=1e-6), nn.LayerNorm(hidden, eps=1e-6)
        self.query, self.key = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.value, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.fc1, self.fc2 = nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, hidden) → (B, N, hidden)."""
        y = self.norm1(x)
        x = x + self.out(attend(self.query(y), self.key(y), self.value(y), self.heads)[0])
        y = self.dropout(F.gelu(self.fc1(self.norm2(x))))
        out: Tensor = x + self.dropout(self.fc2(y))
        return out
