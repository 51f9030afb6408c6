#!/bin/bash
# Boots a Debian with this build's daemon under its systemd, bus and polkit, and checks it there (check.sh).
#   tests/boot/run.sh BOOT ROOT.tar OUT [SOTTOD SOTTO SOTTO-ONNX]
# A build without the feature `onnx` has no SOTTO-ONNX: what it does is skipped then.
# BOOT boots ROOT.tar as root, installs packages, runs a script inside, and ends as that does:
#   BOOT ROOT.tar SCRIPT OUT PACKAGE.deb...
# such as shared/tools/boards/boot-container.sh, with a root of make-root.sh and its packages curl, python3, python3-dbus.
set -euo pipefail
[ $# -ge 3 ] || { sed -n 2,8p "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
top=$here/../..
boot=$(realpath "$1") root=$(realpath "$2") out=$3
sottod=${4:-$top/target/release/sottod} sotto=${5:-$top/target/release/sotto}
graphs=${6:-$top/target/release/sotto-onnx}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# What a package holds.
deb=$folder/deb units=usr/lib/systemd/system
put() { install -D -m "$1" "$2" "$deb/$3"; }
put 755 "$sottod" usr/bin/sottod
put 755 "$sotto" usr/bin/sotto
[ ! -x "$graphs" ] || put 755 "$graphs" usr/libexec/sotto/sotto-onnx
for unit in sottod.service sottod.socket sotto-onnx.socket sotto-onnx@.service; do
  put 644 "$top/systemd/$unit" "$units/$unit"
done
put 644 "$top/systemd/system-preset/50-sotto.preset" usr/lib/systemd/system-preset/50-sotto.preset
put 644 "$top/systemd/sysusers.d/sotto.conf" usr/lib/sysusers.d/sotto.conf
put 644 "$top/systemd/tmpfiles.d/sotto.conf" usr/lib/tmpfiles.d/sotto.conf
put 644 "$top/systemd/catalog/sotto.catalog" usr/lib/systemd/catalog/sotto.catalog
put 644 "$top/systemd/dbus/org.sotto.Sotto1.conf" usr/share/dbus-1/system.d/org.sotto.Sotto1.conf
put 644 "$top/systemd/dbus/org.sotto.Sotto1.service" usr/share/dbus-1/system-services/org.sotto.Sotto1.service
put 644 "$top/systemd/polkit/org.sotto.policy" usr/share/polkit-1/actions/org.sotto.policy
put 644 "$top/models/story-2.8m-q8_0.gguf" usr/share/sotto/models/story-2.8m-q8_0.gguf
for file in config.json expected.json model.onnx tokenizer.json modules.json sentence_bert_config.json 1_Pooling/config.json; do
  put 644 "$top/tests/fixtures/onnx/bert/$file" "usr/share/sotto-boot/bert/$file"
done
mkdir "$deb/DEBIAN"
cat >"$deb/DEBIAN/control" <<'C'
Package: sotto
Version: 0.1.0
Architecture: amd64
Maintainer: sotto <root@localhost>
Description: boot test of sotto
C
cat >"$deb/DEBIAN/postinst" <<'P'
#!/bin/sh
set -e
# The user before the bus reads its policy again, and the folders before the daemon.
systemd-sysusers sotto.conf
systemd-tmpfiles --create sotto.conf
journalctl --update-catalog
systemctl daemon-reload
systemctl reload dbus
systemctl preset sottod.socket sotto-onnx.socket
systemctl start sottod.socket sotto-onnx.socket
P
chmod 755 "$deb/DEBIAN/postinst"
dpkg-deb --root-owner-group -Zxz -b "$deb" "$folder/sotto.deb" >/dev/null

status=0
"$boot" "$root" "$here/check.sh" "$out" "$folder/sotto.deb" || status=$?
cat "$out/check.log"
exit "$status"
