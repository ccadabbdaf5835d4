#!/bin/sh
# Prints the name of a Python that can hold AG-VAS: 3.11 or newer, able to make virtual environments. PYTHON=... is tried alone.
# Ends with 3, and says what to do, where there is none.
candidates=${PYTHON:-"python3 python3.11 python3.12 python3.13 python3.14 python"}
for candidate in $candidates; do
    # Started, not only looked up: a version manager's shim can be on the PATH and still lead nowhere.
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
    if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        echo "$candidate"
        exit 0
    fi
    without_venv=$candidate
done
if [ -n "${without_venv:-}" ]; then
    echo "error: $without_venv cannot make virtual environments: install its venv module (Debian: apt-get install python3-venv)" >&2
else
    echo "error: no Python 3.11 or newer among: $candidates. Install one, or name it: make demo PYTHON=/path/to/python3.11" >&2
fi
exit 3
