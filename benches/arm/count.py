#!/usr/bin/env python3
"""Instructions of the products with packed weights on 64-bit Arm, as an emulator runs them.

usage: benches/arm/count.py PLUGIN.so [PROGRAM]

PLUGIN.so is a plugin of QEMU that prints `insns N` when a program ends (qemu-aarch64 of Debian 12 loads plugins). Builds
benches/arm/count.rs, or takes a built one, and prints for each tier and format the instructions for 1,000 weights (GEMV: one
token) and for 1,000 weights times tokens (GEMM: 64 tokens), of 64 rows of 2,048 weights: whole products, but without the
codes of the activations, which have a line of their own, for 1,000 of them: with one token, and with 64, which are arranged by
fours as well. Some minutes.
"""

import json
import pathlib
import re
import subprocess
import sys

TARGET = "aarch64-unknown-linux-gnu"
TIERS = ["neon", "dotprod", "i8mm"]
FORMATS = ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "codes"]
# As in count.rs.
ROWS, COLS = 64, 2048
ROOT = pathlib.Path(__file__).resolve().parents[2]


def build():
    command = [ROOT / "cross/build.sh", "build", "--locked", "--release", "--bench", "count", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = [message for message in map(json.loads, lines) if message.get("executable")]
    return next(message["executable"] for message in built if message["target"]["name"] == "count")


def run(plugin, program, *args):
    command = ["qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu", "-plugin", plugin, "-d", "plugin", program]
    out = subprocess.run([*command, *map(str, args)], check=True, capture_output=True, text=True)
    return int(re.search(r"insns (\d+)", out.stderr + out.stdout).group(1))


def count(plugin, program, tier, name, n_tokens):
    """Of one more product."""
    first, second = (run(plugin, program, tier, name, n_tokens, times) for times in (1, 3))
    return (second - first) / 2 / (n_tokens * COLS * (1 if name == "codes" else ROWS)) * 1000


def main():
    plugin, program = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else build()
    print("| Tier | What | " + " | ".join(FORMATS) + " |")
    print("|-|-|" + "-|" * len(FORMATS))
    for tier in TIERS:
        for what, n_tokens in [("GEMV", 1), ("GEMM", 64)]:
            figures = [f"{count(plugin, program, tier, name, n_tokens):.0f}" for name in FORMATS]
            print(f"| {tier} | {what} | " + " | ".join(figures) + " |", flush=True)


if len(sys.argv) < 2:
    sys.exit(__doc__)
main()
