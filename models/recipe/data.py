"""The training text: public-domain works of `text-classics`, without the three works that measure the model."""
import json
import os

import numpy as np
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Never trained on, never looked at while choosing anything: the card's bits per byte are measured on them.
HELD_OUT = (
    "Ward, Milly (1881)",
    "The Adventures of Sherlock Holmes: a-scandal-in-bohemia",
    "The Adventures of Sherlock Holmes: the-redheaded-league",
)
END = "<|endoftext|>"


def works(corpus):
    """All works as (title, text)."""
    with open(os.path.join(corpus, "text-classics.jsonl.zst"), "rb") as f:
        raw = zstandard.ZstdDecompressor().stream_reader(f).read()
    rows = [json.loads(line) for line in raw.decode("utf-8").splitlines() if line]
    return [(r["title"], r["text"].strip()) for r in rows]


def split(corpus):
    """(training works, validation text, held-out works). Validation is the last 1 % of each training work."""
    rows = works(corpus)
    held = [(t, x) for t, x in rows if t in HELD_OUT]
    assert sorted(t for t, _ in held) == sorted(HELD_OUT), "a held-out title is absent or doubled"
    rest = [(t, x) for t, x in rows if t not in HELD_OUT]
    # No paragraph of a held-out work may stand in another work.
    long = {p for _, x in held for p in x.split("\n\n") if len(p) > 80}
    for title, text in rest:
        twice = [p for p in text.split("\n\n") if p in long]
        assert not twice, f"{title} repeats a held-out paragraph"
    train, valid = [], []
    for title, text in rest:
        cut = text.rfind("\n\n", 0, int(len(text) * 0.99))
        train.append((title, text[:cut]))
        valid.append(text[cut:].strip())
    return train, valid, held


def make_tokenizer(texts, n_vocab):
    """Byte-level BPE with GPT-2's pre-tokenizer; the end mark is token 0, the 256 bytes are all there."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    return tok


def encode(tok, texts):
    """One stream of ids, the end mark before each text."""
    end = tok.token_to_id(END)
    out = []
    for text in texts:
        out.append(end)
        # In pieces at blank lines: the tokenizer is quadratic on whole novels.
        parts = text.split("\n\n")
        for e in tok.encode_batch([p if i == 0 else "\n\n" + p for i, p in enumerate(parts)]):
            out.extend(e.ids)
    return np.array(out, dtype=np.uint16)
