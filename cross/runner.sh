#!/bin/sh
# Runs an aarch64 program on this machine: cargo's runner for the target, here and inside the image.
# QEMU_CPU chooses the core: cortex-a72 (neon; Pi 4), cortex-a76 (dotprod; Pi 5), max (i8mm).
# Correct results only: emulation says nothing about speed.
set -eu
for qemu in qemu-aarch64 qemu-aarch64-static; do
  if command -v "$qemu" >/dev/null; then
    exec "$qemu" -cpu "${QEMU_CPU:-cortex-a72}" -L "${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}" "$@"
  fi
done
echo "no qemu-aarch64 on the path, so $1 cannot run; apt install qemu-user" >&2
exit 127
