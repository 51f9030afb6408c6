#!/bin/bash
# Makes the image that Cross.toml names, from Debian packages alone. Run as root; it installs what it needs by apt.
# usage: cross/image.sh [SUITE]      bullseye (the default) has glibc 2.31; a newer suite raises the floor
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
suite=${1:-bullseye}
image=localhost/sotto-cross:aarch64

list() { grep -v '^#' "$here/$1"; }
apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }

[ "$(id -u)" = 0 ] || {
  echo "cross/image.sh needs root (mmdebstrap, podman import); run it with sudo" >&2
  exit 2
}
apt update
mapfile -t packages < <(list container-packages.txt)
apt install -y --no-install-recommends "${packages[@]}" >/dev/null

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/qemu"
chmod 777 "$work/qemu"
# The emulator runs inside the image, whose suite is older: the static one of this machine's release.
(cd "$work/qemu" && apt download qemu-user-static && dpkg-deb --fsys-tarfile qemu-user-static_*.deb |
  tar -x -C "$work" ./usr/bin/qemu-aarch64-static)
install -m 755 "$here/runner.sh" "$work/sotto-runner"

# shellcheck disable=SC2016  # $1 is the root, expanded by mmdebstrap's shell
mmdebstrap --quiet --variant=minbase --architectures=amd64 \
  --include="$(list image-packages.txt | paste -sd,)" \
  --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' \
  --customize-hook="copy-in $work/usr/bin/qemu-aarch64-static $work/sotto-runner /usr/bin" \
  --customize-hook='rm -rf "$1"/usr/share/doc "$1"/usr/share/locale "$1"/usr/share/man' \
  --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
  "$suite" "$work/image.tar" "$(apt-get indextargets --format '$(REPO_URI)' | head -n 1)"

podman import \
  --change "ENV CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc" \
  --change "ENV CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=/usr/bin/sotto-runner" \
  --change "ENV CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc" \
  "$work/image.tar" "$image"
echo "made $image from Debian $suite"
