"""vLLM in this process, its engine included: one start and one copy of torch."""

import atexit
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault(
    "VLLM_LOGGING_LEVEL", "ERROR"
)  # vLLM reads it when it is imported, and would print a hundred lines into a run
from vllm import LLM, PoolingParams
from vllm.v1.engine.exceptions import EngineDeadError

from agvas_core.contract.errors import StageError, UsageError
from agvas_runtime.stages.vllm.arguments import engine_arguments, environment, state_folder
from agvas_runtime.stages.vllm.engine import Answering, is_written, states_of
from agvas_runtime.stages.vllm.protocol import Identity, LmmRequest, LmmResponse

__all__ = ["LocalEngine", "open_local"]


class LocalEngine:
    """Opens a folder of ``agvas-export vllm``. Several threads may ask; they take turns.

    Args:
        all_modes: False starts it for direct mode alone.
        options: of ``vllm.LLM``, beside or in place of ours.

    Raises:
        BundleError: a folder that is broken, changed or foreign.
        SetupError: another vLLM than the plugin was written for.
        UsageError: one runs in this process already.
        StageError: the engine does not start.
    """

    running: ClassVar["LocalEngine | None"] = None
    """vLLM keeps its state in globals: there is room for one."""
    answering: Answering

    def __init__(self, folder: Path, *, all_modes: bool = True, **options: Any) -> None:
        os.environ.update(environment(own_process=False))  # vLLM asks for them there, and nowhere else
        if (other := LocalEngine.running) is not None:
            raise UsageError(
                f"vLLM runs in this process already, with {other.answering.folder}; there is room for one: close it, or use agvas serve-lmm"
            )
        self.answering = Answering(folder, all_modes=all_modes)
        self._states, self._turn = state_folder(), threading.Lock()
        atexit.register(shutil.rmtree, self._states, ignore_errors=True)
        arguments = engine_arguments(folder, self.answering.spec, all_modes=all_modes, states=self._states)
        try:
            self.llm = LLM(**arguments | options)
        except (RuntimeError, ValueError, OSError) as error:
            shutil.rmtree(self._states, ignore_errors=True)
            raise StageError(f"vLLM does not start with {folder} ({error}): see what it printed before") from error
        LocalEngine.running = self

    def identity(self) -> Identity:
        return self.answering.identity

    def ask(self, asked: LmmRequest) -> list[LmmResponse]:
        prompts, parameters = self.answering.prompts(asked), self.answering.parameters(asked)
        adapter = self.answering.adapter(asked.adapter)
        try:
            with self._turn:
                outputs: Sequence[Any]
                if isinstance(parameters, PoolingParams):
                    outputs = self.llm.encode(
                        prompts, parameters, pooling_task="token_embed", lora_request=adapter, use_tqdm=False
                    )
                else:
                    outputs = self.llm.generate(prompts, parameters, lora_request=adapter, use_tqdm=False)
                    for output in outputs:
                        while not is_written(states_of(output)):
                            self.llm.llm_engine.step()  # the connector writes one step after the last word
                return [self.answering.said(asked, output) for output in outputs]
        except EngineDeadError as error:
            raise StageError("vLLM's engine has died, see what it printed; open the segmenter again") from error

    def close(self) -> None:
        """Ends the engine."""
        self.llm.llm_engine.engine_core.shutdown()
        shutil.rmtree(self._states, ignore_errors=True)
        LocalEngine.running = None


def open_local(folder: Path, *, all_modes: bool = True) -> LocalEngine:
    """The engine that runs here already, where it has the same folder and modes; else a new one."""
    other = LocalEngine.running
    same = other is not None and other.answering.folder.samefile(folder) and other.answering.all_modes == all_modes
    return other if other is not None and same else LocalEngine(folder, all_modes=all_modes)
