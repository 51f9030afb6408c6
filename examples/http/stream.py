#!/usr/bin/env python3
"""usage: stream.py QUESTION      prints the answer as it comes, then what it took"""
import http.client
import json
import os
import socket
import sys

sotto = http.client.HTTPConnection("sotto")
sotto.sock = socket.socket(socket.AF_UNIX)
sotto.sock.connect(os.environ.get("SOTTO_SOCKET", "/run/sotto/api.sock"))
sotto.request("POST", "/sotto/v1/generate", json.dumps({"input": sys.argv[1], "max_tokens": 200}))
for line in sotto.getresponse():
    event = json.loads(line)
    if "error" in event:  # refused before the first event
        sys.exit(f'{event["error"]["code"]}: {event["error"]["message"]}')
    match event["event"]:
        case "token":
            print(event["text"], end="", flush=True)
        case "done":
            took = f'{event["usage"]["completion_tokens"]} tokens, {event["timings"]["decode_ms"]:.0f} ms'
            print(f"\n{took}", file=sys.stderr)
            break
        case "error":
            sys.exit(f'{event["code"]}: {event["message"]}')
else:
    sys.exit("the stream ended without an end: the daemon is gone")
