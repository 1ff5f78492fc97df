"""What the host holds single operations against is what torch's own functions give in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from enginecmp import layer_shapes, layer_tensor, vectors
from enginecmp.measure import exact

CONSTANTS = {"rope_base": 500_000.0, "epsilon": 1e-2, "seed": 7}
ROWS: dict[str, Any] = {"rows": 3, "length": 24, "head_dim": 8, "start": 1000, **CONSTANTS}
LAYER: dict[str, Any] = {
    **{"rows": 5, "past": 4, "width": 20, "heads": 6, "kv_heads": 2, "head_dim": 8, "feed_forward": 28},
    **CONSTANTS,
}


def turned(x: Tensor, start: int) -> Tensor:
    """Turn (rows, heads, head_dim) by complex numbers, the form of the paper's equation 12."""
    half = x.shape[2] // 2
    angles = torch.outer(
        torch.arange(start, start + len(x)).double(), CONSTANTS["rope_base"] ** -(torch.arange(half).double() / half)
    )
    found = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((found.real, found.imag), dim=-1)


@pytest.mark.parametrize("function", ["add", "silu_mul", "rms_norm", "softmax", "rope"])
def test_functions_of_elements(function: str) -> None:
    a, b = (torch.from_numpy(array).double() for array in vectors(3, 24, 7))
    wanted = {
        "add": lambda: torch.add(a, b),
        "silu_mul": lambda: F.silu(a) * b,
        "rms_norm": lambda: F.rms_norm(a, (24,), b[0], eps=1e-2),
        "softmax": lambda: torch.softmax(a, dim=-1),
        "rope": lambda: turned(a.view(3, 3, 8), 1000).reshape(3, 24),
    }[function]()
    np.testing.assert_allclose(exact.elementwise({**ROWS, "function": function}), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("past", [0, 4])
def test_a_layer(past: int) -> None:
    parameters = {**LAYER, "past": past}
    at = {name: torch.from_numpy(layer_tensor(name, parameters)).double() for name in layer_shapes(parameters)}
    normed = F.rms_norm(at["x"], (20,), at["attn_norm"], eps=1e-2)
    q, k, v = (F.linear(normed, at[name]).view(5, -1, 8) for name in ("attn_q", "attn_k", "attn_v"))
    k, v = torch.cat((at["keys"], turned(k, past))), torch.cat((at["values"], v))
    seen = torch.ones(5, past + 5, dtype=torch.bool).tril(past)
    q, k, v = (part.transpose(0, 1)[None] for part in (turned(q, past), k, v))  # (1, heads, T, head_dim)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    x = at["x"] + F.linear(mixed[0].transpose(0, 1).reshape(5, -1), at["attn_output"])
    normed = F.rms_norm(x, (20,), at["ffn_norm"], eps=1e-2)
    wanted = x + F.linear(F.silu(F.linear(normed, at["ffn_gate"])) * F.linear(normed, at["ffn_up"]), at["ffn_down"])
    np.testing.assert_allclose(exact.layer(parameters), wanted, rtol=1e-12, atol=1e-13)


def test_operands_have_the_size_that_they_are_said_to_have() -> None:
    parameters = {**LAYER, "width": 200, "feed_forward": 300, "rows": 50, "past": 40}
    for name in layer_shapes(parameters):
        array = layer_tensor(name, parameters)
        inputs = array.shape[1] if array.ndim == 2 and name != "x" else 1
        if array.ndim == 1:
            assert (array.min() >= 0.5, array.max() < 1.5) == (True, True)
        else:
            assert inputs * array.var() == pytest.approx(1, abs=0.06)
            assert abs(array.mean()) < 0.06
