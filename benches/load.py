#!/usr/bin/python3
"""Many clients of several users at both doors of a daemon at once; says how they were served.

usage: benches/load.py SOTTOD MODEL [--seconds 300] [--limits raised|default] [--clients 8] [--without-bus]

Root starts one process for each of eight users, each with eight clients: six at the socket, two on a bus of its own.
Users 0 to 5 ask alike, user 6 in class `background`, user 7 for long answers only. Every answer is compared with the
same request's when it was alone. Ends with 1 where an answer differs, a stream breaks off, a refusal is none of the
documented ones (with raised limits: where there is any), memory grows, or the engine's time is further apart between
users 0 to 5 than 10 % over the run or 25 % in any 10 s; or where, before all that, the first token of one interactive
caller takes longer than two chunks of a prefill while all of user 6 want background work. Needs dbus-daemon and
python3-dbus, which is for Debian's own python3.
"""

import argparse
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

try:
    import dbus
    import dbus.bus
except ImportError:
    dbus = None

N_UIDS = 8
# Users that every Debian has; a bus refuses those that are not in /etc/passwd.
FIRST_UID = 1
N_KINDS = 24
BACKGROUND, LONG = 6, 7
# How far the engine's time may be apart, and by how much the daemon's own memory may grow after a third of the run.
SPREAD_MAX, SPREAD_10_S_MAX, GROWTH_MAX = 0.10, 0.25, 1.05
# Tokens of a chunk of a prefill, the most that it takes (docs/API.md, section 2), and how long first tokens are looked at.
CHUNK, CHUNK_S, BESIDE_S = 128, 0.05, 10
# What a full queue says, and what a busy daemon may.
DOCUMENTED = {"queue_full", "rate_limited", "deadline_exceeded", "stalled"}
WORDS = "once there was a small red house on the hill and a cat who liked the rain very much".split()


def request(kind, uid):
    """The body of a request; the same for the same kind but for its class and length."""
    text = " ".join(WORDS[(kind * 7 + i * (kind + 1)) % len(WORDS)] for i in range(10 + 4 * kind))
    body = {"input": text, "raw": True, "seed": kind, "max_tokens": 8 + 2 * kind}
    if uid == LONG:
        body["max_tokens"] = 200
    if uid == BACKGROUND:
        body["class"] = "background"
    return body


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("sotto", timeout=600)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def over_http(path, body):
    """Events of a request at the socket, each with its time."""
    connection = Unix(path)
    try:
        connection.request("POST", "/sotto/v1/generate", json.dumps(body))
        answer = connection.getresponse()
        if answer.status != 200:
            yield time.monotonic(), {"event": "error", "code": json.load(answer)["error"]["code"]}
            return
        for line in answer:
            yield time.monotonic(), json.loads(line)
    finally:
        connection.close()


def over_bus(address, body):
    """The same on the bus, by a pipe."""
    types = {"raw": dbus.Boolean, "seed": dbus.UInt64, "max_tokens": dbus.UInt32, "class": dbus.String}
    options = {key: types[key](value) for key, value in body.items() if key != "input"}
    bus = dbus.bus.BusConnection(address)
    try:
        manager = dbus.Interface(
            bus.get_object("org.sotto.Sotto1", "/org/sotto/Sotto1", introspect=False), "org.sotto.Sotto1.Manager"
        )
        _, stream = manager.StartGeneration(
            body["input"], dbus.Dictionary(options, signature="sv"), signature="sa{sv}", timeout=600
        )
        with os.fdopen(stream.take()) as lines:
            for line in lines:
                yield time.monotonic(), json.loads(line)
    finally:
        bus.close()


def run(ask, body):
    """One request to its end: when it began, its token times, its text, and how it ended."""
    began, tokens, text, end, engine_s = time.monotonic(), [], "", "broken off", 0
    for at, event in ask(body):
        if event["event"] == "token":
            tokens.append(at)
            text += event["text"]
        elif event["event"] in ("done", "error"):
            end = event.get("finish_reason") or event["code"]
            engine_s = event.get("timings", {}).get("engine_ms", 0) / 1000
    return {"began": began, "tokens": tokens, "text": text, "end": end, "engine_s": engine_s}


def client(ask, uid, index, until, out, lock):
    kind = uid * 8 + index
    while time.monotonic() < until:
        kind = (kind + 5) % N_KINDS
        try:
            record = run(ask, request(kind, uid))
        except Exception as e:  # noqa: BLE001 (whatever it is, it is told)
            record = {"began": time.monotonic(), "tokens": [], "text": "", "end": f"failed: {e!r}", "engine_s": 0}
        record.update(uid=uid, kind=kind)
        with lock:
            print(json.dumps(record), file=out, flush=True)
        if record["end"] in DOCUMENTED:
            time.sleep(0.2)


def user(uid, args, doors, until, path):
    """The clients of one user, in a process that acts as it."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(FIRST_UID + uid, FIRST_UID + uid, FIRST_UID + uid)
        os.setresuid(FIRST_UID + uid, FIRST_UID + uid, FIRST_UID + uid)
    lock = threading.Lock()
    with open(path, "w") as out:
        threads = []
        for index in range(args.clients):
            on_bus = doors["bus"] and index >= args.clients * 3 // 4
            ask = (lambda b: over_bus(doors["bus"], b)) if on_bus else (lambda b: over_http(doors["socket"], b))
            threads.append(threading.Thread(target=client, args=(ask, uid, index, until, out, lock)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def in_a_process(uid, args, doors, until, path):
    """Starts the clients of a user."""
    path.touch()
    path.chmod(0o666)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            user(uid, args, doors, until, path)
            code = 0
        finally:
            os._exit(code)
    return pid


def first_token_s(doors):
    record = run(lambda b: over_http(doors["socket"], b), request(0, 0))
    assert record["end"] in ("stop", "length"), record
    return record["tokens"][0] - record["began"]


def chunk_s(doors):
    """How long a chunk of a prompt takes while nothing else is wanted."""
    body = {"input": " ".join(WORDS * 20), "raw": True, "max_tokens": 1, "cache": False}
    took = []
    for _ in range(9):
        done = [event for _, event in over_http(doors["socket"], body)][-1]
        took.append(done["timings"]["prefill_ms"] / 1e3 / done["usage"]["prompt_tokens"] * CHUNK)
    return min(percentile(took, 0.5), CHUNK_S)


def beside_background(args, doors, folder):
    """How long one caller waits for its first token while only background work is wanted beside it, seconds each; and
    how long it may: two chunks longer than while nothing is."""
    most = percentile([first_token_s(doors) for _ in range(99)], 0.95) + 2 * chunk_s(doors)
    until = time.monotonic() + BESIDE_S
    pid = in_a_process(BACKGROUND, args, doors, until, folder / "background")
    time.sleep(1)
    waits = []
    while time.monotonic() < until:
        waits.append(first_token_s(doors))
        time.sleep(0.02)
    os.waitpid(pid, 0)
    n = len((folder / "background").read_text().splitlines())
    print(f"first token beside {n} background requests alone: median {percentile(waits, 0.5) * 1e3:.0f} ms, 95 % "
          f"{percentile(waits, 0.95) * 1e3:.0f} ms, most {max(waits) * 1e3:.0f} ms, {len(waits)} requests; allowed are {most * 1e3:.0f} ms")
    return waits, most


def rss_kib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def spread(counts):
    """How far the most and the least are apart, of their mean."""
    mean = sum(counts) / len(counts)
    return (max(counts) - min(counts)) / mean if mean else float("nan")


def engine_s(records, uid, first, last):
    """What a user had of the engine's time between two moments, if each answer had its own evenly while it was written."""
    total = 0
    for r in records:
        if r["uid"] == uid and r["tokens"]:
            start, end = r["tokens"][0], max(r["tokens"][-1], r["tokens"][0] + 1e-3)
            total += r["engine_s"] * max(0, min(end, last) - max(start, first)) / (end - start)
    return total


def report(args, records, wanted, began, memory, beside):
    ends = {}
    for r in records:
        ends[r["end"]] = ends.get(r["end"], 0) + 1
    differ = [r for r in records if r["end"] in ("stop", "length") and r["text"] != wanted[(r["kind"], r["uid"] == LONG)]]
    allowed = {"stop", "length"} | (DOCUMENTED if args.limits == "default" else set())
    wrong = {end: n for end, n in ends.items() if end not in allowed}
    print(f"requests: {len(records)}, ends: {ends}")
    print(f"answers that differ from the same request alone: {len(differ)}")
    alike = range(BACKGROUND)
    # At the ends not all are there yet, or any more.
    first, last = began + 5, began + args.seconds - 5
    print(f"tokens by user: {[sum(len(r['tokens']) for r in records if r['uid'] == u) for u in range(N_UIDS)]}")
    had = [engine_s(records, uid, first, last) for uid in range(N_UIDS)]
    print(f"engine time by user, s: {[round(s, 2) for s in had]} (6: background, 7: long answers)")
    over_run = spread([had[uid] for uid in alike])
    windows = []
    at = first
    while at + 10 <= last:
        windows.append(spread([engine_s(records, uid, at, at + 10) for uid in alike]))
        at += 1
    over_10_s = max(windows, default=float("nan"))
    print(f"spread over the run: {over_run:.1%}; over any 10 s: median {percentile(windows, 0.5):.1%}, most {over_10_s:.1%}")

    def first_waits(uids):
        return [r["tokens"][0] - r["began"] for r in records if r["uid"] in uids and r["tokens"]]

    for name, uids in [("users 0 to 5", alike), ("background", [BACKGROUND]), ("long answers", [LONG])]:
        waits = first_waits(uids)
        print(f"first token, {name}: median {percentile(waits, 0.5):.2f} s, 95 % {percentile(waits, 0.95):.2f} s, {len(waits)} requests")
    third = max(1, len(memory) // 3)
    early, late = max(memory[:third]), max(memory[-third:])
    print(f"memory of its own: first third at most {early} KiB, last third {late} KiB")
    faults = [f"ends: {wrong}"] * bool(wrong) + [f"{len(differ)} answers differ"] * bool(differ)
    # What is no number, as where somebody had nothing or the run was short, is not within bounds.
    faults += ["the run is uneven"] * (not over_run <= SPREAD_MAX)
    faults += ["10 s are uneven"] * (not over_10_s <= SPREAD_10_S_MAX)
    faults += ["memory grows"] * (late > early * GROWTH_MAX)
    waits, most = beside
    faults += ["a first token waits for background work"] * (not percentile(waits, 0.95) <= most)
    faults += ["long answers take more than their part"] * (not had[LONG] <= 1.1 * min(had[uid] for uid in alike))
    faults += ["a question waits as long as a long answer"] * (not percentile(first_waits(alike), 0.95) < percentile(first_waits([LONG]), 0.5))
    print(f"wrong: {'; '.join(faults) or 'nothing'}")
    return 1 if faults else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sottod")
    parser.add_argument("model")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--limits", choices=["raised", "default"], default="raised")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--without-bus", action="store_true", help="all clients go to the socket")
    args = parser.parse_args()
    if os.getuid() != 0:
        print("not root: all clients are one user, whose limits they share", file=sys.stderr)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sotto-load-"))
    folder.chmod(0o755)
    children = []
    try:
        return measure(args, folder, children)
    finally:
        for child in reversed(children):
            child.send_signal(signal.SIGTERM)
            child.wait()
        shutil.rmtree(folder)


def measure(args, folder, children):
    doors = {"socket": str(folder / "api.sock"), "bus": None}
    if not args.without_bus:
        if not dbus or not shutil.which("dbus-daemon"):
            print("python3-dbus and dbus-daemon are not both installed; --without-bus goes without", file=sys.stderr)
            return 2
        doors["bus"] = f"unix:path={folder}/bus.sock"
        (folder / "bus.conf").write_text(
            f"<busconfig><type>session</type><listen>{doors['bus']}</listen><auth>EXTERNAL</auth>"
            '<policy context="default"><allow user="*"/><allow send_destination="*"/>'
            '<allow receive_sender="*"/><allow own="*"/></policy></busconfig>\n'
        )
        children.append(subprocess.Popen(["dbus-daemon", "--nofork", f"--config-file={folder}/bus.conf"]))
        time.sleep(1)
    limits = ""
    if args.limits == "raised":
        limits = (
            "max_connections = 512\nmax_connections_per_uid = 256\n[scheduler]\nqueue_max = 1024\n"
            "queue_max_per_uid = 256\nqueue_timeout_s = 3600\ndeadline_s = 3600\n"
        )
    (folder / "sotto.toml").write_text(f'version = 1\n[models]\ndirs = []\n[api]\nmode = "0666"\n{limits}')
    env = dict(os.environ, DBUS_SESSION_BUS_ADDRESS=doors["bus"] or "", CACHE_DIRECTORY="/dev/null")
    daemon = subprocess.Popen(
        [args.sottod, "--config", folder / "sotto.toml", "--socket", doors["socket"], "--model", args.model]
        + ["--bus", "session" if doors["bus"] else "none"],
        env=env,
        stderr=open(folder / "log", "w"),
    )
    children.append(daemon)
    for _ in range(200):
        if os.path.exists(doors["socket"]):
            break
        time.sleep(0.05)
    wanted = {}
    for kind in range(N_KINDS):
        for long in (False, True):
            record = run(lambda b: over_http(doors["socket"], b), request(kind, LONG if long else 0))
            assert record["end"] in ("stop", "length"), record
            wanted[kind, long] = record["text"]
    beside = beside_background(args, doors, folder)
    print(f"{len(wanted)} requests alone; now {N_UIDS * args.clients} clients for {args.seconds} s", flush=True)
    began = time.monotonic()
    paths = [folder / f"user-{uid}" for uid in range(N_UIDS)]
    users = [in_a_process(uid, args, doors, began + args.seconds, path) for uid, path in enumerate(paths)]
    memory = []
    while time.monotonic() < began + args.seconds:
        time.sleep(1)
        memory.append(rss_kib(daemon.pid))
        print(f"\r{time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    failed = [pid for pid in users if os.waitpid(pid, 0)[1] != 0]
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    verdict = report(args, records, wanted, began, memory, beside)
    if daemon.poll() is not None:
        print(f"the daemon has ended:\n{(folder / 'log').read_text()[-2000:]}")
        verdict = 1
    return 1 if failed else verdict


if __name__ == "__main__":
    sys.exit(main())
