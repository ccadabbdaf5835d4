#!/usr/bin/env bash
# Every figure that needs a GPU, by one command, within 20 minutes, without a network: benchmarks/gpu_figures.sh [--out DIR] [--site DIR] [--dry-run]
#
#   --out DIR      where figures.md, figures.json, a profile of nano and the logs go ($OUT where that is set, else runs/gpu)
#   --site DIR     a folder of Python packages that the machine lacks (pip install --target DIR ...); what is missing is named
#   --dry-run      says what would run
#   --device cpu --tiny   all of it at tiny size on a CPU: shows that it runs; its figures mean nothing
#
# Needs torch 2.6 or later with CUDA, transformers 5, peft, pytest and the base packages of agvas. Models are made on the device with random weights. A step
# that fails or takes too long is a line in the table, and the next one runs. The GPU's settings are left as they are.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu} site="" device=cuda tiny="" dry="" python=${PYTHON:-python3} budget=1170
while [ $# -gt 0 ]; do
    case $1 in
    --out | --site | --device) [ $# -gt 1 ] || { echo "gpu_figures.sh: $1 needs a value" >&2; exit 2; }
        case $1 in --out) out=$2 ;; --site) site=$2 ;; --device) device=$2 ;; esac; shift ;;
    --tiny) tiny=--tiny ;;
    --dry-run) dry=yes ;;
    *) echo "gpu_figures.sh: $1 is no option: --out DIR, --site DIR, --device cuda|cpu, --tiny, --dry-run" >&2; exit 2 ;;
    esac
    shift
done
if [ "$device" = cpu ] && [ -z "$tiny" ]; then echo "gpu_figures.sh: --device cpu needs --tiny: at full size it would take days" >&2; exit 2; fi

work=$(mktemp -d) && raw=$work/raw && mkdir "$raw" && steps=$raw/steps.txt && : >"$steps" || exit 3
export PYTHONPATH="$work/site${site:+:$site}:$PWD:$PWD/export:$PWD/runtime${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
missing=$("$python" - <<'PY'
from importlib.util import find_spec
packages = {"cv2": "opencv-python-headless", "yaml": "pyyaml", "pydantic_core": "pydantic-core"}
wanted = ["torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "cv2", "onnxruntime", "pydantic", "pydantic_core", "typer", "rich", "yaml", "pytest"]
print(" ".join(packages.get(name, name) for name in wanted if find_spec(name) is None))
PY
) || { echo "gpu_figures.sh: $python does not run" >&2; exit 3; }
if [ -n "$missing" ]; then
    echo "gpu_figures.sh: $python lacks $missing: install them into a folder and name it with --site DIR" >&2
    exit 3
fi

finish() { # whatever was measured until then is kept: five files
    if [ -z "$dry" ]; then
        mkdir -p "$out" && "$python" benchmarks/gpu_report.py "$raw" >"$out/figures.md" && cat "$out/figures.md"
        cp "$raw"/figures.json "$raw"/profile/profile.* "$out/" 2>/dev/null
        tar -C "$raw" -czf "$out/logs.tar.gz" .
    fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

step() { # name, seconds, command...
    local name=$1 limit=$2 began=$SECONDS code=0
    shift 2
    [ -n "$dry" ] || [ "$limit" -lt $((budget - SECONDS)) ] || limit=$((budget - SECONDS))
    if [ "$limit" -lt 15 ]; then printf '%-24s    - s  not run: the time was over\n' "$name" | tee -a "$steps" >&2; return; fi
    if [ -n "$dry" ]; then printf '%-24s at most %4d s  %s\n' "$name" "$limit" "$*"; return; fi
    echo "== $name" >&2
    timeout "$limit" "$@" >"$raw/$name.log" 2>&1 || code=$?
    local said=ok
    if [ $code -eq 124 ]; then said="took longer than $limit s"; elif [ $code -ne 0 ]; then said="failed ($code): $(tail -n 1 "$raw/$name.log" | cut -c 1-160)"; fi
    printf '%-24s %4d s  %s\n' "$name" $((SECONDS - began)) "$said" | tee -a "$steps" >&2
}
ratio() { # name, seconds, options...
    local name=$1 limit=$2
    shift 2
    step "ratio-$name" "$limit" "$python" benchmarks/reference_ratio.py "$@" --device "$device" $tiny --json "$raw/ratio-$name.json"
}
native="$python -m pip install -q --no-deps --no-build-isolation --no-index --target $work/site"

if [ "$device" = cuda ]; then
    step machine 30 nvidia-smi
    if command -v nvcc >/dev/null && command -v cmake >/dev/null; then step native 120 $native -C cmake.define.AGVAS_CUDA=on .; fi
    step tests 150 "$python" -m pytest -m gpu tests/runtime tests/native -p no:cacheprovider --junitxml "$raw/tests.xml"
    if command -v compute-sanitizer >/dev/null; then
        step sanitizer 90 compute-sanitizer --error-exitcode 9 "$python" -m pytest -m gpu tests/native -p no:cacheprovider
    fi
    frames=2000 seconds=120 sizes=""
else
    step tests 200 "$python" -m pytest -m "not gpu and not slow" tests/runtime/test_torch_cuda.py -k "sam_without" -p no:cacheprovider --junitxml "$raw/tests.xml"
    frames=3 seconds=1 sizes="--micro-batch 1 2"
fi
# The longest first: the whole ends after 20 minutes.
few="--frames $((frames / 4 + 2)) --seconds $((seconds / 3 + 1))"
ratio ov-7b 200 --preset ov-7b --frames $frames --seconds $seconds
ratio ov-0.5b-vit-b 90 --preset ov-0.5b --sam vit_b --frames $frames --seconds $seconds
ratio ov-7b-fp8 120 --preset ov-7b --precision fp8 $few
for preset in ov-7b ov-0.5b; do
    step train-$preset 90 "$python" benchmarks/gpu_train_step.py --preset $preset --steps 3 $sizes --device "$device" $tiny --json "$raw/train-$preset.json"
done
if [ "$device" = cuda ]; then
    ratio ov-7b-compiled 150 --preset ov-7b --compile $few
    ratio ov-7b-fp8-compiled 120 --preset ov-7b --precision fp8 --compile $few
    ratio ov-0.5b-compiled 90 --preset ov-0.5b --sam vit_b --compile $few
fi
backend=torch-cuda; [ "$device" = cuda ] || backend=onnx
profile='import sys; from agvas_core.contract.command_line import exit_code_of; from agvas_runtime.profile.cli import profile; sys.exit(exit_code_of(lambda: profile, name="agvas profile", arguments=sys.argv[1:]))'
few="--frames 200"; [ "$device" = cuda ] || few="--frames 3 --warmup 1 --offered 0 --no-count --size-px 64"
step profile-nano 90 "$python" -c "$profile" --backend $backend $few -o "$raw/profile" --overwrite

[ -n "$dry" ] && exit 0
! grep -qv ' ok$' "$steps"
