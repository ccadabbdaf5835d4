"""``agvas serve-lmm``: the language model on vLLM, behind HTTP, kept running."""

import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.errors import StageError, UsageError
from agvas_core.contract.lmm_folder import IN_BUNDLE, find_lmm_folder, read_lmm_folder

__all__ = ["serve_lmm"]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


def serve_lmm(
    bundle: Annotated[
        Path, typer.Argument(metavar="FOLDER", help=f"Folder of agvas-export vllm, or a bundle with one in {IN_BUNDLE}/.")
    ],
    host: Annotated[str, typer.Option(help="Whoever reaches it may use it, and is trusted: keep it on loopback.")] = DEFAULT_HOST,
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

    from agvas_runtime.stages.http_lmm import HttpEngine
    from agvas_runtime.supervisor import supervise
    from agvas_runtime.vllm_plugin.arguments import (
        DIRECT_ONLY,
        FOLDER,
        MIDDLEWARE,
        engine_arguments,
        environment,
        state_folder,
    )
    from agvas_runtime.vllm_plugin.flags import as_flags

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
