#!/bin/bash
# Runs cargo for 64-bit Arm.
# usage: cross/build.sh [--container] [CARGO-COMMAND ARGUMENT...]      without a command: build --release
#   (plain)      Debian's cross gcc links; the program needs the glibc of this machine's Debian release (12: 2.34).
#   --container  the tool `cross` in the image of cross/image.sh: needs glibc 2.30, so Debian 11 runs it too.
# Tests and programs run through cross/runner.sh; QEMU_CPU chooses the core.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=aarch64-unknown-linux-gnu

container=no
if [ "${1:-}" = --container ]; then
  container=yes
  shift
fi
[ $# -gt 0 ] || set -- build --release
command=$1
shift

need() { # PROGRAM REMEDY
  command -v "$1" >/dev/null || {
    echo "$1 is not installed; $2" >&2
    exit 2
  }
}

plain() {
  need aarch64-linux-gnu-gcc "apt install \$(grep -v '^#' cross/host-packages.txt)"
  rustup target list --installed | grep -qx "$target" || rustup target add "$target"
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$here/runner.sh
  export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
  cargo "$command" --target "$target" "$@"
}

# Four things stand between cross 0.2.5 and a build that touches neither the network nor the toolchain.
in_container() {
  need cross "cargo install cross --locked --version 0.2.5"
  need podman "run cross/image.sh"
  podman image exists localhost/sotto-cross:aarch64 || {
    echo "the image localhost/sotto-cross:aarch64 is absent; run cross/image.sh" >&2
    exit 2
  }
  cargo fetch --locked --target "$target"
  stage=$(mktemp -d)
  trap 'rm -rf "$stage"' EXIT

  # 1. cross reads `rustup toolchain list`, stumbles over "(active, default)", takes the toolchain for absent and
  #    installs `stable`, which updates the compiler. A rustup of ours goes first: it leaves the mark out and
  #    installs nothing.
  cat >"$stage/rustup" <<RUSTUP
#!/bin/sh
case "\$*" in
  *"toolchain list"*) "$(command -v rustup)" "\$@" | sed 's/ (.*)//' ;;
  *add*|*install*|*update*) echo "rustup \$*: refused, a build changes no toolchain" >&2; exit 1 ;;
  *) exec "$(command -v rustup)" "\$@" ;;
esac
RUSTUP
  chmod 755 "$stage/rustup"

  # 2. Limits that this process may set, where it lacks CAP_SYS_RESOURCE.
  cat >"$stage/containers.conf" <<CONF
[containers]
cgroups = "disabled"
netns = "none"
default_ulimits = ["nofile=1024:$(ulimit -H -n)", "nproc=16384:16384"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
CONF

  export PATH=$stage:$PATH CONTAINERS_CONF=$stage/containers.conf
  export CROSS_CONFIG=$here/Cross.toml CROSS_CONTAINER_ENGINE=podman
  # 3. The toolchain and its target are there already; crates were fetched above, so build scripts get no network.
  export CROSS_CUSTOM_TOOLCHAIN=1 CARGO_NET_OFFLINE=true
  export CROSS_CONTAINER_OPTS="--pull=never --network=none -e QEMU_CPU=${QEMU_CPU:-cortex-a72}"
  # 4. crun refuses a machine that mounts both kinds of cgroups: hide the second from this command alone.
  # shellcheck disable=SC2016  # expanded by the inner shell
  unshare --mount sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec cross "$@"' \
    cross "$command" --target "$target" "$@"
}

cd "$here/.."
if [ "$container" = yes ]; then in_container "$@"; else plain "$@"; fi
