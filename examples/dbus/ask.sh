#!/bin/bash
# usage: ask.sh QUESTION      prints the answer; without --timeout busctl gives up after 25 seconds
set -euo pipefail
busctl ${SOTTO_BUS:-} --timeout=600 --json=short call \
  org.sotto.Sotto1 /org/sotto/Sotto1 org.sotto.Sotto1.Manager \
  Generate 'sa{sv}' "$1" 1 max_tokens u 200 | jq -r '.data[0]'
