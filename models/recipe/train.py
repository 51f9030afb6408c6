"""Trains the story model of the box and writes it as GGUF (Q8_0).

    python train.py --corpus CORPORA --work WORK --out story.gguf --minutes 120 --threads 2

The run ends after --minutes of wall clock, whatever the machine: the learning rate follows elapsed time. It can be
stopped and resumed (--resume). Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks",
2024) for the matrices of the blocks, AdamW for the embedding and the norms.
"""
import argparse
import json
import os
import time

import numpy as np
import torch
from tokenizers import Tokenizer

import data
from export import export
from model import Config, Llama


def orthogonalise(g, steps=5):
    """The nearest semi-orthogonal matrix, roughly: a quintic Newton-Schulz iteration on the singular values."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, so that every direction of a matrix learns at the same speed."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                m = state.setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(m, group["momentum"]))
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)


def prepare(args, config):
    """Tokenizer and token streams, made once."""
    path = os.path.join(args.work, "tokenizer.json")
    train, valid, _ = data.split(args.corpus)
    if os.path.exists(path):
        tok = Tokenizer.from_file(path)
    else:
        tok = data.make_tokenizer((p for _, x in train for p in x.split("\n\n")), config.n_vocab)
        tok.save(path)
    streams = []
    for name, texts in (("train", [x for _, x in train]), ("valid", valid)):
        file = os.path.join(args.work, f"{name}.npy")
        if not os.path.exists(file):
            np.save(file, data.encode(tok, texts))
        streams.append(torch.from_numpy(np.load(file).astype(np.int64)))
    n_bytes = sum(len(x.encode()) for x in valid)
    return tok, streams[0], streams[1], n_bytes


def windows(stream, n_ctx, generator):
    """Endless windows of n_ctx + 1 tokens, each epoch at another offset and in another order."""
    while True:
        offset = int(torch.randint(n_ctx, (1,), generator=generator))
        starts = torch.arange(offset, len(stream) - n_ctx - 1, n_ctx)
        for i in torch.randperm(len(starts), generator=generator):
            yield stream[starts[i] : starts[i] + n_ctx + 1]


@torch.no_grad()
def validate(model, stream, n_bytes, n_ctx):
    """Bits per byte on the validation text, in windows without overlap."""
    model.eval()
    total, rows = 0.0, [stream[i : i + n_ctx + 1] for i in range(0, len(stream) - 2, n_ctx)]
    for row in rows:
        total += float(model(row[None, :-1], row[None, 1:])) * (len(row) - 1)
    model.train()
    return total / np.log(2) / n_bytes


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--corpus", required=True, help="folder with text-classics.jsonl.zst")
    ap.add_argument("--work", required=True, help="folder for tokenizer, token streams and checkpoints")
    ap.add_argument("--out", required=True, help="the GGUF to write")
    ap.add_argument("--minutes", type=float, default=120)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--batch", type=int, default=8, help="windows of a step")
    ap.add_argument("--short", type=float, default=0.6, help="share of the run with twice as many windows of half the length: attention costs less")
    ap.add_argument("--accumulate", type=int, default=1, help="steps whose gradients are added")
    ap.add_argument("--lr", type=float, default=0.02, help="of Muon")
    ap.add_argument("--lr-adam", type=float, default=0.004)
    ap.add_argument("--bf16", action="store_true", help="products in bfloat16")
    ap.add_argument("--compile", action="store_true", help="compile the model (needs a C++ compiler)")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--resume", action="store_true")
    args = ap.parse_args()
    os.makedirs(args.work, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    config = Config()
    tok, train, valid, valid_bytes = prepare(args, config)
    model = Llama(config)
    n_params = sum(p.numel() for p in model.parameters())
    print(f"{n_params} weights, {len(train)} training tokens, {len(valid)} for validation", flush=True)
    matrices = [p for n, p in model.blk.named_parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = Muon(matrices, lr=args.lr)
    adam = torch.optim.AdamW(others, lr=args.lr_adam, betas=(0.9, 0.95), weight_decay=0.0)
    forward = torch.compile(model, dynamic=False) if args.compile else model
    checkpoint = os.path.join(args.work, "checkpoint.pt")
    elapsed, step, tokens, curve = 0.0, 0, 0, []
    if args.resume and os.path.exists(checkpoint):
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        elapsed, step, tokens, curve = (saved[k] for k in ("elapsed", "step", "tokens", "curve"))
    generator = torch.Generator().manual_seed(args.seed + step)
    # (windows of a step, their tokens, their source): the long ones come last.
    halves, wholes = ((args.batch * k, config.n_ctx // k, windows(train, config.n_ctx // k, generator)) for k in (2, 1))
    total, started, saved_at, shown_at = args.minutes * 60, time.time() - elapsed, time.time(), 0.0

    def save():
        state = dict(model=model.state_dict(), muon=muon.state_dict(), adam=adam.state_dict(), step=step)
        state.update(elapsed=time.time() - started, tokens=tokens, curve=curve)
        torch.save(state, checkpoint + ".tmp")
        os.replace(checkpoint + ".tmp", checkpoint)
        export(model, tok, args.out)

    while True:
        progress = (time.time() - started) / total
        if progress >= 1:
            break
        # A short rise, a plateau, then straight to zero over the last half (warmup-stable-decay).
        rate = min(1.0, (step + 1) / 100) * min(1.0, (1 - progress) / 0.5)
        muon.param_groups[0]["lr"] = args.lr * rate
        adam.param_groups[0]["lr"] = args.lr_adam * rate
        loss = 0.0
        batch, n_ctx, source = halves if progress < args.short else wholes
        for _ in range(args.accumulate):
            rows = torch.stack([next(source) for _ in range(batch)])
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
                part = forward(rows[:, :-1], rows[:, 1:]) / args.accumulate
            part.backward()
            loss += float(part.detach())
            tokens += batch * n_ctx
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        muon.zero_grad(set_to_none=True)
        adam.zero_grad(set_to_none=True)
        step += 1
        if time.time() - shown_at > 30:
            shown_at, spent = time.time(), time.time() - started
            left = (total - spent) / 60
            print(f"step {step} loss {loss:.3f} tokens {tokens / 1e6:.1f}M {tokens / spent:.0f}/s ETA {left:.0f} min", flush=True)
        if time.time() - saved_at > 300:
            curve.append((round((time.time() - started) / 60), tokens, round(validate(model, valid, valid_bytes, config.n_ctx), 4)))
            print("validation bits per byte", curve[-1], flush=True)
            save()
            saved_at = time.time()
    curve.append((round(args.minutes), tokens, round(validate(model, valid, valid_bytes, config.n_ctx), 4)))
    save()
    with open(os.path.join(args.work, "report.json"), "w") as f:
        json.dump(dict(params=n_params, tokens=tokens, steps=step, minutes=args.minutes, curve=curve, config=config.as_dict()), f, indent=1)
    print("done", curve[-1], flush=True)


if __name__ == "__main__":
    main()
