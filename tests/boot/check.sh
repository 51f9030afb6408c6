#!/bin/bash
# What must hold for sotto in a booted system; run inside it, as root, by run.sh.
set -u
socket=/run/sotto/api.sock
name=org.sotto.Sotto1 path=/org/sotto/Sotto1
n_failed=0
ok() { # WHAT COMMAND...
  local what=$1
  shift
  if "$@"; then
    echo "ok $what"
  else
    echo "FAILED $what: $*"
    n_failed=$((n_failed + 1))
  fi
}
is() { [ "$(systemctl show "$1" -p "$2" --value)" = "$3" ]; }
http() { curl -s --max-time 60 --unix-socket $socket "http://sotto$1" "${@:2}"; }
answers() { http /v1/completions -d '{"prompt":"Once upon a time","max_tokens":8,"temperature":0}' | grep -q '"text":"[^"]'; }
called() { busctl --timeout=60 call $name $path $name.Manager Generate 'sa{sv}' 'Once upon a time' 2 max_tokens u 8 raw b true >/dev/null; }
stop() {
  systemctl stop sottod.service 2>/dev/null
  systemctl reset-failed sottod.service 2>/dev/null
}
active() { # within 10 s
  for _ in $(seq 100); do
    is sottod.service ActiveState active && return
    sleep 0.1
  done
  return 1
}

ok "the socket listens after the installation" is sottod.socket ActiveState active
ok "nobody asked yet" is sottod.service ActiveState inactive
ok "the socket is for the group" [ "$(stat -c '%a %U %G' $socket)" = "660 root sotto" ]
ok "models belong to root" [ "$(stat -c '%a %U' /var/lib/sotto/models)" = "755 root" ]

# 20 starts: by the socket and by the bus in turn.
for i in $(seq 20); do
  stop
  began=$(date +%s%N)
  if [ $((i % 2)) = 1 ]; then
    ok "start $i, by the socket" answers
  else
    ok "start $i, by the bus" called
  fi
  echo "  first answer after $((($(date +%s%N) - began) / 1000000)) ms"
  ok "start $i is active" active
done
stop

ok "it acts as its own user" [ "$(answers && ps -o user= -C sottod)" = sotto ]
ok "its name is on the bus" sh -c "busctl status $name >/dev/null"
ok "health" [ "$(http /healthz)" = ok ]
ok "status line" grep -q 'running' <(sleep 11; systemctl show sottod -p StatusText --value)
ok "another user is not let in" sh -c "! setpriv --reuid=nobody --regid=nogroup --clear-groups curl -s --max-time 5 --unix-socket $socket http://sotto/healthz"
ok "a member of the group is" setpriv --reuid=nobody --regid=nogroup --groups="$(getent group sotto | cut -d: -f3)" curl -sf --max-time 5 --unix-socket $socket http://sotto/v1/models -o /dev/null
ok "polkit knows its actions" sh -c "pkaction | grep -q org.sotto"
ok "a stranger may not load" sh -c "! setpriv --reuid=nobody --regid=nogroup --clear-groups busctl --timeout=20 call $name $path $name.Manager LoadModel 'sa{sv}' story-2.8m-q8_0 0"
ok "root may load" busctl --timeout=20 call $name $path $name.Manager LoadModel 'sa{sv}' story-2.8m-q8_0 0
# A member of the group, whom the bus lets in: polkitd decides, by the policy and by rules of the administrator.
useradd --system --groups sotto visitor
member() { setpriv --reuid=visitor --regid="$(id -g visitor)" --init-groups "$@"; }
asks() { # PYTHON: a call of the member, its answer or its error
  member python3 -c "
import dbus
with_options = lambda **options: dbus.Dictionary(options, signature='sv')
manager = dbus.Interface(dbus.SystemBus().get_object('$name', '$path', introspect=False), '$name.Manager')
try:
    print('answer:', manager.$1)
except dbus.DBusException as e:
    print(e.get_dbus_name(), e.get_dbus_message())"
}
generates() { asks "Generate('Once', with_options(raw=True, max_tokens=dbus.UInt32(4)))"; }
loads() { asks "LoadModel('story-2.8m-q8_0', with_options())"; }
refused() { # ACTION CALL...: polkit is asked, and says no
  "${@:2}" | grep -q "AccessDenied not_authorized: .*polkit refuses org.sotto.$1"
}
rule() { # ACTION RESULT: what polkitd says of the member, as soon as it knows
  echo "polkit.addRule(function(action, subject) {
    if (action.id == 'org.sotto.$1' && subject.user == 'visitor') return polkit.Result.$2; });" \
    >/etc/polkit-1/rules.d/10-sotto.rules
  sleep 1 # polkitd sees that by itself
}
mkdir -p /etc/polkit-1/rules.d
ok "polkitd runs" sh -c "systemctl start polkit && pidof polkitd >/dev/null"
ok "a member generates" grep -q '^answer: ' <(generates)
ok "a member may not load, by the policy" refused load-model loads
ok "nor read the configuration again" refused manage asks 'Reload()'
rule load-model YES
ok "a member may load, by a rule" grep -q '^answer: .*/job/' <(loads)
rule generate NO
ok "a member may not generate, by a rule" refused generate generates
ok "nor open a session" refused generate asks 'OpenSession(with_options())'
ok "nor make vectors" refused generate asks "Embed(['text'], with_options())"
ok "root may" called
rm /etc/polkit-1/rules.d/10-sotto.rules
sleep 1
ok "a member generates again" grep -q '^answer: ' <(generates)
kill -STOP "$(pidof polkitd)"
ok "a polkitd that is silent is no yes" grep -q 'AccessDenied not_authorized: .*is there and says nothing' <(generates)
ok "nor in the way of root" called
kill -CONT "$(pidof polkitd)"
ok "a member generates once more" grep -q '^answer: ' <(generates)

ok "its log level changes" sh -c "systemctl service-log-level sottod debug && [ \$(systemctl service-log-level sottod) = debug ]"
systemctl service-log-level sottod info
ok "a reload is taken" systemctl reload sottod
ok "the journal has fields" sh -c "journalctl -u sottod -o json | grep -q MESSAGE_ID"
ok "the catalog explains" sh -c "journalctl -u sottod -x | grep -q 'Subject:\|-- '"

# What callers say is in no line of the journal and in no file.
word=Quaxolotl
for body in "{\"input\":\"$word\",\"raw\":true,\"max_tokens\":8}" "{\"input\":\"$word\",\"class\":\"$word\"}" "{\"input\":\"$word"; do
  http /sotto/v1/generate -d "$body" >/dev/null
done
http /sotto/v1/tokenize -d "{\"text\":\"$word\"}" >/dev/null
busctl --timeout=60 call $name $path $name.Manager Generate 'sa{sv}' $word 2 max_tokens u 8 raw b true >/dev/null
stop
ok "no word of a caller is in the journal" sh -c "! journalctl -a -o export | grep -qi $word"
ok "nor in a file" sh -c "! grep -rqi $word /var /run /tmp /etc /root 2>/dev/null"

# kill -9: systemd starts it again, and the next request is served.
stop
answers
before=$(systemctl show sottod -p MainPID --value)
# Read so slowly that the answer cannot be over.
curl -sN --limit-rate 20K --max-time 60 --unix-socket $socket http://sotto/sotto/v1/generate \
  -d '{"input":"Once","raw":true,"max_tokens":400,"min_tokens":400,"logprobs":20}' >/tmp/stream &
until grep -q token /tmp/stream 2>/dev/null; do :; done
kill -9 "$before"
wait $!
ok "a killed stream has no last word" sh -c "! grep -q 'event\":\"done\|event\":\"error' /tmp/stream"
ok "the next request is served" answers
ok "by another process" [ "$(systemctl show sottod -p MainPID --value)" != "$before" ]

# A frozen engine thread: the watchdog notices, and it starts anew.
stop
curl -s --unix-socket $socket http://sotto/sotto/v1/generate -o /dev/null \
  -d '{"input":"Once upon a time","raw":true,"max_tokens":400,"temperature":0}'
before=$(systemctl show sottod -p MainPID --value)
engine=$(grep -lx engine /proc/"$before"/task/*/comm | head -n 1 | cut -d/ -f5)
python3 - "$engine" <<'P' &
import ctypes, os, sys
libc, tid = ctypes.CDLL(None, use_errno=True), int(sys.argv[1])
for request in 0x4206, 0x4207:  # seize, interrupt
    if libc.ptrace(request, tid, None, None) != 0:
        sys.exit(f"errno {ctypes.get_errno()}")
try:
    # A thread that dies while it is held stays until this has heard of it.
    while True:
        os.waitpid(-1, 0x40000000)
except ChildProcessError:
    pass
P
freezer=$!
sleep 1
curl -s --max-time 80 --unix-socket $socket http://sotto/sotto/v1/generate -o /dev/null -d '{"input":"Once","raw":true}' &
for _ in $(seq 80); do
  now=$(systemctl show sottod -p MainPID --value)
  [ "$now" != "$before" ] && [ "$now" != 0 ] && break
  sleep 1
done
[ "$now" != "$before" ] || { http /healthz; cat "/proc/$before/task/$engine/status"; }
kill $freezer 2>/dev/null
ok "a frozen engine is started anew" [ "$now" != "$before" ]
ok "by systemd, once" [ "$(systemctl show sottod -p NRestarts --value)" = 1 ]
ok "and it answers" answers

# A mistake in the configuration is not mended by restarts.
stop
mkdir -p /etc/sotto
echo 'version = 1
[engine]
threads = "many"' >/etc/sotto/sotto.toml
http /healthz >/dev/null
sleep 3
ok "a mistake ends in failure at once" [ "$(systemctl show sottod -p NRestarts --value)" = 0 ]
ok "and is told" sh -c "journalctl -u sottod | grep -q 'engine.threads\|threads'"
rm /etc/sotto/sotto.toml
systemctl reset-failed sottod.service sottod.socket
systemctl start sottod.socket
ok "mended, it answers" answers

# ONNX graphs: a service of their own runs them, as another user, of files that the daemon alone may read.
graphs=/run/sotto/onnx.sock
helper() { pgrep -x sotto-onnx; }
no_helper() { # within 10 s, and systemd keeps nothing of it
  for _ in $(seq 100); do
    [ -z "$(helper)$(systemctl list-units --all --no-legend 'sotto-onnx@*')" ] && return
    sleep 0.1
  done
  return 1
}
uid() { awk '/^Uid:/ { print $2 }' "/proc/$1/status"; }
embeds() { # a text of the fixture becomes the vector that onnxruntime makes of it
  python3 - <<'P'
import json, math, subprocess
case = json.load(open("/usr/share/sotto-boot/bert/expected.json"))["cases"][0]
body = json.dumps({"model": "bert", "input": case["text"]})
out = subprocess.run(["curl", "-s", "--max-time", "60", "--unix-socket", "/run/sotto/api.sock",
                      "http://sotto/v1/embeddings", "-d", body], capture_output=True, text=True).stdout
try:
    a, b = json.loads(out)["data"][0]["embedding"], case["vector"]
except KeyError:
    raise SystemExit(out)
cosine = sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
raise SystemExit(0 if len(a) == len(b) and cosine > 0.9999 else f"cosine {cosine}, {len(a)} and {len(b)} numbers")
P
}
refuses() { # SETPRIV-OPTION...: who is so may not connect
  setpriv "$@" python3 -c "
import socket
try:
    socket.socket(socket.AF_UNIX).connect('$graphs')
except PermissionError:
    raise SystemExit(0)
raise SystemExit(1)"
}
if [ -x /usr/libexec/sotto/sotto-onnx ]; then
  stop
  cp -r /usr/share/sotto-boot/bert /var/lib/sotto/models/bert
  chown -R sotto: /var/lib/sotto/models/bert
  chmod -R u=rwX,go= /var/lib/sotto/models/bert
  ok "the socket for graphs listens after the installation" is sotto-onnx.socket ActiveState active
  ok "for the daemon alone" [ "$(stat -c '%a %U' $graphs)" = "600 sotto" ]
  ok "nobody runs a graph yet" no_helper
  ok "a text becomes a vector" embeds
  pid=$(helper) daemon=$(systemctl show sottod -p MainPID --value)
  ok "by one process" [ "$(wc -w <<<"$pid")" = 1 ]
  ok "of another user: $(uid "$pid"), the daemon is $(uid "$daemon")" [ "$(uid "$pid")" -ge 61184 ]
  unit=$(sed -n 's/^0:.*\/\(sotto-onnx@[^/]*service\)$/\1/p' "/proc/$pid/cgroup")
  ok "in a unit of its own: $unit" [ -n "$unit" ]
  bound=$(systemctl show "$unit" -p MemoryMax --value)
  ok "with a bound on its memory: $bound" [ "$bound" -gt 0 ]
  ok "which is not shown what others keep" [ -z "$(ls -A "/proc/$pid/root/var")$(ls -A "/proc/$pid/root/home")" ]
  found=$(nsenter --mount --target "$pid" setpriv --reuid="$(uid "$pid")" --regid=nogroup --clear-groups \
    find / -path /proc -prune -o -type d -writable -print 2>/dev/null | tr '\n' ' ')
  ok "and writes in a /tmp of its own at most: $found" [ "$found" = "/tmp " ]
  ok "that user may not read the model" sh -c "! setpriv --reuid=$(uid "$pid") --regid=nogroup --clear-groups cat /var/lib/sotto/models/bert/model.onnx >/dev/null 2>&1"
  ok "nor speak to the service" refuses --reuid="$(uid "$pid")" --regid=nogroup --clear-groups
  ok "nor may a member of the daemon's group" refuses --reuid=visitor --regid=nogroup --groups="$(getent group sotto | cut -d: -f3)"
  kill -9 "$pid"
  ok "killed, the next text becomes one" embeds
  ok "by another process" [ "$(helper)" != "$pid" ]
  ok "the daemon is the same" [ "$(systemctl show sottod -p MainPID --value)" = "$daemon" ]
  ok "it is unloaded" sotto unload bert
  ok "and no process is left" no_helper
  embeds
  kill -9 "$(systemctl show sottod -p MainPID --value)"
  ok "a daemon that dies leaves none" no_helper
  ok "and the next has one" embeds
  stop
  ok "a daemon that ends leaves none" no_helper
  ok "and the socket stays" [ -S $graphs ]
  # What the administrator masks comes with no start of the daemon.
  systemctl mask --runtime --now sotto-onnx.socket
  ok "without it the other stays" [ -S $socket ]
  ok "and the daemon says what is missing" grep -q "nothing listens at $graphs" <(http /v1/embeddings -d '{"model":"bert","input":"a"}')
  ok "generation goes on" grep -q '"text":"[^"]' <(http /v1/completions -d '{"model":"story-2.8m-q8_0","prompt":"Once","max_tokens":8}')
  systemctl unmask --runtime sotto-onnx.socket
  systemctl start sotto-onnx.socket
  ok "with it, vectors come again" embeds
  ok "after both sockets stopped there is nothing left" sh -c "systemctl stop sottod.socket sottod sotto-onnx.socket; ! [ -e $socket ] && ! [ -e $graphs ]"
  systemctl start sotto-onnx.socket sottod.socket
  ok "and in the other order all is as it was" embeds
  exposure=$(systemd-analyze security sotto-onnx@0.service --no-pager | tail -n 1)
  ok "exposure at most 1.0: $exposure" awk -v x="${exposure##*: }" 'BEGIN { exit !(x + 0 <= 1.0 && x ~ /^[0-9]/) }'
else
  echo "skipped: ONNX graphs; the package has no sotto-onnx"
fi
exposure=$(systemd-analyze security sottod.service --no-pager | tail -n 1)
ok "exposure at most 1.0: $exposure" awk -v x="${exposure##*: }" 'BEGIN { exit !(x + 0 <= 1.0 && x ~ /^[0-9]/) }'
echo "$n_failed failed"
[ "$n_failed" = 0 ]
