"""Packed products and the packed LSTM against plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dreamgym._device import packs_lstm, packs_weights
from dreamgym.models.nn.layers import LSTM
from dreamgym.models.nn.packed import (
    LSTM_ROWS,
    PackedLSTM,
    PackedWeight,
    Packing,
    packed_lstm,
    packed_product,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def small_lstm(rows: int, hidden: int = 64) -> tuple[LSTM, list[torch.Tensor]]:
    torch.manual_seed(0)
    lstm = LSTM(5, hidden).requires_grad_(False)
    return lstm, [torch.randn(rows, width) for width in (5, hidden, hidden)]


@pytest.mark.skipif(not packs_lstm(), reason="oneDNN takes no packed LSTM here")
@pytest.mark.parametrize("rows", [64, LSTM_ROWS + 37])
def test_a_packed_lstm_steps_as_the_lstm_also_in_parts_and_with_other_numbers_of_rows(rows):
    lstm, given = small_lstm(rows)
    step = packed_lstm(lstm, rows, torch.float32)
    assert isinstance(step, PackedLSTM)
    for new, expected in zip(step(*given), lstm.step(*given), strict=True):
        torch.testing.assert_close(new, expected, **CLOSE)
    few = [leaf[:3] for leaf in given]
    for new, expected in zip(step(*few), lstm.step(*few), strict=True):
        torch.testing.assert_close(new, expected, **CLOSE)


@pytest.mark.skipif(not packs_lstm(), reason="oneDNN takes no packed LSTM here")
def test_a_row_of_a_packed_lstm_does_not_depend_on_its_neighbours():
    lstm, given = small_lstm(64)
    step = PackedLSTM(lstm, 64)
    others = [torch.cat([leaf[:20], 3.0 - leaf[20:]]) for leaf in given]
    for one, other in zip(step(*given), step(*others), strict=True):
        assert torch.equal(one[:20], other[:20])
        assert not torch.equal(one[20:], other[20:])


@pytest.mark.skipif(not packs_lstm(), reason="oneDNN takes no packed LSTM here")
def test_a_packed_lstm_keeps_the_weights_that_it_was_made_from():
    lstm, given = small_lstm(64)
    expected, step = lstm.step(*given), PackedLSTM(lstm, 64)
    for parameter in lstm.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(step(*given), expected, **CLOSE)


@pytest.mark.skipif(not packs_weights(torch.float32), reason="no packed products here")
def test_a_packed_product_applies_gelu():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(96, 64), torch.randn(96), torch.randn(128, 64)
    product = packed_product(weight, bias, 128, torch.float32, gelu=True)
    assert isinstance(product, PackedWeight)
    torch.testing.assert_close(product(x), F.gelu(F.linear(x, weight, bias)), **CLOSE)


def test_a_chain_never_writes_into_its_input():
    torch.manual_seed(0)
    packing = Packing(64, torch.float32, torch.device("cpu"))
    x = torch.randn(64, 8)
    for layers in (
        [torch.nn.SiLU()],
        [torch.nn.Identity(), torch.nn.SiLU(), torch.nn.SiLU()],
        [torch.nn.LayerNorm(8), torch.nn.SiLU()],
    ):
        before = x.clone()
        with torch.no_grad():
            torch.testing.assert_close(packing.chain(layers)(x), torch.nn.Sequential(*layers)(x))
        assert torch.equal(x, before)
