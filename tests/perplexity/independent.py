"""The perplexity of a Llama in GGUF, from nothing but this file and numpy: its own reader, its own tokenizer, its own
forward pass, in double precision. Its figures stand in figures.json; tests/perplexity.rs holds the program to them.

    python3 tests/perplexity/independent.py MODEL.gguf TEXT --windows 40

Definition (llama.cpp, tools/perplexity): the whole text is tokenized at once, with the begin token before it; windows of
n_ctx tokens, the rest dropped; the begin token takes the place of the first token of each window; the tokens after
position n_ctx / 2 are scored, each by the logits at the position before it. Perplexity is exp of the mean of -ln p.

Types: F32, F16, Q8_0, Q4_0. Tokenizer: SentencePiece BPE with scores and byte fallback.
"""

import argparse
import heapq
import json
import struct
import sys

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Gguf:
    """Metadata and tensors of a GGUF file of version 3."""

    def __init__(self, path):
        self.data, self.at = open(path, "rb").read(), 0
        magic, version, n_tensors, n_keys = self.take("<4sIQQ")
        assert magic == b"GGUF" and version == 3, (magic, version)
        self.keys = {}
        for _ in range(n_keys):
            key = self.string()
            self.keys[key] = self.value(*self.take("<I"))
        infos = []
        for _ in range(n_tensors):
            name, (n_dims,) = self.string(), self.take("<I")
            dims = self.take(f"<{n_dims}Q")
            infos.append((name, dims, *self.take("<IQ")))
        align = self.keys.get("general.alignment", 32)
        start = (self.at + align - 1) // align * align
        self.tensors = {name: self.tensor(dims, kind, start + offset) for name, dims, kind, offset in infos}

    def take(self, form):
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def string(self):
        (n,) = self.take("<Q")
        self.at += n
        return self.data[self.at - n : self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            of, n = self.take("<IQ")
            return [self.value(of) for _ in range(n)]
        return self.take("<" + SCALARS[kind])[0]

    def tensor(self, dims, kind, at):
        """Weights as float64, rows first."""
        n = int(np.prod(dims))
        if kind in (0, 1):
            x = np.frombuffer(self.data, "<f4" if kind == 0 else "<f2", n, at).astype(np.float64)
        else:
            size = {2: 18, 8: 34}[kind]
            raw = np.frombuffer(self.data, np.uint8, n // 32 * size, at).reshape(-1, size)
            scale = raw[:, :2].copy().view("<f2").astype(np.float64)
            if kind == 8:
                codes = raw[:, 2:].copy().view(np.int8).astype(np.float64)
            else:
                codes = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], 1).astype(np.float64) - 8
            x = scale * codes
        return x.reshape(tuple(reversed(dims)))


def tokenize(keys, text):
    """SentencePiece BPE: the best-scored pair of neighbours is joined, the leftmost of equals first."""
    pieces, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    symbols = list(("\u2581" + text.replace(" ", "\u2581")) if text else "")
    n = len(symbols)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    heap = []

    def offer(i):
        j = after[i]
        if j < n and (id := ids.get(symbols[i] + symbols[j])) is not None:
            heapq.heappush(heap, (-scores[id], i, symbols[i] + symbols[j]))

    for i in range(n - 1):
        offer(i)
    while heap:
        _, i, joined = heapq.heappop(heap)
        j = after[i] if symbols[i] else n
        if j >= n or symbols[i] + symbols[j] != joined:
            continue
        symbols[i], symbols[j] = joined, ""
        after[i] = after[j]
        if after[j] < n:
            before[after[j]] = i
        offer(i)
        if before[i] >= 0:
            offer(before[i])
    out = []
    for symbol in filter(None, symbols):
        id = ids.get(symbol)
        out += [id] if id is not None else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return out


def norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def logits(model, tokens):
    """Logits after each token, `[n, n_vocab]`."""
    k, w = model.keys, model.tensors
    n, n_head, eps = len(tokens), k["llama.attention.head_count"], k["llama.attention.layer_norm_rms_epsilon"]
    n_kv = k.get("llama.attention.head_count_kv", n_head)
    width = k["llama.embedding_length"] // n_head
    pairs = np.arange(width // 2)
    angle = np.arange(n)[:, None] * k.get("llama.rope.freq_base", 10000.0) ** (-2.0 * pairs / width)
    turn = np.exp(1j * angle)[:, None]

    def rotate(x):
        """Neighbouring dimensions turn together."""
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
        return np.stack([z.real, z.imag], -1).reshape(x.shape)

    hidden = np.triu(np.full((n, n), -np.inf), 1)
    x = w["token_embd.weight"][tokens]
    for layer in range(k["llama.block_count"]):
        of = lambda name: w[f"blk.{layer}.{name}.weight"]
        h = norm(x, of("attn_norm"), eps)
        q = rotate((h @ of("attn_q").T).reshape(n, n_head, width))
        key = rotate((h @ of("attn_k").T).reshape(n, n_kv, width)).repeat(n_head // n_kv, 1)
        value = (h @ of("attn_v").T).reshape(n, n_kv, width).repeat(n_head // n_kv, 1)
        score = np.einsum("qhd,khd->hqk", q, key) / np.sqrt(width) + hidden
        score = np.exp(score - score.max(-1, keepdims=True))
        score /= score.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", score, value).reshape(n, -1) @ of("attn_output").T
        h = norm(x, of("ffn_norm"), eps)
        gate = h @ of("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ of("ffn_up").T)) @ of("ffn_down").T
    return norm(x, w["output_norm.weight"], eps) @ w.get("output.weight", w["token_embd.weight"]).T


def surprises(model, tokens, first):
    """-ln p of each token from position `first` on."""
    rows = logits(model, tokens)[first - 1 : -1]
    top = rows.max(-1)
    chosen = rows[np.arange(len(rows)), tokens[first:]]
    return np.log(np.exp(rows - top[:, None]).sum(-1)) + top - chosen


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("model")
    args.add_argument("text")
    args.add_argument("--windows", type=int, default=sys.maxsize)
    args.add_argument("--n-ctx", type=int, default=512)
    args = args.parse_args()
    model = Gguf(args.model)
    bos = model.keys["tokenizer.ggml.bos_token_id"]
    # Bytes as they are: a text has the line ends that it has.
    tokens = np.array([bos] + tokenize(model.keys, open(args.text, "rb").read().decode()))
    n_windows = min(len(tokens) // args.n_ctx, args.windows)
    nll = []
    for window in tokens[: n_windows * args.n_ctx].reshape(n_windows, args.n_ctx):
        window[0] = bos
        nll.append(surprises(model, window, args.n_ctx // 2 + 1))
    nll = np.concatenate(nll)
    print(json.dumps({
        "n_ctx": args.n_ctx,
        "windows": n_windows,
        "tokens": len(tokens),
        "tokens_scored": len(nll),
        "perplexity": float(np.exp(nll.mean())),
        "perplexity_error": float(np.exp(nll.mean()) * nll.std() / np.sqrt(len(nll) - 1)),
    }))


if __name__ == "__main__":
    main()
