"""Writes what the targets of the doors and of graphs begin with: seeds.py http|bus|onnx FOLDER."""

import json
import struct
import sys
from pathlib import Path

TALK = [{"role": "user", "content": "Say hi"}]
BODIES = {
    0: [{"messages": TALK, "max_tokens": 5, "n": 2, "seed": 7, "logprobs": True, "top_logprobs": 2, "stop": ["x"]},
        {"messages": TALK, "stream": True, "stream_options": {"include_usage": True}, "sotto": {"min_p": 0.1}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "tools": [], "user": "u"}],
    1: [{"prompt": "ab", "max_tokens": 3, "logit_bias": {"97": 1.5}}, {"prompt": [97, 98], "stream": True}],
    2: [{"input": "hi", "system": "s", "max_tokens": 4, "temperature": 0}, {"tokens": [1, 2], "mirostat": 2}],
    3: [{"input": ["a", "b"], "dimensions": 4, "encoding_format": "base64"}, {"input": [[1, 2], [3]]}],
    4: [{"text": "a", "add_special": True}, {"messages": TALK}],
}
RAW = [b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
       b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n10\r\n{\"prompt\": \"abc\"}\r\n0\r\n\r\n",
       b"GET /healthz HTTP/1.0\r\n\r\n"]


def padded(made: bytes, to: int) -> bytes:
    return made + bytes(-len(made) % to)


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode() + b"\0"


def options(made: bytes, **values) -> bytes:
    """`a{sv}` behind what was made."""
    head = padded(made, 4) + bytes(4)
    start = padded(head, 8)
    out = start
    for key, (kind, value) in values.items():
        out = padded(out, 8) + text(key) + bytes([len(kind)]) + kind.encode() + b"\0"
        width = {"u": 4, "b": 4, "s": 4, "d": 8, "t": 8}[kind]
        out = padded(out, width) + (text(value) if kind == "s" else struct.pack("<" + {"u": "I", "b": "I", "d": "d", "t": "Q"}[kind], value))
    at = len(padded(made, 4))
    return out[:at] + struct.pack("<I", len(out) - len(start)) + out[at + 4:]


def arguments() -> list[tuple[int, bytes]]:
    few = {"max_tokens": ("u", 5), "seed": ("t", 3), "temperature": ("d", 0.5), "raw": ("b", 1)}
    texts = padded(struct.pack("<I", len(text("ab"))) + text("ab"), 4)
    return [(0, options(text("hi"), **few)), (1, options(text("hi"), format=("s", "text"))),
            (2, options(texts, dimensions=("u", 4))), (3, options(text("a"), add_special=("b", 1))),
            (4, options(b"", system=("s", "be brief"))), (5, options(text("mock"), pin=("b", 0))),
            (6, options(text("mock"), force=("b", 1))), (7, text("/org/sotto/Sotto1/generation/x")),
            (8, padded(text("org.sotto.Sotto1.Manager"), 4) + text("State")), (9, text("org.sotto.Sotto1.Manager")),
            (10, padded(text("a"), 4) + text("b") + b"\x01s\0" + bytes(3) + text("c")),
            (15, options(text("hi"), **few)), (16, options(text("hi"), format=("s", "text"))),
            *((method, b"") for method in (11, 12, 13, 14, 17, 18, 19, 21, 22, 24, 25)),
            *((method, padded(text(f"org.sotto.Sotto1.{kind}"), 4) + text("State"))
              for method, kind in ((20, "Session"), (23, "Generation"), (26, "Job"), (27, "Model"))),
            (28, padded(text("org.freedesktop.LogControl1"), 4) + padded(text("LogLevel") + b"\x01s\0", 4) + text("info"))]


def field(number: int, value: bytes | int) -> bytes:
    """A field of a message of protocol buffers."""
    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def graphs() -> list[bytes]:
    """A Llama 2 wide as a graph in the forms that exporters write."""
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "vocab_size": 3,
              "num_attention_heads": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 8, "rope_theta": 1e4}
    layer = "model.layers.0."
    parts = [*(f"{layer}self_attn.{x}_proj" for x in "qkvo"), *(f"{layer}mlp.{x}_proj" for x in ("gate", "up", "down"))]
    vectors = ["model.norm", f"{layer}input_layernorm", f"{layer}post_attention_layernorm"]

    def tensor(name: str, dims: list[int], outside: bool = False) -> bytes:
        size = 4
        for d in dims:
            size *= d
        head = b"".join(field(1, d) for d in dims) + field(2, 1) + field(8, name.encode())
        entry = lambda key, value: field(13, field(1, key) + field(2, value))
        return field(5, head + (entry(b"location", b"w") + entry(b"offset", b"8") + field(14, 1) if outside else field(9, bytes(size))))

    def node(op: str, name: str, inputs: list[str], attribute: bytes = b"") -> bytes:
        return field(1, b"".join(field(1, i.encode()) for i in inputs) + field(3, name.encode()) + field(4, op.encode()) + attribute)

    named = b"".join(tensor(f"{name}.weight", [2]) for name in vectors) + tensor("model.embed_tokens.weight", [3, 2])
    path = lambda part: "/" + part.replace(".", "/").replace("layers/", "layers.")
    used = lambda outside: b"".join(tensor(f"m{i}", [2, 2], outside) + node("MatMul", f"{path(part)}/MatMul", ["x", f"m{i}"])
                                    for i, part in enumerate(parts))
    transposed = field(5, field(1, b"transB") + field(3, 1))
    gemm = b"".join(tensor(f"m{i}", [2, 2]) + node("Gemm", f"{path(part)}/Gemm", ["x", f"m{i}"], transposed) for i, part in enumerate(parts))
    own = b"".join(tensor(f"{part}.weight_merged_0", [2, 2]) for part in parts)
    branches = node("If", "if", ["c"], field(5, field(6, used(False))) + field(5, field(6, used(False))))
    all_ = [named + rest for rest in (used(False), used(True), gemm, own, branches)]
    return [json.dumps(config).encode() + b"\0" + field(7, graph) for graph in all_]


def main():
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "onnx":
        made = graphs()
    elif kind == "http":
        made = [bytes([route]) + json.dumps(body).encode() for route, all in BODIES.items() for body in all]
        made += [bytes([255]) + raw for raw in RAW]
    else:
        made = [bytes([method]) + body for method, body in arguments()]
    for i, data in enumerate(made):
        (folder / f"seed-{i}").write_bytes(data)


if __name__ == "__main__":
    main()
