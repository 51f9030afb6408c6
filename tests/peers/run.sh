#!/bin/bash
# Others' programs against a mock of this build: schemathesis over proto/openapi.yaml, and OpenAI's client for Python.
#   tests/peers/run.sh [SOTTOD [MODEL]]
# MODEL is a file without a chat template, for the client alone. SOTTO_PEERS_VENV names a virtual environment that has
# requirements.txt; without it one is made, and removed with all else at the end.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
sottod=$(realpath "${1:-$here/../../target/debug/sottod}")
model=${2:+$(realpath "$2")}
folder=$(mktemp -d)
socket=$folder/api.sock
daemon=
end() {
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" || true
        daemon=
    fi
}
trap 'end; rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM

# Starts a daemon with these arguments and waits until it would admit a request.
serve() {
    end
    printf 'version = 1\n[models]\ndirs = []\n[engine]\ncontext = 512\n' > "$folder/sotto.toml"
    CACHE_DIRECTORY=$folder/cache "$sottod" --config "$folder/sotto.toml" --bus none --socket "$socket" "$@" \
        > "$folder/log" 2>&1 &
    daemon=$!
    for _ in $(seq 100); do
        "$python" - "$socket" <<'PY' && return
import http.client, socket, sys
door = http.client.HTTPConnection("sotto")
door.sock = socket.socket(socket.AF_UNIX)
try:
    door.sock.connect(sys.argv[1])
    door.request("GET", "/readyz")
    sys.exit(door.getresponse().status != 200)
except OSError:
    sys.exit(1)
PY
        kill -0 "$daemon" || break
        sleep 0.1
    done
    cat "$folder/log"
    exit 1
}

venv=${SOTTO_PEERS_VENV:-}
if [ -z "$venv" ]; then
    venv=$folder/venv
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
fi
python=$venv/bin/python
export PYTHONDONTWRITEBYTECODE=1

serve --mock
"$python" "$here/schema.py" "$socket"
serve --mock tokens_per_s=200
"$python" "$here/openai_client.py" "$socket"
if [ -n "$model" ]; then
    serve --model "$model"
    "$python" "$here/openai_client.py" "$socket" --real
fi
echo "peers: all hold"
