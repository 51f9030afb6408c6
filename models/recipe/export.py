"""Writes a trained model as GGUF v3: matrices in Q8_0, norms in F32, the tokenizer inside."""
import json
import os

import gguf
from gguf import GGMLQuantizationType as T

from data import END


def export(model, tok, path):
    """Writes `path` by a temporary name, so that a reader never sees half a file."""
    c = model.c
    w = gguf.GGUFWriter(path + ".tmp", "llama")
    w.add_name("sotto story")
    w.add_description("A very small teller of stories, trained on 19th-century novels. It continues a text.")
    w.add_license("CC0-1.0")
    w.add_context_length(c.n_ctx)
    w.add_embedding_length(c.n_embd)
    w.add_block_count(c.n_layer)
    w.add_feed_forward_length(c.n_ff)
    w.add_head_count(c.n_head)
    w.add_head_count_kv(c.n_head_kv)
    w.add_layer_norm_rms_eps(c.norm_eps)
    w.add_rope_dimension_count(c.head_dim)
    w.add_rope_freq_base(c.rope_base)
    w.add_file_type(7)
    w.add_quantization_version(2)
    spec = json.loads(tok.to_str())["model"]
    pieces = [p for p, _ in sorted(spec["vocab"].items(), key=lambda kv: kv[1])]
    merges = [" ".join(m) if isinstance(m, list) else m for m in spec["merges"]]
    end = tok.token_to_id(END)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(pieces)
    w.add_token_types([3 if i == end else 1 for i in range(len(pieces))])
    w.add_token_merges(merges)
    w.add_bos_token_id(end)
    w.add_eos_token_id(end)
    w.add_add_bos_token(True)
    for name, p in model.named_parameters():
        x = p.detach().float().numpy()
        if not name.endswith(".weight"):
            name += ".weight"
        if x.ndim == 2:
            w.add_tensor(name, gguf.quantize(x, T.Q8_0), raw_dtype=T.Q8_0)
        else:
            w.add_tensor(name, x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.replace(path + ".tmp", path)
