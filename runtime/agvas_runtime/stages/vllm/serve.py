"""``agvas serve-lmm``: the language model on vLLM, behind HTTP, kept running."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated

import typer

from agvas_core.contract.errors import SetupError, StageError, UsageError
from agvas_core.contract.lmm_folder import IN_BUNDLE, find_lmm_folder, read_lmm_folder

__all__ = ["RestartPolicy", "serve_lmm", "supervise"]


DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


def serve_lmm(
    bundle: Annotated[
        Path, typer.Argument(metavar="FOLDER", help=f"Folder of agvas-export vllm, or a bundle with one in {IN_BUNDLE}/.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on. Every client is trusted: keep it on loopback.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(min=1, max=65535)] = DEFAULT_PORT,
    direct_only: Annotated[
        bool, typer.Option("--direct-only", help="Direct mode alone: no output head, less memory, a little faster.")
    ] = False,
    kv_gib: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Memory of keys and values on a CPU; 1 by default.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.05, max=1.0, metavar="SHARE", help="Share of a GPU's memory that vLLM may take.")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that share the model.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Images that are answered together.")] = 8,
    eager: Annotated[bool, typer.Option("--eager", help="No CUDA graphs, no compilation: a start of seconds.")] = False,
    log_level: Annotated[str, typer.Option(help="What vLLM prints: DEBUG, INFO, WARNING or ERROR.")] = "WARNING",
) -> None:
    """Serve a bundle's language model with vLLM for agvas-run --lmm URL, and start it again when it dies.

    Loaded adapters are those in the folder's adapters/; one that is added while the server runs can be asked for at once.
    """
    folder = find_lmm_folder(bundle)
    spec = read_lmm_folder(folder)
    _refuse_taken(host, port)

    from agvas_runtime.stages.vllm.arguments import (
        DIRECT_ONLY,
        FOLDER,
        MIDDLEWARE,
        as_flags,
        engine_arguments,
        environment,
        state_folder,
    )
    from agvas_runtime.stages.vllm.http import HttpEngine

    states = state_folder()
    options = engine_arguments(folder, spec, all_modes=not direct_only, states=states)
    options |= {
        "host": host,
        "port": port,
        "max_num_seqs": max_batch,
        "tensor_parallel_size": tensor_parallel,
        "enforce_eager": eager or options["enforce_eager"],
        "middleware": MIDDLEWARE,
        "disable_uvicorn_access_log": log_level != "DEBUG",
    }
    if memory is not None:
        options["gpu_memory_utilization"] = memory
    # Adapters come from the folder and from nowhere else: vLLM's own way to load them would read any path.
    own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0", FOLDER: str(folder.resolve()), "VLLM_LOGGING_LEVEL": log_level} | (
        {DIRECT_ONLY: "1"} if direct_only else {}
    )
    if kv_gib is not None:
        own["VLLM_CPU_KVCACHE_SPACE"] = str(kv_gib)
    address = f"http://{'127.0.0.1' if host in ('', '0.0.0.0') else host}:{port}"
    engine = HttpEngine(address, timeout_s=5.0)

    def healthy() -> bool:
        try:
            return engine.identity().checkpoint_sha256 == spec.checkpoint_sha256 and engine.alive()
        except StageError:
            return False

    def told(line: str) -> None:
        print(f"agvas serve-lmm: {line}", file=sys.stderr, flush=True)

    modes = "direct mode" if direct_only else "all modes"
    told(f"starting vLLM with {spec.name} ({spec.dtype}, {modes})")
    try:
        supervise(
            [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *as_flags(options)],
            healthy=healthy,
            told=told,
            environment={**os.environ, **environment(own_process=True), **own},
            ready=lambda: told(f"ready: agvas-run SOURCE --lmm {address}"),
        )
    finally:
        shutil.rmtree(states, ignore_errors=True)


def _refuse_taken(host: str, port: int) -> None:
    """Before the minutes of loading: raises UsageError where the address cannot be listened on."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise UsageError(
            f"{host} port {port} cannot be listened on ({error.strerror}): choose another --port or --host"
        ) from error


# Keeps one process running: waits until it is healthy, starts it again with back-off when it ends or hangs, ends it with us.


@dataclass(frozen=True)
class RestartPolicy:
    """Times in seconds."""

    start_s: float = 900.0
    """Until a process that was started must be healthy: 15 GB of weights take minutes."""
    poll_s: float = 1.0
    hung_s: float = 30.0
    """A process that was healthy and has not been for so long is killed."""
    back_off_s: float = 1.0
    """Before the first new start; doubled before each further one."""
    max_back_off_s: float = 60.0
    calm_s: float = 120.0
    """After so long in health, the next failure counts as the first."""
    stop_s: float = 10.0
    """Between asking a process to end and killing it."""
    attempts: int = 3
    """Starts that may fail before the process was healthy even once."""


def supervise(
    command: Sequence[str],
    *,
    healthy: Callable[[], bool],
    told: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    patience: RestartPolicy | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Runs ``command`` until the caller is interrupted (KeyboardInterrupt), which ends the process, too.

    Args:
        healthy: does it do its work? Called every ``poll_s``.
        told: gets a line when something happens.
        ready: called each time that it became healthy.

    Raises:
        SetupError: it never became healthy.
    """
    patience = patience or RestartPolicy()
    failures, ever = 0, False
    while True:
        process = _start(command, environment)
        try:
            lasted_s, why = _watch(process, healthy, ready, patience)
        finally:
            _stop(process, patience)
        ever = ever or lasted_s is not None
        failures = 1 if lasted_s is not None and lasted_s >= patience.calm_s else failures + 1
        if not ever and failures >= patience.attempts:
            raise SetupError(f"{command[0]} {why}, {failures} times in a row: what it printed before says why")
        wait_s = min(patience.back_off_s * 2.0 ** (failures - 1), patience.max_back_off_s)
        told(f"the server {why}; it is started again in {wait_s:g} s")
        sleep(wait_s)


def _start(command: Sequence[str], environment: Mapping[str, str] | None) -> "subprocess.Popen[bytes]":
    try:
        # A group of its own: its workers end with it, and Ctrl-C reaches it through us alone.
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        raise SetupError(f"{command[0]} cannot be started ({error.strerror})") from error


def _watch(
    process: "subprocess.Popen[bytes]", healthy: Callable[[], bool], ready: Callable[[], None], patience: RestartPolicy
) -> tuple[float | None, str]:
    """Until it ends or hangs: how long it was in health (None: never), and what happened."""
    began = monotonic()
    first: float | None = None
    last = began
    while True:
        code = process.poll()
        now = monotonic()
        if code is not None:
            ended = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
            return (None if first is None else now - first), ended
        if healthy():
            last = monotonic()
            if first is None:
                first = last
                ready()
        elif first is None and now - began > patience.start_s:
            return None, f"was not healthy {patience.start_s:g} s after its start"
        elif first is not None and now - last > patience.hung_s:
            return now - first, f"did not answer for {patience.hung_s:g} s"
        sleep(patience.poll_s)


def _stop(process: "subprocess.Popen[bytes]", patience: RestartPolicy) -> None:
    """Asks, waits, kills; with its workers."""
    with suppress(ProcessLookupError, PermissionError):
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience.stop_s)
        _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    os.killpg(process.pid, number)  # start_new_session made its pid the group's
