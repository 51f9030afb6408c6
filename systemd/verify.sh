#!/bin/bash
# Checks the units, the D-Bus files and the system files of this folder with the tools that will read them, in a
# temporary root. Needs no root and no running systemd.
# usage: systemd/verify.sh [SOTTOD [SOTTO-ONNX]]      built programs; a stand-in fills the place of one that is not given
# ends with 0: all hold; 1: something was reported; 3: systemd-analyze is not there (nothing was checked)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=${1:-/bin/true} graphs=${2:-/bin/true}
exposure_max=1.0

command -v systemd-analyze >/dev/null || {
  echo "skipped: systemd-analyze is not installed; apt install systemd" >&2
  exit 3
}
for file in "$binary" "$graphs"; do
  [ -x "$file" ] || {
    echo "$file: not an executable file; give the path of a built program, or nothing" >&2
    exit 1
  }
done

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
units=$root/usr/lib/systemd/system
install -D -m 755 "$binary" "$root/usr/bin/sottod"
install -D -m 755 "$graphs" "$root/usr/libexec/sotto/sotto-onnx"
# merged-/usr hosts and others: the unit names /bin/kill, so that is where the file must be.
install -D -m 755 /bin/true "$root/bin/kill"
install -D -m 644 -t "$units" "$here"/*.service "$here"/*.socket
# What the units order themselves against; a real root has these from systemd and dbus.
for target in sysinit basic sockets shutdown multi-user; do
  printf '[Unit]\nDescription=%s\n' "$target" >"$units/$target.target"
done
printf '[Socket]\nListenStream=/run/dbus/system_bus_socket\n' >"$units/dbus.socket"
printf '[Service]\nExecStart=/usr/bin/sottod\n' >"$units/dbus.service"

failed=0
report() { # NAME OUTPUT: any output of a check is a failure
  if [ -n "$2" ]; then
    printf 'FAILED %s\n%s\n' "$1" "$2" >&2
    failed=1
  else
    echo "ok $1"
  fi
}

for unit in sottod.service sottod.socket sotto-onnx.socket sotto-onnx@0.service; do
  out=$(systemd-analyze verify --man=no --root="$root" "$unit" 2>&1) || out="${out:-no message, but it failed}"
  report "verify $unit" "$out"
done

for unit in sottod.service sotto-onnx@0.service; do
  out=$(systemd-analyze security --offline=true --root="$root" --no-pager "$unit" 2>&1 || true)
  exposure=$(sed -n "s/.*Overall exposure level for $unit: \([0-9.]*\).*/\1/p" <<<"$out")
  if [ -z "$exposure" ]; then
    report "security $unit" "systemd-analyze security gave no level: $out"
  elif awk -v x="$exposure" -v max="$exposure_max" 'BEGIN { exit x <= max }'; then
    report "security $unit" "exposure $exposure is above $exposure_max: $(grep -F '✗' <<<"$out")"
  else
    echo "ok security $unit: exposure $exposure, at most $exposure_max"
  fi
done

# sysusers reports a line it cannot read with its file and number, and creates nothing in a dry run.
if command -v systemd-sysusers >/dev/null; then
  install -D -m 644 -t "$root/usr/lib/sysusers.d" "$here/sysusers.d/sotto.conf"
  out=$(systemd-sysusers --root="$root" --dry-run 2>&1 | grep -F 'sotto.conf:' || true)
  report "sysusers.d/sotto.conf" "$out"
else
  echo "skipped: sysusers.d/sotto.conf is not checked, systemd-sysusers is not installed"
fi

# A bus of its own reads the policy; it refuses to start on a file that it cannot read. That user and group `sotto`
# are unknown here is a warning, and of no interest.
if command -v dbus-run-session >/dev/null; then
  cat >"$root/bus.conf" <<CONF
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:dir=$root</listen>
  <include>$here/dbus/org.sotto.Sotto1.conf</include>
</busconfig>
CONF
  if out=$(dbus-run-session --config-file="$root/bus.conf" -- true 2>&1); then out=; fi
  report "dbus/org.sotto.Sotto1.conf" "$out"
else
  echo "skipped: dbus/org.sotto.Sotto1.conf is not checked, dbus-run-session is not installed"
fi

# The activation file names the bus name and the unit; one that differs would fail only at the first call.
name=$(sed -n 's/^BusName=//p' "$here/sottod.service")
activation=$here/dbus/$name.service
out=
grep -qxF "Name=$name" "$activation" || out="$activation: no line Name=$name, which is BusName= of sottod.service"
grep -qxF 'SystemdService=sottod.service' "$activation" || out="$out $activation: no line SystemdService=sottod.service"
report "dbus/org.sotto.Sotto1.service" "$out"

# What the daemon asks polkit about and what the policy names are the same actions.
policy=$here/polkit/org.sotto.policy
asked=$(sed -n 's/.*=> "\(org\.sotto\.[a-z-]*\)",/\1/p' "$here/../src/door/dbus/polkit.rs" | sort)
named=$(sed -n 's/.*<action id="\([^"]*\)">/\1/p' "$policy" | sort)
out=
[ -n "$asked" ] && [ "$asked" = "$named" ] || out="$policy names $named, the daemon asks about $asked"
report "polkit/org.sotto.policy" "$out"

# `journalctl -x` finds an entry for each message that the documents promise, and the daemon says no other.
catalog=$here/catalog/sotto.catalog
if command -v journalctl >/dev/null; then
  install -D -m 644 -t "$root/usr/lib/systemd/catalog" "$catalog"
  out=$(journalctl --root="$root" --update-catalog 2>&1 && journalctl --root="$root" --list-catalog 2>&1 >"$root/listed") || out="${out:-failed}"
  listed=$(grep -oE '^[0-9a-f]{32}' "$root/listed" | sort)
  promised=$(grep -oE '^\| [0-9a-f]{32}' "$here/../docs/API.md" | cut -c3- | sort)
  said=$(grep -rhoE '"[0-9a-f]{32}"' "$here/../src" | tr -d '"' | sort -u)
  [ "$listed" = "$promised" ] || out="$out catalog/sotto.catalog has $listed, docs/API.md names $promised"
  [ "$said" = "$promised" ] || out="$out src says $said, docs/API.md names $promised"
  report "catalog/sotto.catalog" "$out"
else
  echo "skipped: catalog/sotto.catalog is not checked, journalctl is not installed"
fi

# Traps that only a long life or a bad day would show; each has its reason beside it in the unit.
out=
for never in RuntimeDirectory PrivateUsers StateDirectory=sotto$ 'SystemCallFilter=~@resources' Type=dbus LoadCredential; do
  ! grep -qE "^$never" "$here/sottod.service" || out="$out sottod.service has $never;"
done
for always in 'LimitCORE=0' 'BusName=' 'RestartPreventExitStatus=2' 'StateDirectory=sotto/state'; do
  grep -q "^$always" "$here/sottod.service" || out="$out sottod.service lacks $always;"
done
for always in Accept=yes SocketUser=sotto SocketMode=0600; do
  grep -q "^$always" "$here/sotto-onnx.socket" || out="$out sotto-onnx.socket lacks $always;"
done
for always in DynamicUser=yes MemoryMax= RestrictAddressFamilies=none PrivateNetwork=yes; do
  grep -q "^$always" "$here/sotto-onnx@.service" || out="$out sotto-onnx@.service lacks $always;"
done
! grep -qE '^(User|SystemCallFilter=~@resources)' "$here/sotto-onnx@.service" || out="$out sotto-onnx@.service has User= or ~@resources;"
[ "$(grep -c 'policykit.owner">unix-user:sotto<' "$policy")" = "$(grep -c '<action id=' "$policy")" ] ||
  out="$out an action of org.sotto.policy lacks its owner;"
report "traps" "$out"

exit "$failed"
