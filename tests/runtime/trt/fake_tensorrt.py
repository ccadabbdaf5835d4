"""TensorRT for machines without a GPU, at the boundary of its Python package and nowhere above: an engine is the ONNX graph it was built from.

ONNX Runtime computes what the engine would, on the memory of ``fake_cuda``. The interface is that part of the real one that we call;
``test_library_boundary`` compares it with TensorRT-RTX's where that is installed. It says nothing of TensorRT's answers or its speed.
"""

import json
from enum import Enum, IntEnum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from fake_cuda import FakeCuda

VERSION = "10.13.0"
SCRATCH = 4096
TYPES = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


class Severity(IntEnum):
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def __init__(self) -> None: ...


class Network:
    def __init__(self) -> None:
        self.model = onnx.ModelProto()

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    def get_input(self, index: int) -> Any:
        return self.model.graph.input[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        self.network.model = onnx.load(path)
        return True


class Config:
    builder_optimization_level = 3

    def __init__(self) -> None:
        self.profile: dict[str, Any] = {}

    def set_memory_pool_limit(self, pool: Any, size: int) -> None: ...

    def add_optimization_profile(self, profile: Any) -> None:
        self.profile = profile.shapes


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class Builder:
    def __init__(self, logger: Any) -> None: ...

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << 1, "strongly typed"
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        return json.dumps(config.profile).encode() + b"\n" + network.model.SerializeToString()


class Engine:
    def __init__(self, data: bytes, cuda: FakeCuda) -> None:
        shapes, _, graph = data.partition(b"\n")
        self.shapes, self.cuda = json.loads(shapes), cuda
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        # It does not know float8 and ends the process's session on it.
        self.session = ort.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ClipQuantRewrite"]
        )
        self.tensors = {one.name: one for one in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.known: dict[Any, dict[str, tuple[int, ...]]] = {}
        self.contexts: list[Context] = []
        self.capturable = True

    device_memory_size_v2 = SCRATCH

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name].type

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.shapes[name]]

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> "Context":
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses, self.scratch = engine, dict[str, tuple[int, ...]](), dict[str, int](), 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        self.shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_device_memory(self, memory: int, size: int) -> None:
        self.engine.cuda.inside(memory, SCRATCH)
        self.scratch = size

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        assert pointer, "an empty tensor has an address, too"
        self.addresses[name] = pointer
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        key = tuple(self.shapes[each] for each in self.engine.inputs)
        if key not in self.engine.known:
            zeros = {each: np.zeros(self.shapes[each], TYPES[self.engine.tensors[each].type]) for each in self.engine.inputs}
            made = self.engine.session.run(self.engine.outputs, zeros)
            self.engine.known[key] = {each: array.shape for each, array in zip(self.engine.outputs, made, strict=True)}
        return self.engine.known[key][name]

    def execute_async_v3(self, stream: int) -> bool:
        ready = self.scratch >= SCRATCH and self.addresses.keys() == self.engine.tensors.keys()
        if not ready or (stream in self.engine.cuda.captures and not self.engine.capturable):
            return False
        self.engine.cuda.run(stream, self._compute)
        return True

    def _compute(self) -> None:
        given = {name: self._array(name, self.shapes[name]).copy() for name in self.engine.inputs}
        for name, array in zip(self.engine.outputs, self.engine.session.run(self.engine.outputs, given), strict=True):
            self._array(name, array.shape)[...] = array

    def _array(self, name: str, shape: tuple[int, ...]) -> Any:
        import ctypes

        kind = np.dtype(TYPES[self.engine.tensors[name].type])
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        self.engine.cuda.inside(self.addresses[name], size)
        if size == 0:
            return np.zeros(shape, kind)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(self.addresses[name]), kind).reshape(shape)


class Runtime:
    cuda: FakeCuda
    engines: list[Engine]

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        if not data.startswith(b"{"):
            self.logger.log(Severity.ERROR, "Magic tag does not match")
            return None
        if len(data) > self.cuda.cudaMemGetInfo()[1]:
            return None
        self.engines.append(Engine(data, self.cuda))
        return self.engines[-1]


def fake_tensorrt(cuda: FakeCuda, version: str = VERSION) -> ModuleType:
    """The package ``tensorrt``, to be put among the imported modules."""
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    runtime = type("Runtime", (Runtime,), {"cuda": cuda, "engines": []})
    module.__dict__.update(
        __version__=version,
        Runtime=runtime,
        nptype=lambda kind: TYPES[kind],
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE=0),
        BuilderFlag=SimpleNamespace(),
        **{each.__name__: each for each in (TensorIOMode, ExecutionContextAllocationStrategy, ILogger, OnnxParser, Builder)},
    )
    return module
