"""A line to look at, and to pull plugs on: a camera of generated parts, a broker, verdicts, figures and the page. ``make line`` runs it.

    python examples/demo_line.py                     GigE Vision where Aravis is installed, MJPEG where not
    python examples/demo_line.py --kind mjpeg --seconds 60

The first start makes the parts and learns the product from 16 good ones; two of the 24 parts that go by again and again have a defect.
Everything is a process of its own on loopback, and its number is printed: kill one, and see that the promise is kept.
"""

import argparse
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
from make_examples import LID, LID_GOOD

ROOT = Path(__file__).parent.parent
PLACES = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
RECIPE = """\
product: lid
model: {model}
deadline_ms: 5000
keep: {{rejects: true, sample_every: 20, max_gb: 0.5}}
"""
SHOWN = range(100, 124)  # parts of the product that it was not learned from
BAD = {107: 0, 118: 4}
"""Of these, number of the part and of its defects."""
SIDE_PX = 512


def there_is_aravis() -> bool:
    try:
        ctypes.CDLL("libaravis-0.8.so.0")
    except OSError:
        return False
    return True


def free_port() -> int:
    """Below the ports that the system gives to clients, so that it is still free when its server starts."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def start(what: str, command: list[str]) -> subprocess.Popen[bytes]:
    """A process that is not ended by the Ctrl-C of this one, but in order."""
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    print(
        f"{what:8} process {process.pid}: {' '.join(command[:1] + [Path(word).name if word.startswith('/') else word for word in command[1:]])}"
    )
    return process


def broker(folder: Path, port: int) -> list[str] | None:
    """The command of a mosquitto on loopback; None where there is none."""
    binary = shutil.which("mosquitto", path=PLACES)
    if binary is None:
        return None
    user = "user root\n" if os.geteuid() == 0 else ""
    config = f"{user}listener {port} 127.0.0.1\nallow_anonymous true\n"
    (folder / "mosquitto.conf").write_text(config)
    return [binary, "-c", str(folder / "mosquitto.conf")]


def write_parts(folder: Path, kind: str) -> tuple[Path, Path]:
    """Folders of good pictures to learn from and of parts to show, as the camera sends them: square, of GigE Vision grey."""
    learned, shown = folder / f"good-{kind}", folder / "parts"
    for place, numbers in ((learned, LID_GOOD), (shown, SHOWN)):
        place.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            sample = LID.bad(BAD[number]) if place == shown and number in BAD else LID.good(number)
            image = cv2.resize(sample.image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_LINEAR)
            grey = kind == "gige" and place == learned
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if grey else cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(place / f"{number:03d}.png"), image)
    return learned, shown


def begin(kind: str, fps: float, folder: Path, model: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Starts camera, broker and line, each in ``processes`` as soon as it is there, the line last."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model))
    camera_port, mqtt_port, page_port, trigger_port = (free_port() for _ in range(4))
    shown = ["--size", f"{SIDE_PX}x{SIDE_PX}", "--fps", f"{fps:g}", "--parts", str(folder / "parts")]
    where = ["--serial", f"L{camera_port}"] if kind == "gige" else ["--port", str(camera_port)]
    addresses = {
        "gige": f"genicam://Aravis-Fake-L{camera_port}?fps={fps:g}",
        "mjpeg": f"http://127.0.0.1:{camera_port}/",
        "rtsp": f"rtsp://127.0.0.1:{camera_port}/live",
    }
    processes.append(start("camera", [sys.executable, str(ROOT / "examples" / "demo_camera.py"), kind, *where, *shown]))
    line = [
        sys.executable,
        "-m",
        "agvas.cli",
        "line",
        "--recipe",
        str(recipe),
        "--state",
        str(folder / "ledger"),
        "--log",
        "text",
    ]
    line += ["--camera", addresses[kind], "--station", "free", "--trigger", "free"]
    line += ["--camera", addresses["mjpeg"] if kind == "mjpeg" else f"watch:{folder / 'incoming'}", "--station", "second"]
    (folder / "incoming").mkdir(exist_ok=True)
    line += ["--trigger", f"http:{trigger_port}" if kind == "mjpeg" else "free"]
    line += ["--sink", f"jsonl:{folder / 'verdicts.jsonl'}", "--metrics", "0"]
    mosquitto = broker(folder, mqtt_port)
    if mosquitto is None:
        print("mosquitto is not installed (apt-get install mosquitto): verdicts go to a file alone")
    else:
        processes.append(start("broker", mosquitto))
        line += ["--sink", f"mqtt://127.0.0.1:{mqtt_port}/agvas/{{station}}/verdict"]
    helped = subprocess.run([*line[:3], "--help"], capture_output=True, text=True, check=False).stdout
    if "--page" in helped:
        line += ["--page", str(page_port)]
    processes.append(start("line", line))
    if kind == "mjpeg":
        print(f"trigger  curl -X POST 'http://127.0.0.1:{trigger_port}/trigger?wait_s=5'")
    else:
        print(f"second   cp {folder / 'parts/100.png'} {folder / 'incoming'}/   is a part of its own")
    if "--page" in line:
        print(f"page     http://127.0.0.1:{page_port}/   yield, parts, pictures of rejects")
    print(f"ledger   agvas ledger verify {folder / 'ledger'}   also while it runs\nCtrl-C ends it.", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("gige", "mjpeg", "rtsp"), help="of the camera; gige where Aravis is installed")
    parser.add_argument("--fps", type=float, default=1.5)
    parser.add_argument("--seconds", type=float, help="end after so long; without it, at Ctrl-C")
    parser.add_argument("--model", help="a product or bundle in place of the product that is learned")
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "line")
    arguments = parser.parse_args()
    kind, folder = arguments.kind, arguments.state
    if kind is None:
        kind = "gige" if there_is_aravis() else "mjpeg"
        if kind == "mjpeg":
            print(
                "Aravis is not installed (apt-get install libaravis-0.8-0): the camera is MJPEG over HTTP in place of GigE Vision"
            )
    asked = threading.Event()
    # Who closes the terminal leaves no camera, broker and line behind, also while they start: nothing is cut off, the loop below ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    processes: list[subprocess.Popen[bytes]] = []
    learned, _ = write_parts(folder, kind)
    model = arguments.model or str((folder / f"product-{kind}").resolve())
    if arguments.model is None and not Path(model, "manifest.json").exists():
        print(f"learning the product from {len(LID_GOOD)} good pictures; about half a minute, the first time only", flush=True)
        fit = subprocess.Popen([sys.executable, "-m", "agvas.cli", "fit", str(learned), "-o", model], start_new_session=True)
        while fit.poll() is None:
            time.sleep(0.1)
            if asked.is_set():
                fit.send_signal(signal.SIGINT)
                return fit.wait(60)
        if fit.returncode != 0:
            return fit.returncode
    begin(kind, arguments.fps, folder, model, processes)
    end = time.monotonic() + (arguments.seconds or float("inf"))
    while time.monotonic() < end and processes[-1].poll() is None and not asked.is_set():
        time.sleep(0.1)
    code = processes[-1].poll() or 0
    for process in reversed(processes):  # the line first, so that its last messages find the broker
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT if process is processes[-1] else signal.SIGTERM)
        try:
            code = process.wait(60) if process is processes[-1] else (process.wait(10), code)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run(
        [sys.executable, "-c", "from agvas.cli import main; main()", "ledger", "verify", str(folder / "ledger")],
        check=False,
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
