"""The formats of exported files: their requirements, and how they are written and read again."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import io
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.nn.functional import scaled_dot_product_attention
from torch.utils import _pytree as pytree

from fxprune.capture.samples import Sample
from fxprune.errors import ExportError
from fxprune.proof.comparing import Leaves
from fxprune.rewriting import PrunedGraphModule
from fxprune.rules.ops import is_written
from fxprune.saving.comparing import tensors_of
from fxprune.saving.saving import write_source
from fxprune.util.paths import PartsModule, attribute, copied_graph, device_of, hold


def exported_program(network: nn.Module, samples: Sequence[Sample]) -> ExportedProgram:
    """The program of a call of the first sample; sizes in which others differ may change. Passes on torch's errors."""
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
    """Refuse odd names: torch would write them into code, and the module's own code may need them unchanged."""
    held = (*network.named_modules(), *network.named_parameters(), *network.named_buffers())
    for name in (name for name, _ in held if not re.fullmatch(r"[A-Za-z0-9_.]*", name)):
        raise ExportError(f"{name!r} is not a plain name, and torch.export writes names into code: rename it")


def _changing_dims(first: Any, *others: Any) -> dict[int, Any] | None:
    if not isinstance(first, torch.Tensor):
        return None
    changing = [dim for dim, size in enumerate(first.shape) if any(other.shape[dim] != size for other in others)]
    return dict.fromkeys(changing, Dim.AUTO)


def _called(network: fx.GraphModule) -> nn.Module:
    """A plain module with the parts of a graph module and its code as forward, which torch.export runs as written."""
    graph = copied_graph(network.graph)
    for node in graph.nodes:
        node.target = _REPLACED.get(node.target, node.target)
        for stored in _stored_behind(node) if node.target == "item" else ():
            _write_out(stored, attribute(network, str(stored.target)))
    made = fx.GraphModule(network, graph)
    called: nn.Module = type(type(network).__name__, (nn.Module,), {"forward": type(made).forward})()
    parts = [str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    if isinstance(network, PartsModule) and any(network.name_of(part) != part for part in parts):
        for part in parts:  # some lie too deep for code, and have a number in the graph
            hold(called, part, attribute(network, network.name_of(part)))
        return called.train(network.training)
    for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set", "training"):
        vars(called)[held] = vars(network)[held]
    return called


def _stored_behind(number: fx.Node) -> list[fx.Node]:
    """The stored tensors that a number read from a tensor is computed from, if from those and sizes alone.

    Torch computes such numbers if the tensors are written out, and else takes them for unknown ones.
    """
    found, pending, seen = [], [number], {number}
    while pending:
        node = pending.pop()
        if node.op == "placeholder":
            return []
        found += [node] if node.op == "get_attr" else []
        pending.extend(given for given in node.all_input_nodes if node.target != "size" and given not in seen)
        seen.update(node.all_input_nodes)
    return found


def _write_out(stored: fx.Node, values: torch.Tensor) -> None:
    """Let a call make a tensor, unless it is a parameter or written to."""
    of_same = [node for node in stored.graph.nodes if (node.op, node.target) == (stored.op, stored.target)]
    if isinstance(values, nn.Parameter) or any(map(is_written, of_same)):
        return
    with stored.graph.inserting_before(stored):
        options: dict[str, Any] = {"dtype": values.dtype, "device": values.device}
        stored.replace_all_uses_with(stored.graph.call_function(torch.tensor, (values.tolist(),), options))


def _whole(number: Any) -> Any:
    """``int`` that returns a symbolic integer unchanged; ``int`` itself would ask torch for its value."""
    return number if isinstance(number, torch.SymInt) else int(number)


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Attention that checks a mask of data-dependent length against the keys, which torch does not do."""
    if attn_mask is not None and free_unbacked_symbols(attn_mask.shape[-1]):
        torch._check(attn_mask.shape[-1] == key.shape[-2])
    return scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)


def _number(value: Any) -> Any:
    """Unary plus, which also turns a symbolic boolean into a number."""
    return torch.sym_ite(value, 1, 0) if isinstance(value, torch.SymBool) else +value


def _checked(condition: Any, message: str) -> None:
    """An assertion; ``torch._check`` if it depends on data."""
    if isinstance(condition, torch.Tensor):
        condition = condition.item()
    if isinstance(condition, torch.SymBool) and free_unbacked_symbols(condition):
        torch._check(condition, lambda: message)
    else:
        torch._assert(condition, message)


def _attribute(value: Any, name: str, *default: Any) -> Any:
    """``getattr`` with the data of a tensor detached, which is the same memory; torch loses track of ``data``."""
    return value.detach() if name == "data" and isinstance(value, torch.Tensor) else getattr(value, name, *default)


def _by_group(rows: Any, weights: Any, offs: Any = None, **more: Any) -> Any:
    """``torch._grouped_mm``, which torch exports in bfloat16 alone, as products of all rows with all weights."""
    if rows.dtype == torch.bfloat16 or (rows.dim(), weights.dim()) != (2, 3) or set(more.values()) - {None}:
        return torch._grouped_mm(rows, weights, offs, **more)
    group = (torch.arange(rows.shape[0], device=rows.device)[:, None] >= offs).sum(1).clamp(max=weights.shape[0] - 1)
    products = rows @ weights
    return products.gather(0, group[None, :, None].expand(1, -1, products.shape[2]))[0]


# Functions that torch exports for fewer arguments than it runs, and their replacements in an exported graph.
_REPLACED: dict[Any, Any] = {int: _whole, operator.pos: _number, torch._assert: _checked, getattr: _attribute}
_REPLACED |= {scaled_dot_product_attention: _attention, torch._grouped_mm: _by_group}


Run = Callable[[Sample], Leaves]
# An ONNX file cannot hold more than 2 GiB; larger networks get a second file for the weights.
_LARGEST_ONNX = 1 << 30


class Format:
    """A file format, and the base of the others: ``.pt2``, which torch's compilers and runtimes read.

    Attributes:
        suffix: the suffix of its files.
        suffixed: whether its runtime requires the suffix.
        one_graph: whether a file holds one graph of the network.
        needs: required libraries besides torch, and the argument of pip that installs them.
    """

    suffix = ".pt2"
    suffixed = False
    one_graph = True
    needs: tuple[Sequence[str], str] = ((), "")

    @property
    def missing(self) -> str:
        """The libraries that are not installed, and how to install them; empty if all are."""
        libraries, install = self.needs
        absent = [library for library in libraries if importlib.util.find_spec(library) is None]
        return f"{', '.join(absent)}, not installed here: pip install {install}" if absent else ""

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        """Write to a file or a new folder; sizes in which samples differ may change. Raises OSError."""
        # Not directly into the file: torch's writer aborts the process if the disk fails.
        memory = io.BytesIO()
        torch.export.save(exported_program(network, samples), memory)
        file.write_bytes(memory.getbuffer())

    def open(self, file: Path) -> Run:
        """Read the file again, without the network."""
        with file.open("rb") as stream:
            module = torch.export.load(stream).module()
        return lambda sample: tensors_of(sample.call(module))


class Onnx(Format):
    """ONNX through torch's current exporter, run by onnxruntime."""

    suffix = ".onnx"
    needs = (("onnx", "onnxscript", "onnxruntime"), "'fxprune[onnx]'")

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        program = _program_on_cpu(network, samples)
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
        session = onnx_session(file)
        names = [argument.name for argument in session.get_inputs()]
        return lambda sample: _of_arrays(session.run(None, dict(zip(names, _arrays(sample), strict=True))))


class OpenVino(Format):
    """The representation that OpenVINO reads, in float32: an ``.xml`` with the weights in a ``.bin`` beside it."""

    suffix = ".xml"
    suffixed = True
    needs = (("openvino",), "openvino")

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        import openvino

        program = _program_on_cpu(network, samples)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            openvino.save_model(openvino.convert_model(program), file, compress_to_fp16=False)

    def open(self, file: Path) -> Run:
        import openvino

        # Some processors default to half precision, which would fail every comparison with float32.
        model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(sample: Sample) -> Leaves:
            answers = model(_arrays(sample))
            return _of_arrays([answers[output].copy() for output in model.outputs])

        return run


class Source(Format):
    """A folder with readable code and the weights, which needs only torch and safetensors."""

    suffix = ""
    one_graph = False

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        file.mkdir()
        write_source(network, file)

    def open(self, file: Path) -> Run:
        # The code was generated a moment ago in this process, so it is safe to run.
        namespace: dict[str, Any] = {"__name__": "exported"}
        exec(compile((file / "model.py").read_text(encoding="utf-8"), str(file / "model.py"), "exec"), namespace)
        weights = safetensors.torch.load_file(file / "weights.safetensors")
        model: nn.Module = namespace["Model"]().eval()
        model.load_state_dict(weights, assign=True)
        return lambda sample: tensors_of(sample.call(model))


class Aoti(Format):
    """A package of torch's ahead-of-time compiler, for the network's device; it needs a C++ compiler."""

    suffix = ".aoti.pt2"
    suffixed = True

    def write(self, network: nn.Module, samples: Sequence[Sample], file: Path) -> None:
        from torch import _inductor

        _inductor.aoti_compile_and_package(exported_program(network, samples), package_path=str(file))

    def open(self, file: Path) -> Run:
        from torch import _inductor

        package = _inductor.aoti_load_package(str(file))
        return lambda sample: tensors_of(sample.call(package))


# A new format needs a class and a line here; the command line repeats the names because it does not load torch.
FORMATS: dict[str, Format] = {
    "pt2": Format(),
    "onnx": Onnx(),
    "source": Source(),
    "openvino": OpenVino(),
    "aoti": Aoti(),
}


def onnx_session(file: Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU; ``threads`` of 0 lets it choose."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, so they need not be printed too
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _program_on_cpu(network: nn.Module, samples: Sequence[Sample]) -> ExportedProgram:
    # A copy, because the file is compared with the network on its own device.
    network = network if device_of(network).type == "cpu" else copy.deepcopy(network).cpu()
    return exported_program(network, [sample.map(torch.Tensor.cpu) for sample in samples])


def _arrays(sample: Sample) -> list[Any]:
    return [tensor.numpy(force=True) for tensor in sample.tensors]


def _of_arrays(results: Sequence[Any]) -> Leaves:
    return tensors_of([torch.from_numpy(result) for result in results])
