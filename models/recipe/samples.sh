#!/bin/sh
# Prints the card's samples: seeds 1 to 20, one prompt, nothing picked. Needs a built `sotto`.
#   models/recipe/samples.sh target/release/sotto models/story-2.8m-q8_0.gguf
set -eu
for seed in $(seq 1 20); do
  printf '**Seed %d.** Once upon a time' "$seed"
  "$1" complete --local --model "$2" --temperature 0.8 --top-k 40 --top-p 1 --seed "$seed" --max-tokens 120 'Once upon a time'
  printf '\n\n'
done
