"""A network as an exported program of torch, with the sizes that may change."""

from __future__ import annotations

import importlib.util
import inspect
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.utils import _pytree as pytree

from fxprune.capture.samples import Sample
from fxprune.errors import ExportError, MissingDependencyError
from fxprune.proof.comparing import Leaves
from fxprune.rewriting import PrunedGraphModule
from fxprune.saving.comparing import tensors_of
from fxprune.saving.saving import write_source
from fxprune.util.paths import copied_graph


def exported_program(network: nn.Module, samples: Sequence[Sample]) -> ExportedProgram:
    """The program of one call, that of the first sample; sizes in which another sample differs may change.

    Raises:
        Exception: of many types, where torch cannot trace the network with these sizes.
    """
    sample = samples[0]
    if isinstance(network, PrunedGraphModule):
        network = network.for_sizes_of(*sample.args, **sample.kwargs).plainly_named()
    _check_names(network)
    signature = inspect.signature(network.forward)
    bound = [signature.bind(*other.args, **other.kwargs).arguments for other in samples]
    shapes = {name: pytree.tree_map(_changing_dims, *(other[name] for other in bound)) for name in bound[0]}
    if isinstance(network, fx.GraphModule):
        network = _called(network)
    with torch.no_grad():
        return torch.export.export(network, sample.args, sample.kwargs, dynamic_shapes=shapes)


def _check_names(network: nn.Module) -> None:
    """Refuse names that torch would write into code as they are, in modules whose own code may ask for them."""
    held = (*network.named_modules(), *network.named_parameters(), *network.named_buffers())
    for name in (name for name, _ in held if not re.fullmatch(r"[A-Za-z0-9_.]*", name)):
        raise ExportError(f"{name!r} is no plain name, and torch.export writes names into code that it runs: rename it")


def _changing_dims(first: Any, *others: Any) -> dict[int, Any] | None:
    if not isinstance(first, torch.Tensor):
        return None
    changing = [dim for dim, size in enumerate(first.shape) if any(other.shape[dim] != size for other in others)]
    return dict.fromkeys(changing, Dim.AUTO)


def _called(network: fx.GraphModule) -> nn.Module:
    """The parts of a graph module with its code as the forward of a plain module.

    torch.export would run a graph node by node: arguments by position, and lists that cannot be written into.
    """
    made = fx.GraphModule(network, copied_graph(network.graph))
    called: nn.Module = type(type(network).__name__, (nn.Module,), {"forward": type(made).forward})()
    for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set", "training"):
        vars(called)[held] = vars(network)[held]
    return called


Run = Callable[[Sample], Leaves]
# A file of this format cannot hold more than 2 GiB; beyond that the weights lie in a second file beside it.
_LARGEST_ONNX = 1 << 30


class Format(Protocol):
    """One format: the ``suffix`` of its files; ``one_graph`` where a file holds one graph of the network.

    ``suffixed`` where its runtime reads no file of another name.
    """

    suffix: str
    suffixed: bool
    one_graph: bool

    def check(self) -> None:
        """Raise MissingDependencyError where a library is missing."""

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        """Write the network to a file (or to a new folder); sizes in which the samples differ may change.

        Raises:
            OSError: the disk refuses.
        """

    def open(self, file: Path) -> Run:
        """Read the file again, without the network."""


class _PatientWriter(io.RawIOBase):
    """Passes bytes on until the disk refuses, and keeps the error: torch's writer aborts the process if it gets one."""

    def __init__(self, stream: io.FileIO) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._stream = stream

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, as what lies under it does."""
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._stream.tell()

    def write(self, data: Any) -> int:
        """How many bytes it takes: all of them."""
        try:
            rest = memoryview(data)
            while self.error is None and len(rest):
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)


class Pt2:
    """``torch.export``: a file that torch, ahead-of-time compilers and other runtimes of torch read."""

    suffix = ".pt2"
    suffixed = False
    one_graph = True

    def check(self) -> None:
        """Torch alone is needed."""

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        """See :class:`Format`."""
        program = exported_program(network, samples)
        with file.open("wb", buffering=0) as stream:
            patient = _PatientWriter(stream)
            torch.export.save(program, patient)  # type: ignore[arg-type]  # it asks for no more than these methods
        if patient.error is not None:
            raise patient.error

    def open(self, file: Path) -> Run:
        """See :class:`Format`."""
        with file.open("rb") as stream:
            module = torch.export.load(stream).module()
        return lambda sample: tensors_of(sample.call(module))


class Onnx:
    """ONNX through torch's current exporter, run by onnxruntime."""

    suffix = ".onnx"
    suffixed = False
    one_graph = True

    def check(self) -> None:
        """Raise MissingDependencyError where a library is missing."""
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingDependencyError(
                f"the onnx format needs {', '.join(missing)}, not installed here: pip install 'fxprune[onnx]'"
            )

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        """See :class:`Format`."""
        program = exported_program(network.cpu(), [sample.map(torch.Tensor.cpu) for sample in samples])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                onnx_program = torch.onnx.export(program, (), dynamo=True, verbose=False)
            except Exception as error:
                outputs = program.graph_signature.output_specs
                if all(isinstance(output.arg, TensorArgument) for output in outputs):
                    raise
                message = "the network returns more than tensors, such as a size, and a file gives tensors alone"
                raise ExportError(f"{message}: return tensors") from error
        assert onnx_program is not None
        size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        onnx_program.save(file, external_data=size > _LARGEST_ONNX)

    def open(self, file: Path) -> Run:
        """See :class:`Format`."""
        session = onnx_session(file)
        names = [argument.name for argument in session.get_inputs()]

        def run(sample: Sample) -> Leaves:
            leaves = pytree.tree_leaves((sample.args, sample.kwargs))
            tensors = [leaf.numpy(force=True) for leaf in leaves if isinstance(leaf, torch.Tensor)]
            results = session.run(None, dict(zip(names, tensors, strict=True)))
            return tensors_of([torch.from_numpy(result) for result in results])

        return run


def onnx_session(file: Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU; ``threads`` of 0 lets it choose."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # a refusal is raised; it need not be printed too
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class Source:
    """A folder with readable code and the weights, which needs torch and safetensors alone."""

    suffix = ""
    suffixed = False
    one_graph = False

    def check(self) -> None:
        """Torch alone is needed."""

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        """See :class:`Format`."""
        file.mkdir()
        write_source(network, file)

    def open(self, file: Path) -> Run:
        """See :class:`Format`."""
        # The code was printed a moment ago and has been in nobody else's hands.
        namespace: dict[str, Any] = {"__name__": "exported"}
        exec(compile((file / "model.py").read_text(encoding="utf-8"), str(file / "model.py"), "exec"), namespace)
        weights = safetensors.torch.load_file(file / "weights.safetensors")
        model: nn.Module = namespace["Model"]().eval()
        model.load_state_dict(weights, assign=True)
        return lambda sample: tensors_of(sample.call(model))


class Aoti:
    """A package of torch's ahead-of-time compiler, for the network's device; ``torch._inductor.aoti_load_package``."""

    suffix = ".aoti.pt2"
    suffixed = True
    one_graph = True

    def check(self) -> None:
        """Torch alone is needed, and the C++ compiler that it calls."""

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        """See :class:`Format`."""
        from torch import _inductor

        _inductor.aoti_compile_and_package(exported_program(network, samples), package_path=str(file))

    def open(self, file: Path) -> Run:
        """See :class:`Format`."""
        from torch import _inductor

        package = _inductor.aoti_load_package(str(file))
        return lambda sample: tensors_of(sample.call(package))


class OpenVino:
    """The representation that OpenVINO reads, in float32: an ``.xml`` with the weights in a ``.bin`` beside it."""

    suffix = ".xml"
    suffixed = True
    one_graph = True

    def check(self) -> None:
        """Raise MissingDependencyError where a library is missing."""
        if importlib.util.find_spec("openvino") is None:
            raise MissingDependencyError("the openvino format needs openvino, not installed here: pip install openvino")

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        """See :class:`Format`."""
        import openvino

        program = exported_program(network.cpu(), [sample.map(torch.Tensor.cpu) for sample in samples])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            openvino.save_model(openvino.convert_model(program), file, compress_to_fp16=False)

    def open(self, file: Path) -> Run:
        """See :class:`Format`."""
        import openvino

        # Some processors compute in half precision unless told, and no comparison with float32 would pass.
        model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(sample: Sample) -> Leaves:
            leaves = pytree.tree_leaves((sample.args, sample.kwargs))
            answers = model([leaf.numpy(force=True) for leaf in leaves if isinstance(leaf, torch.Tensor)])
            return tensors_of([torch.from_numpy(answers[output].copy()) for output in model.outputs])

        return run


# Another format is one more class and its line here; the command line has the names once more, as it loads no torch.
FORMATS: Mapping[str, Format] = {
    "pt2": Pt2(),
    "onnx": Onnx(),
    "source": Source(),
    "openvino": OpenVino(),
    "aoti": Aoti(),
}
