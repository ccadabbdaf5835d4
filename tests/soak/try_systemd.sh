#!/bin/bash
# Runs deploy/agvas-line@.service under a real systemd: Debian 12 in a container of systemd-nspawn, by the steps of the unit's header.
#
#   apt-get install debootstrap systemd-container && tests/soak/try_systemd.sh FOLDER      as root; FOLDER (1 GB) is not there yet, and is removed
#
# The camera is examples/demo_camera.py on loopback, the model nano. The station is killed five times and stopped once; what is told goes to stdout,
# and the exit code is 1 where a promise is broken. PYTHON is one with agvas and pip (.venv-dev/bin/python). The guest shares this machine's network.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:?a folder for the guest, not there yet}
python=${PYTHON:-$here/.venv-dev/bin/python}
unit=agvas-line@camera-0 state=/var/lib/agvas/camera-0
mkdir "$folder"
began=()
clean() { kill "${began[@]}" 2>/dev/null || true; wait || true; rm -rf "$folder"; }
trap clean EXIT

debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3-venv,procps bookworm "$folder/root" >"$folder/log"
"$python" -m pip wheel -q "$here[line,web]" -w "$folder/root/wheels"
cp "$here"/deploy/agvas-line@.service "$folder/root/etc/systemd/system/"
read -r camera metrics page < <("$python" -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))')
"$python" "$here/examples/demo_camera.py" mjpeg --port "$camera" --fps 2 >"$folder/log" &
began+=($!)
systemd-nspawn --quiet --boot --register=no --keep-unit --directory="$folder/root" >"$folder/log" 2>&1 </dev/null &
began+=($!)
sleep 1
guest() { nsenter -t "$(pgrep -P "${began[1]}")" -a env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"; }
until guest systemctl is-system-running --quiet 2>/dev/null; do sleep 1; done
figure() { curl -sf "http://127.0.0.1:$metrics/metrics" | sed -n "s/^$1[^ ]* //p"; }
verdicts() { for _ in $(seq 120); do [ "$(figure agvas_decided_ms_count || true)" -ge "$1" ] 2>/dev/null && return; sleep 0.5; done; echo "no verdicts" >&2; return 1; }
main() { guest systemctl show --property MainPID --value "$unit"; }

guest bash -ec "
    python3 -m venv /usr/local/lib/agvas && PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels /usr/local/lib/agvas/bin/pip install -q 'agvas[line,web]'
    useradd --system --groups video agvas
    mkdir -p /etc/agvas
    cd /root && /usr/local/lib/agvas/bin/agvas recipe new plate && /usr/local/lib/agvas/bin/agvas recipe activate plate.yaml --store /etc/agvas/recipes
    install -m 600 /dev/null /etc/agvas/camera-0.env
    echo 'AGVAS_ARGUMENTS=--camera http://127.0.0.1:$camera/ --recipe /etc/agvas/recipes --sink jsonl:$state/verdicts.jsonl --metrics $metrics --page $page' >>/etc/agvas/camera-0.env
    systemctl daemon-reload
    systemctl enable --now $unit
    systemd-analyze verify $unit.service
    systemd-analyze security $unit | tail -1"
verdicts 10
curl -sf -o "$folder/page" "http://127.0.0.1:$page/" && echo "the page answers"
for kill in 1 2 3 4 5; do
    before=$(main)
    guest systemctl kill --signal=KILL "$unit"
    sleep 1
    verdicts 3
    echo "killed $kill: process $before, now $(main)"
done
guest systemctl stop "$unit"
guest systemctl show --property Result,ExecMainStatus,NRestarts "$unit"
[ "$(guest systemctl show --property Result --value "$unit")" = success ]
guest /usr/local/lib/agvas/bin/agvas ledger verify "$state" --images --delivered
guest systemctl poweroff
