#!/usr/bin/env python3
"""Cycles of the products with packed weights on cores of 64-bit Arm, by the models of llvm-mca.

Builds the library for aarch64 with its assembly, cuts the inner loops of products out of it, and prints for each core the
cycles for 1,000 weights (GEMV: one token) and for 1,000 weights times tokens (GEMM: the widest tile). Needs llvm-mca (Debian:
llvm-19) and the Rust target; a minute or two.

usage: benches/arm/mca.py [FILE.s]     with a file: that assembly, without a build (-C symbol-mangling-version=v0)

A model knows latencies and pipelines, no caches and no memory: a bound for weights that are in the first-level cache. Models of
in-order cores are coarse: that of Cortex-A53 makes a load wait for a multiplication before it, that of Cortex-A55 takes six
cycles for each `ldp` of two registers.
"""

import glob
import pathlib
import re
import shutil
import subprocess
import sys

TARGET = "aarch64-unknown-linux-gnu"
FORMATS = ["Q4_0", "Q8_0", "Q4_K", "Q6_K"]
CORES = ["cortex-a53", "cortex-a55", "cortex-a72", "neoverse-n1", "neoverse-v1"]
# Cores that have the tier's instructions.
TIERS = {"neon": CORES, "dotprod": ["cortex-a55", "neoverse-n1", "neoverse-v1"], "i8mm": ["neoverse-v1"]}
# Products of two bytes in an instruction.
PRODUCTS = {"smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8, "sdot": 16, "smmla": 32}

ROOT = pathlib.Path(__file__).resolve().parents[2]


def build():
    """The assembly of the library as a release has it, in one unit."""
    command = ["cargo", "rustc", "--locked", "--release", "--lib", "--target", TARGET, "--", "--emit", "asm"]
    subprocess.run(
        [*command, "-C", "codegen-units=1", "-C", "symbol-mangling-version=v0"], cwd=ROOT, check=True
    )
    found = glob.glob(str(ROOT / f"target/{TARGET}/release/deps/sotto-*.s"))
    return max(found, key=lambda path: pathlib.Path(path).stat().st_mtime)


def formats():
    """Number of each format in `Quant::ALL`."""
    text = (ROOT / "src/quant/mod.rs").read_text()
    names = re.search(r"const ALL: .*?= \[(.*?)\];", text, re.S).group(1)
    return {name: i for i, name in enumerate(re.findall(r"Self::(\w+)", names))}


def functions(path):
    """Body of the product of each tier and format number."""
    found, body = {}, None
    for line in open(path):
        name = re.match(r"_R.*6packed\d(neon|dotprod|i8mm)7productKj([0-9a-f]+)_", line)
        if name:
            body = found.setdefault((name.group(1), int(name.group(2), 16)), [])
        elif line.startswith(".Lfunc_end"):
            body = None
        elif body is not None:
            body.append(line.split("//")[0].rstrip())
    return found


def loops(body):
    """(depth, products, instructions) of the loops that hold no other and multiply."""
    labels = {m.group(1): i for i, line in enumerate(body) if (m := re.match(r"(\.LBB\w+):", line))}
    spans = []
    for i, line in enumerate(body):
        jump = re.match(r"\s+(?:b|b\.\w+|cbn?z|tbn?z)\s.*?(\.LBB\w+)$", line)
        if jump and labels.get(jump.group(1), i) < i:
            spans.append((labels[jump.group(1)], i))
    for start, end in spans:
        around = [s for s in spans if s != (start, end) and s[0] <= start and end <= s[1]]
        inside = [s for s in spans if s != (start, end) and start <= s[0] and s[1] <= end]
        code = [line for line in body[start : end + 1] if re.match(r"\s+[a-z]", line)]
        products = sum(PRODUCTS.get(line.split()[0], 0) for line in code)
        if products and not inside:
            yield len(around), products, code


def cycles(core, code):
    """Cycles of one pass, of a hundred."""
    report = subprocess.run(
        ["llvm-mca-19" if shutil.which("llvm-mca-19") else "llvm-mca", "-mtriple=aarch64", f"-mcpu={core}"]
        + ["-mattr=+dotprod,+i8mm", "-iterations=100"],
        input="\n".join(code),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", report).group(1)) / 100


def main():
    numbers = formats()
    found = functions(sys.argv[1] if len(sys.argv) > 1 else build())
    print("| Tier, format | Instructions | " + " | ".join(CORES) + " |")
    print("|-|-|" + "-|" * len(CORES))
    for tier, cores in TIERS.items():
        for name in FORMATS:
            all_loops = list(loops(found[tier, numbers[name]]))
            # 16 rows of 32 weights and a token; where a tile of two tokens has as many, that loops over rows as well.
            gemv = min((loop for loop in all_loops if loop[1] == 512), key=lambda loop: (loop[0], len(loop[2])))
            gemm = max(all_loops, key=lambda loop: loop[1])
            for kind, (_, products, code) in [("GEMV", gemv), ("GEMM", gemm)]:
                figures = [f"{cycles(c, code) / products * 1000:.0f}" if c in cores else "" for c in CORES]
                print(f"| {tier}, {name}, {kind} | {len(code)} for {products} | " + " | ".join(figures) + " |")


main()
