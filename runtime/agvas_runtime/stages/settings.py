"""What the backends of the stages are told when they are opened."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["StageSettings"]


@dataclass(frozen=True)
class StageSettings:
    """One set for all backends; each reads what concerns it."""

    threads: int | None = None
    """CPU threads per stage; all cores where None."""
    checkpoint: Path | None = None
    """Torch: the checkpoint that the bundle was exported from, where it is not a bundled one."""
    lmm_folder: Path | None = None
    """vLLM in process: the folder of ``agvas-export vllm``, where it is not inside the bundle."""
    lmm_url: str | None = None
    """vLLM over HTTP: where ``agvas serve-lmm`` listens."""
    adapter: str | None = None
    """vLLM: the adapter to answer with; the folder's own where None."""
    engines: Path | None = None
    """TensorRT: the store that ``agvas-export trt -o`` wrote to, where it is not the default one."""
    cuda_context: int | None = None
    """TensorRT: handle of the CUDA context to use, where it is not the GPU's own (``stages.trt.pycuda_interop``)."""
