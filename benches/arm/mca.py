#!/usr/bin/env python3
"""Cycles of the products with packed weights on cores of 64-bit Arm, by the models of llvm-mca.

Builds the library for aarch64 with its assembly, cuts the inner loops of products out of it, and prints for each core the
cycles for 1,000 weights (GEMV: one token) and for 1,000 weights times tokens (GEMM: the widest tile). Needs llvm-mca (Debian:
llvm-19) and the Rust target; some minutes.

usage: benches/arm/mca.py [FILE.s]     with a file: that assembly, without a build (-C symbol-mangling-version=v0)
       benches/arm/mca.py --peer CORE FILE.s FUNCTION PRODUCTS
           one line of the same for a function of another program, compiled for CORE (clang -O3 -mcpu=CORE -S): of the loop
           that makes PRODUCTS weights times tokens in a pass. Loops inside of it are written out as often as that takes;
           if a pass of those must make a certain number too, that comes next, after a comma.

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
# Products of two bytes in an instruction: mnemonic and first register.
PRODUCTS = {
    r"sm(ull|lal)2?\s+v\d+\.8h": 8,
    r"sdot\s+v": 16,
    r"smmla\s+v": 32,
    # Registers of 256 bits (Neoverse V1).
    r"sdot\s+z": 32,
    r"smmla\s+z": 64,
}

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
    """Bodies of the products of each tier and format number, for one token ("alone") and for several ("product")."""
    found, body = {}, None
    for line in open(path):
        name = re.match(r"_R.*6packed\d(neon|dotprod|i8mm)\d(product|alone)Kj([0-9a-f]+)_", line)
        if name:
            body = found.setdefault((name.group(1), name.group(2), int(name.group(3), 16)), [])
        elif line.startswith(".Lfunc_end"):
            body = None
        elif body is not None:
            body.append(line.split("//")[0].rstrip())
    return found


def products(code):
    """How many products instructions make."""
    return sum(n for line in code for pattern, n in PRODUCTS.items() if re.match(r"\s+" + pattern, line))


def spans(body):
    """First and last line of each loop."""
    labels, found = {}, {}
    for i, line in enumerate(body):
        if label := re.match(r"(\.L\w+):", line):
            labels[label.group(1)] = i
        elif jump := re.match(r"\s+(?:b|b\.\w+|cbn?z|tbn?z)\s.*?(\.L\w+)$", line):
            if jump.group(1) in labels:
                found[labels[jump.group(1)]] = i
    return list(found.items())


def instructions(lines):
    return [line for line in lines if re.match(r"\s+[a-z]", line)]


def depth(body, span):
    return sum(s[0] <= span[0] and span[1] <= s[1] for s in spans(body))


def alone(body):
    """A pass over the weights of 16 rows with a token: of a group of 32, or of a block of 256, a loop over twos of groups."""
    fitting = []
    for wanted in [[512], [4096, 1024], [4096, 512]]:
        for span in spans(body):
            if code := written_out(body, span, wanted):
                fitting.append((depth(body, span), len(code) / wanted[0], wanted[0], code))
    return min(fitting)[2:]


def together(body):
    """A pass of the widest tile; of two as wide the one of fewer instructions, which has more tokens and fewer rows."""
    found = []
    for span in spans(body):
        if (code := written_out(body, span, [])) and not any(span[0] <= s[0] and s[1] < span[1] for s in spans(body)):
            found.append((products(code), code))
    return max(found, key=lambda tile: (tile[0], -len(tile[1])))


def written_out(body, span, wanted):
    """One pass of a loop that makes wanted[0] products, with the loops inside of it written out as often as that takes;
    a pass of those makes wanted[1], and so on. None if it does not come out even."""
    inside = [s for s in spans(body) if span[0] <= s[0] and s[1] <= span[1] and s != span]
    inside = [s for s in inside if products(body[s[0] : s[1] + 1])]
    inside = sorted(s for s in inside if not any(o[0] <= s[0] and s[1] <= o[1] and o != s for o in inside))
    code, at, passes = [], span[0], []
    for first, last in inside:
        code += [instructions(body[at:first]), written_out(body, (first, last), wanted[1:])]
        if code[-1] is None:
            return None
        passes.append(products(code[-1]))
        at = last + 1
    code.append(instructions(body[at : span[1] + 1]))
    in_loops, alone = sum(passes), sum(products(part) for part in code[::2])
    if not wanted:
        wanted = [in_loops + alone]
    times = (wanted[0] - alone) // in_loops if in_loops else 1
    if times < 1 or alone + times * in_loops != wanted[0]:
        return None
    return [line for i, part in enumerate(code) for line in part * (times if i % 2 else 1)]


def function(path, name):
    """Body of a function."""
    body = None
    for line in open(path):
        if line.startswith(f"{name}:"):
            body = []
        elif line.startswith(".Lfunc_end") and body is not None:
            return body
        elif body is not None:
            body.append(line.split("//")[0].rstrip())
    raise SystemExit(f"{path}: no function {name}")


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


def peer(core, path, name, wanted):
    wanted = [int(n) for n in wanted.split(",")]
    body = function(path, name)
    # Loops around a fitting one fit as well, and are longer.
    fitting = [code for span in spans(body) if (code := written_out(body, span, wanted))]
    if not fitting:
        raise SystemExit(f"{path}: no loop of {name} makes {wanted[0]} products in a pass")
    code = min(fitting, key=len)
    print(f"| {name} | {len(code)} for {wanted[0]} | {cycles(core, code) / wanted[0] * 1000:.0f} |")


def main():
    if sys.argv[1:2] == ["--peer"]:
        return peer(*sys.argv[2:])
    numbers = formats()
    found = functions(sys.argv[1] if len(sys.argv) > 1 else build())
    print("| Tier, format | Instructions | " + " | ".join(CORES) + " |")
    print("|-|-|" + "-|" * len(CORES))
    for tier, cores in TIERS.items():
        for name in FORMATS:
            number = numbers[name]
            # One token goes as in the tier below.
            gemv = alone(found["dotprod" if tier == "i8mm" else tier, "alone", number])
            gemm = together(found[tier, "product", number])
            for kind, (n, code) in [("GEMV", gemv), ("GEMM", gemm)]:
                figures = [f"{cycles(c, code) / n * 1000:.0f}" if c in cores else "" for c in CORES]
                print(f"| {tier}, {name}, {kind} | {len(code)} for {n} | " + " | ".join(figures) + " |")


main()
