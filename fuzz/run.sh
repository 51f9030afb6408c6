#!/bin/bash
# Runs each fuzz target for some seconds (600 without an argument; further arguments name targets), beginning with
# the fixtures. Needs cargo-fuzz; stable Rust will do, as no sanitizer is used: the code is safe Rust, and what ends a
# run is a panic, an overflow, more than 1 GB of memory, or 10 s for one input.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(gguf packed safetensors onnx tokenizer template http bus)

bad=tests/fixtures/bad
for target in "${targets[@]}"; do
  corpus=fuzz/corpus/$target
  mkdir -p "$corpus"
  case $target in
    gguf)
      cp "$bad"/gguf/*.gguf "$corpus"
      for set in "$bad"/split/*/; do cat "$set"*.gguf >"$corpus/$(basename "$set").set"; done
      ;;
    packed)
      for file in tests/fixtures/stories260k/*.gguf tests/fixtures/quants/*.gguf; do
        cargo run -q --release -- pack "$file" --force -o "$corpus/$(basename "$file")"
      done
      ;;
    safetensors)
      for dir in "$bad"/hf/*/; do
        [ -f "$dir/config.json" ] || continue
        { cat "$dir/config.json"; printf '\0'; cat "$dir"/*.safetensors; } >"$corpus/$(basename "$dir")" 2>/dev/null || true
      done
      for config in ../shared/fixtures/models/*/hf/config.json; do
        [ ! -f "$config" ] || cp "$config" "$corpus/$(basename "$(dirname "$(dirname "$config")")").json"
      done
      ;;
    onnx)
      # Of a graph the beginning and the end count, of its weights none: without most of them it is short enough.
      python3 fuzz/seeds.py onnx "$corpus"
      ;;
    tokenizer)
      for file in "$bad"/vocab/*.gguf tests/fixtures/tokenizers/*/tokenizer.{json,model}; do
        [ -f "$file" ] || continue
        name=$(basename "$(dirname "$file")")-$(basename "$file")
        { printf "Hello, 123 w\xc3\xb6rld's <s>\n\0"; cat "$file"; } >"$corpus/$name"
      done
      ;;
    http | bus)
      # Bodies that the doors take, behind the byte that chooses the route or the method.
      python3 fuzz/seeds.py "$target" "$corpus"
      ;;
    template)
      for file in tests/fixtures/chat-templates/*.jinja ../shared/fixtures/chat-templates/*.jinja; do
        [ ! -f "$file" ] || cp "$file" "$corpus"
      done
      ;;
  esac
  echo "== $target: $seconds s, $(find "$corpus" -type f | wc -l) files to begin with"
  cargo fuzz run -s none "$target" "$corpus" -- \
    -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -max_len=32768 -print_final_stats=1
done
