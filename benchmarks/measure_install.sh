#!/bin/sh
# Time and size of the base install (no torch), in a fresh virtual environment that is removed afterwards.
#     benchmarks/measure_install.sh            packages fetched anew
#     benchmarks/measure_install.sh --cached   packages taken from pip's cache where they lie there
set -eu
cd "$(dirname "$0")/.."
case "${1:-}" in
    "") cache=--no-cache-dir what="packages fetched anew" ;;
    --cached) cache= what="packages from pip's cache" ;;
    *) echo "usage: benchmarks/measure_install.sh [--cached]" >&2; exit 2 ;;
esac
python=$(tools/find_python.sh)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

started=$(date +%s.%N)
"$python" -m venv "$folder/venv"
empty=$(du -sm "$folder/venv" | cut -f1)
made=$(date +%s.%N)
"$folder/venv/bin/pip" install -qq --disable-pip-version-check $cache . 2>"$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 3; }
ended=$(date +%s.%N)

awk -v a="$started" -v b="$made" -v c="$ended" 'BEGIN { printf "time    %.0f s  (%.0f s of it the empty environment)\n", c - a, b - a }'
echo "size    $(du -sm "$folder/venv" | cut -f1) MB on $(uname -m)  ($empty MB of it the empty environment)"
echo "how     $what, $("$folder/venv/bin/python" --version), $(nproc) cores"
echo "largest"
du -sm "$folder"/venv/lib/python3*/site-packages/* | sort -rn | head -8 | sed "s|$folder/venv/lib/python3[^/]*/site-packages/||; s/^/        /"
"$folder/venv/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") and "torch is in the base install: a dependency drew it in")'
