#!/usr/bin/env python3
"""usage: stream_again.py QUESTION      prints the answer as it comes, also across a restart of the daemon

A question that was broken off is asked again, with the same seed, so the same model gives the same answer: what was
printed already is passed over. The daemon is given half a second to come back, then twice as long each time, 8 seconds
at most; where it says itself when to come again, that counts."""
import http.client
import json
import os
import random
import socket
import sys
import time

PATH = os.environ.get("SOTTO_SOCKET", "/run/sotto/api.sock")
TRIES = 10
LATER = {"shutting_down", "queue_full", "rate_limited", "model_busy", "insufficient_memory", "not_ready", "internal"}


class Again(Exception):
    """It may go better later; with the seconds to wait, if the daemon said so."""

    def __init__(self, why, after=None):
        super().__init__(why)
        self.after = after


def failed(error):
    why = f'{error["code"]}: {error["message"]}'
    if error["code"] not in LATER:
        sys.exit(why)
    ms = error.get("retry_after_ms")
    raise Again(why, ms and ms / 1000)


def stream(body):
    """The pieces of an answer."""
    sotto = http.client.HTTPConnection("sotto")
    sotto.sock = socket.socket(socket.AF_UNIX)
    sotto.sock.settimeout(60)  # the daemon says something every 10 seconds
    try:
        sotto.sock.connect(PATH)
        sotto.request("POST", "/sotto/v1/generate", json.dumps(body))
        for line in sotto.getresponse():
            event = json.loads(line)
            if "error" in event:
                failed(event["error"])
            match event["event"]:
                case "token":
                    yield event["text"]
                case "done":
                    return
                case "error":
                    failed(event)
        raise Again("the stream ended without an end")
    except (OSError, http.client.HTTPException) as e:
        raise Again(f"the daemon is gone: {e or type(e).__name__}") from e
    finally:
        sotto.close()


body = {"input": sys.argv[1], "max_tokens": 2000, "seed": random.getrandbits(53)}
printed, wait = "", 0.5
for _ in range(TRIES):
    text = ""
    try:
        for piece in stream(body):
            text += piece
            if not printed.startswith(text):
                new = text[len(printed) :] if text.startswith(printed) else f"\n[anew] {text}"
                print(new, end="", flush=True)
                printed, wait = text, 0.5
        print()
        break
    except Again as e:
        after = e.after or wait
        print(f"\n{e}; asking again in {after} s", file=sys.stderr)
        time.sleep(after)
        wait = min(2 * wait, 8)
else:
    sys.exit(f"gave up after {TRIES} tries")
