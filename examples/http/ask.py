#!/usr/bin/env python3
"""usage: ask.py QUESTION      prints the whole answer; leaving closes the socket, which cancels"""
import http.client
import json
import os
import socket
import sys


class Sotto(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("sotto")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


if len(sys.argv) != 2:
    sys.exit(__doc__)
sotto = Sotto(os.environ.get("SOTTO_SOCKET", "/run/sotto/api.sock"))
body = {"messages": [{"role": "user", "content": sys.argv[1]}], "max_tokens": 200}
try:
    sotto.request("POST", "/v1/chat/completions", json.dumps(body))
except OSError as e:
    sys.exit(f"{sotto.path}: {e}; is sottod running?")
answer = json.load(sotto.getresponse())
if "error" in answer:
    sys.exit(f'{answer["error"]["code"]}: {answer["error"]["message"]}')
print(answer["choices"][0]["message"]["content"])
