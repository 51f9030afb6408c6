"""A decoder of its own in numpy, over the weights as the GGUF stores them: what the shipped file is measured with."""
import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


class Reference:
    """Float32 forward pass of a Llama GGUF (dequantised), and its tokenizer."""

    def __init__(self, path):
        r = gguf.GGUFReader(path)
        get = lambda key: r.fields[key].contents()
        self.n_layer = get("llama.block_count")
        self.n_head = get("llama.attention.head_count")
        self.n_head_kv = get("llama.attention.head_count_kv")
        self.eps = get("llama.attention.layer_norm_rms_epsilon")
        self.n_ctx = get("llama.context_length")
        base = get("llama.rope.freq_base")
        self.w = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float32) for t in r.tensors}
        self.head_dim = self.w["blk.0.attn_q.weight"].shape[0] // self.n_head
        speed = 1.0 / base ** (np.arange(0, self.head_dim, 2) / self.head_dim)
        angle = np.arange(self.n_ctx)[:, None] * speed[None, :]
        self.cos, self.sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        self.bos = get("tokenizer.ggml.bos_token_id")
        pieces = get("tokenizer.ggml.tokens")
        merges = [tuple(m.split(" ")) for m in get("tokenizer.ggml.merges")]
        self.tok = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
        self.tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        self.tok.decoder = decoders.ByteLevel()

    def norm(self, x, w):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * w

    def turn(self, x):
        """Rotates neighbouring pairs of `x` `[b, t, heads, head_dim]`."""
        t = x.shape[1]
        a, b, c, s = x[..., 0::2], x[..., 1::2], self.cos[None, :t, None], self.sin[None, :t, None]
        return np.stack((a * c - b * s, a * s + b * c), -1).reshape(x.shape)

    def logits(self, tokens):
        """Logits `[b, t, n_vocab]` after each token of `tokens` `[b, t]`."""
        b, t = tokens.shape
        x = self.w["token_embd.weight"][tokens]
        mask = np.triu(np.full((t, t), -np.inf, np.float32), 1)
        for i in range(self.n_layer):
            w = lambda part: self.w[f"blk.{i}.{part}.weight"]
            h = self.norm(x, w("attn_norm"))
            split = lambda z, n: z.reshape(b, t, n, self.head_dim)
            q = self.turn(split(h @ w("attn_q").T, self.n_head))
            k = self.turn(split(h @ w("attn_k").T, self.n_head_kv))
            v = split(h @ w("attn_v").T, self.n_head_kv)
            k, v = (np.repeat(z, self.n_head // self.n_head_kv, axis=2) for z in (k, v))
            s = np.einsum("bqhd,bkhd->bhqk", q, k, optimize=True) / np.sqrt(self.head_dim) + mask
            p = np.exp(s - s.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            x = x + np.einsum("bhqk,bkhd->bqhd", p, v, optimize=True).reshape(b, t, -1) @ w("attn_output").T
            h = self.norm(x, w("ffn_norm"))
            g = h @ w("ffn_gate").T
            x = x + (g / (1 + np.exp(-g)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
        out = self.w.get("output.weight", self.w["token_embd.weight"])
        return self.norm(x, self.w["output_norm.weight"]) @ out.T

    def encode(self, text):
        """Token ids of `text`, the begin token first. In pieces at blank lines, as in training."""
        parts = text.split("\n\n")
        ids = [self.bos]
        for e in self.tok.encode_batch([p if i == 0 else "\n\n" + p for i, p in enumerate(parts)]):
            ids.extend(e.ids)
        return ids
