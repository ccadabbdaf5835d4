#!/bin/sh
# Builds the native core without Python and runs its C++ tests: tools/native_tests.sh BIN FOLDER [-DAGVAS_...=...]
# BIN is where cmake is looked for first.
set -eu
bin=$1 folder=$2
shift 2
PATH="$(cd "$bin" && pwd):$PATH"
cd "$(dirname "$0")/.."
quiet="$folder/log.txt"
mkdir -p "$folder"
{ cmake -S . -B "$folder" -DAGVAS_TESTS=ON -DAGVAS_NATIVE=on -DAGVAS_CUDA=off "$@" && cmake --build "$folder" --parallel 2; } >"$quiet" 2>&1 ||
    { cat "$quiet" >&2; exit 3; }
grep -h "agvas: native core" "$quiet" || true
ctest --test-dir "$folder/runtime/agvas_runtime/csrc/tests" --output-on-failure --no-tests=error
