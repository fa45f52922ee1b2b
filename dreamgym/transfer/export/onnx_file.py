"""Writing a graph as an ONNX file, and running it."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym._extras import import_extra
from dreamgym.errors import TransferError
from dreamgym.models.decompositions import decompositions
from dreamgym.transfer.export.graphs import Graph

Run = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""A graph in onnxruntime: arrays by name in, arrays by name out."""


@torch.no_grad()
def write_onnx(graph: Graph, path: Path, *, optional: tuple[str, ...] = ()) -> None:
    """Write a graph as one ONNX file.

    Args:
        graph: graph on the CPU and in eval mode.
        path: the file.
        optional: inputs that are left out where the graph does not use them.

    Raises:
        ModuleNotFoundError: the extra `onnx` is not installed.
        TransferError: torch cannot export the graph; the message has torch's own.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(module, "dreamgym export")
    try:
        with _quiet():
            program = torch.export.export(graph, tuple(graph.examples.values()), strict=False)
            program = program.run_decompositions(
                {
                    **torch.export.default_decompositions(),
                    **decompositions(),
                    # ONNX has no strides.
                    torch.ops.prims.copy_strided.default: lambda x, strides: x.clone(),
                }
            )
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(graph.examples),
                output_names=graph.outputs,
                verbose=False,
                external_data=False,
            )
            if exported is None:
                raise RuntimeError("torch.onnx.export returned nothing")
            _leave_out(exported.model.graph, optional)
            exported.save(path, external_data=False)
    except Exception as error:  # torch raises its own kinds, and those of onnxscript
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TransferError(
            f"this model cannot be written as ONNX: {reason[0]}; for a network of your own, use "
            "operations that torch.onnx.export supports"
        ) from error


def _leave_out(graph: Any, names: tuple[str, ...]) -> None:
    """Remove inputs of an ONNX graph that nothing uses."""
    for value in list(graph.inputs):
        if value.name in names and not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's prints and warnings, and the checks of torch's distributions.

    Those checks raise where a parameter is out of range, which a graph cannot.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [each.level for each in loggers]
    checked = torch.distributions.Distribution._validate_args
    try:
        torch.distributions.Distribution.set_default_validate_args(False)
        for each in loggers:
            each.setLevel(logging.ERROR)
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(checked)
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def open_onnx(path: Path, *, threads: int = 1) -> Run:
    """Open a graph in onnxruntime, on the CPU.

    An ONNX file is a graph of standard operators: data, of which nothing is executed as a program.

    Args:
        path: the file.
        threads: threads of an operator; small graphs are fastest with one.

    Raises:
        ModuleNotFoundError: the extra `onnx` is not installed.
        TransferError: it is not an ONNX file.
    """
    runtime = import_extra("onnxruntime", "an exported controller")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise TransferError(f"{path} cannot be opened as ONNX: {error}") from None
    names = [each.name for each in session.get_outputs()]
    taken = {each.name for each in session.get_inputs()}

    def run(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given = {name: np.asarray(value) for name, value in inputs.items() if name in taken}
        return dict(zip(names, session.run(names, given), strict=True))

    return run


def describe_onnx(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return name, dtype and shape of the inputs and outputs of an ONNX file."""
    onnx = import_extra("onnx", "dreamgym export")
    graph = onnx.load(path, load_external_data=False).graph

    def listed(values: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "dtype": str(
                    np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
                ),
                "shape": [int(size.dim_value) for size in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]

    return {"inputs": listed(graph.input), "outputs": listed(graph.output)}
