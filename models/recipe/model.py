"""The decoder that train.py trains: Llama (RMS norm, rotary positions, grouped heads, SwiGLU, tied embedding)."""
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """Sizes, by their GGUF names. Every row length is a multiple of 32, so that Q8_0 holds all matrices."""

    n_vocab: int = 2048
    n_ctx: int = 512
    n_embd: int = 192
    n_layer: int = 6
    n_head: int = 6
    n_head_kv: int = 2
    n_ff: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self):
        return self.n_embd // self.n_head

    def as_dict(self):
        return asdict(self)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        kv = c.n_head_kv * c.head_dim
        self.c = c
        self.attn_norm = nn.Parameter(torch.ones(c.n_embd))
        self.ffn_norm = nn.Parameter(torch.ones(c.n_embd))
        self.attn_q = nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.attn_k = nn.Linear(c.n_embd, kv, bias=False)
        self.attn_v = nn.Linear(c.n_embd, kv, bias=False)
        self.attn_output = nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.ffn_gate = nn.Linear(c.n_embd, c.n_ff, bias=False)
        self.ffn_up = nn.Linear(c.n_embd, c.n_ff, bias=False)
        self.ffn_down = nn.Linear(c.n_ff, c.n_embd, bias=False)

    def forward(self, x, cos, sin):
        c, (b, t, _) = self.c, x.shape
        h = F.rms_norm(x, (c.n_embd,), self.attn_norm, c.norm_eps)
        q = rotate(self.attn_q(h).view(b, t, c.n_head, c.head_dim), cos, sin)
        k = rotate(self.attn_k(h).view(b, t, c.n_head_kv, c.head_dim), cos, sin)
        v = self.attn_v(h).view(b, t, c.n_head_kv, c.head_dim)
        group = c.n_head // c.n_head_kv
        k, v = (z.repeat_interleave(group, dim=2).transpose(1, 2) for z in (k, v))
        a = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        x = x + self.attn_output(a.transpose(1, 2).reshape(b, t, c.n_embd))
        h = F.rms_norm(x, (c.n_embd,), self.ffn_norm, c.norm_eps)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


def rotate(x, cos, sin):
    """Turns neighbouring pairs of dimensions, which is what GGUF's `llama` means."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.token_embd = nn.Embedding(c.n_vocab, c.n_embd)
        self.blk = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.output_norm = nn.Parameter(torch.ones(c.n_embd))
        inv = 1.0 / c.rope_base ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angle = torch.arange(c.n_ctx).float()[:, None] * inv[None, :]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        nn.init.normal_(self.token_embd.weight, std=0.02)
        for name, p in self.named_parameters():
            if p.ndim == 2 and "token_embd" not in name:
                nn.init.normal_(p, std=1.0 / math.sqrt(p.shape[1]))
            # Writers to the residual stream start at zero: each block begins as the identity.
            if name.endswith(("attn_output.weight", "ffn_down.weight")):
                nn.init.zeros_(p)

    def forward(self, tokens, targets):
        """Mean negative log likelihood (nats a token) of `targets` `[b, t]` after `tokens` `[b, t]`."""
        t = tokens.shape[1]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, self.cos[:t].to(x.dtype), self.sin[:t].to(x.dtype))
        x = F.rms_norm(x, (self.c.n_embd,), self.output_norm, self.c.norm_eps)
        logits = F.linear(x, self.token_embd.weight).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
