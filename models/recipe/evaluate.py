"""Bits per byte of a GGUF on the three works that the story model never saw, and the golden file of its tests.

    python evaluate.py --corpus CORPORA --model ../story-2.8m-q8_0.gguf [--golden ../story-golden.json]

Each work is scored whole and once: windows of the model's context that overlap by half; a token counts in the window
where it has the longer past. The begin token stands before the work and is not scored.
"""
import argparse
import json

import numpy as np

import data
from reference import Reference

PROMPTS = ("Once upon a time", "The old house stood at the end of", "\"Good morning,\" said the stranger")
N_GOLDEN = 48


def bits_per_byte(model, text):
    """Bits that the model needs for `text`, by its UTF-8 bytes."""
    ids = np.array(model.encode(text))
    n, half = model.n_ctx, model.n_ctx // 2
    bits, scored = 0.0, 0
    starts = range(0, max(1, len(ids) - half - 1), half)
    for start in starts:
        window = ids[start : start + n]
        # Position j predicts token j + 1; the first half was scored by the window before.
        first = 0 if start == 0 else half - 1
        last = min(n, len(window)) - 1
        x = model.logits(window[None, :])[0, first:last].astype(np.float64)
        x -= x.max(-1, keepdims=True)
        targets = window[first + 1 : last + 1]
        bits += float((np.log(np.exp(x).sum(-1)) - x[np.arange(len(targets)), targets]).sum() / np.log(2))
        scored += len(targets)
    assert scored == len(ids) - 1, f"{scored} of {len(ids) - 1} tokens scored"
    return bits / len(text.encode())


def golden(model):
    """Greedy continuations with the distance of the two best logits at each step."""
    rows = []
    for prompt in PROMPTS:
        ids = [model.bos] + model.tok.encode(prompt).ids
        n_prompt, gaps = len(ids), []
        for _ in range(N_GOLDEN):
            x = model.logits(np.array(ids)[None, :])[0, -1]
            top = np.sort(x)[-2:]
            gaps.append(round(float(top[1] - top[0]), 4))
            ids.append(int(x.argmax()))
        text = model.tok.decode(ids[n_prompt:], skip_special_tokens=False)
        rows.append(dict(prompt=prompt, prompt_ids=ids[:n_prompt], greedy_ids=ids[n_prompt:], text=text, top2_gap=gaps))
    return rows


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--corpus", required=True)
    ap.add_argument("--model", required=True)
    ap.add_argument("--golden", help="file to write greedy continuations to")
    args = ap.parse_args()
    model = Reference(args.model)
    for title, text in data.split(args.corpus)[2]:
        print(f"{bits_per_byte(model, text):.4f} bits per byte, {len(text.encode())} bytes: {title}", flush=True)
    if args.golden:
        with open(args.golden, "w") as f:
            json.dump(dict(reference="models/recipe/reference.py, float32 over the stored weights", rows=golden(model)), f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
