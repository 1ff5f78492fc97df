"""How much an operation is given to compute, known before a launch: shapes of a model's matrices, numbers of values."""

from __future__ import annotations

import math

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.records import Cell
from enginecmp.operands import layer_shapes
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.variants import Elementwise, Layer, Matmul, TransformerLayer
from enginecmp.types import ModelInfo

LEAST_NS = 1_000_000
"""Calls between two readings of the clock go on for at least this long."""


def operand_values(scenario: Scenario, cell: Cell, model: ModelInfo) -> int:
    """Return how many values both sides make before the first sample of a cell; 0 where there is nothing to make.

    Raises:
        UsageError: the weights file does not tell the shape.
    """
    settings = scenario.variants[cell.variant] if cell.variant else {}
    match scenario.operation:
        case "matmul":
            matmul = msgspec.convert(settings, Matmul)
            inner, columns = matrix_shape(matmul.layer, model.path)
            return inner * (matmul.rows + columns)
        case "elementwise":
            function = msgspec.convert(settings, Elementwise)
            return 2 * function.rows * function.length
        case "layer":
            shapes = layer_shapes(msgspec.to_builtins(msgspec.convert(settings, TransformerLayer)))
            return sum(math.prod(shape) for shape in shapes.values())
    return 0


def matrix_shape(layer: Layer, path: str) -> tuple[int, int]:
    """Return (inner, columns) of one of a model's weight matrices.

    Args:
        layer: which one; keys and values count as one matrix.
        path: the weights file.

    Raises:
        UsageError: the file does not tell.
    """
    from enginecmp.models.gguf_file import read_gguf
    from enginecmp.models.info import shape_of, vocabulary_of

    file = read_gguf(path)
    shape = shape_of(file)
    inner, columns = {
        "attn_q": (shape.hidden, shape.heads * shape.head_dim),
        "attn_kv": (shape.hidden, shape.kv_heads * (shape.head_dim + shape.value_dim)),
        "attn_output": (shape.heads * shape.value_dim, shape.hidden),
        "ffn_up": (shape.hidden, shape.feed_forward),
        "ffn_down": (shape.feed_forward, shape.hidden),
        "lm_head": (shape.hidden, vocabulary_of(file)),
    }[layer]
    if not inner or not columns:
        msg = f"{path}: expected the shape of {layer} in the file's metadata, it does not tell; leave that variant out"
        raise UsageError(msg)
    return inner, columns
