"""Layers against those of torch."""

from __future__ import annotations

import torch

from dreamgym.models.nn.layers import LSTM, lstm_cell


def test_the_lstm_is_torchs_lstm_stepped_and_unrolled():
    torch.manual_seed(0)
    ours, torchs = LSTM(7, 16), torch.nn.LSTM(7, 16, batch_first=True)
    with torch.no_grad():
        torchs.weight_ih_l0.copy_(ours.weight_ih)
        torchs.weight_hh_l0.copy_(ours.weight_hh)
        torchs.bias_ih_l0.copy_(ours.bias)
        torchs.bias_hh_l0.zero_()
    x = torch.randn(3, 5, 7)
    expected, (last_h, last_c) = torchs(x)
    torch.testing.assert_close(ours.unroll(x), expected)
    h = c = torch.zeros(3, 16)
    for t in range(5):
        h, c = ours.step(x[:, t], h, c)
        torch.testing.assert_close(h, expected[:, t])
    torch.testing.assert_close(c, last_c[0])
    torch.testing.assert_close(h, last_h[0])


@torch.no_grad()
def test_an_lstm_cell_in_place_gives_the_same_and_overwrites_the_gates_only():
    generator = torch.Generator().manual_seed(0)
    gates, c = torch.randn(3, 32, generator=generator), torch.randn(3, 8, generator=generator)
    expected, before = lstm_cell(gates, c), c.clone()
    given = gates.clone()
    for new, old in zip(lstm_cell(given, c, inplace=True), expected, strict=True):
        assert torch.equal(new, old)
    assert torch.equal(c, before)
    assert not torch.equal(given, gates)
