#!/bin/bash
# usage: ask.sh QUESTION      prints the answer as it comes; Ctrl-C closes the socket, which cancels
set -euo pipefail
jq -n --arg input "$1" '{$input, max_tokens: 200}' |
  curl -sSN --unix-socket "${SOTTO_SOCKET:-/run/sotto/api.sock}" http://sotto/sotto/v1/generate -d @- |
  jq -rj --unbuffered 'if .event == "token" then .text
    elif .event == "done" then "\n"
    elif .error then "\(.error.message)\n" | halt_error
    elif .event == "error" then "\(.message)\n" | halt_error
    else empty end'
