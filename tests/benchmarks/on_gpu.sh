#!/usr/bin/env bash
# What needs a GPU, in a few minutes: tests that skip without one, then both methods' steps, into one JSON.
#   bash tests/benchmarks/on_gpu.sh OUT.json [python]
set -eu
out=$(realpath "${1:?the JSON to write, as in: bash tests/benchmarks/on_gpu.sh gpu.json}")
python=${2:-python3}
cd "$(dirname "$0")/../.."
"$python" -c 'import torch, open_clip, pytest' || {
    echo "$python lacks a package: run make setup GPU=yes, then give .venv/bin/python as the second argument." >&2
    exit 1
}
"$python" -m pytest -q -n 0 -p no:cacheprovider -rs -k "cuda or gpu or device" tests/backbone tests/knowledge tests/study
"$python" -m tests.benchmarks.on_gpu "$out"
