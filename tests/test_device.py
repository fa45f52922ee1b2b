"""What a machine lacks is worked around with one warning, on machines that lack nothing, too."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import gymnasium as gym
import pytest
import torch
import torch.nn.functional as F

import dreamgym
from dreamgym import _device
from dreamgym._device import computes_bfloat16, packs_lstm, packs_weights, product_dtype
from dreamgym.fitting import FitConfig
from dreamgym.models.nn.layers import LSTM
from dreamgym.models.nn.packed import PackedLSTM, packed_linear, packed_lstm, packed_product
from tests.small_worlds import small_world

CPU = torch.device("cpu")
ROWS, INSIDE, OUTSIDE = 128, 96, 160

WITHOUT_AVX512 = "mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw"
WITHOUT_LSTM = "could not create a primitive descriptor for the LSTM forward propagation primitive"


def refuse(dtype: torch.dtype | None, words: str, original):
    def call(tensor, *arguments, **keywords):
        if dtype is None or tensor.dtype == dtype or torch.is_autocast_enabled("cpu"):
            raise RuntimeError(words)
        return original(tensor, *arguments, **keywords)

    return call


@pytest.fixture
def forget() -> Iterator[None]:
    """Probes are made again, before and after."""
    probes = (computes_bfloat16, packs_weights, packs_lstm, _device._warn_float32)
    for probe in probes:
        probe.cache_clear()
    yield
    for probe in probes:
        probe.cache_clear()


@pytest.fixture(params=["no AVX-512", "no LSTM in bfloat16", "no oneDNN", "other operators"])
def machine(request, monkeypatch, forget) -> str:
    """A processor, or a build of torch, that lacks something."""
    if request.param == "no AVX-512":
        reorder = torch.ops.mkldnn._reorder_linear_weight
        wrong = refuse(torch.bfloat16, WITHOUT_AVX512, reorder)
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", wrong)
        lstm = refuse(torch.bfloat16, WITHOUT_LSTM, torch.lstm)
        monkeypatch.setattr(torch, "lstm", lstm)
    elif request.param == "no LSTM in bfloat16":
        monkeypatch.setattr(torch, "lstm", refuse(torch.bfloat16, WITHOUT_LSTM, torch.lstm))
    elif request.param == "no oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", refuse(None, "no such", None))
        monkeypatch.setattr(torch.ops.aten, "mkldnn_rnn_layer", refuse(None, "no such", None))
    return request.param


def test_bfloat16_becomes_float32_with_one_warning(machine):
    with pytest.warns(RuntimeWarning, match=r"no matrix products in bfloat16.*float32") as caught:
        answers = [product_dtype("cpu", torch.bfloat16) for _ in range(2)]
    assert answers == [torch.float32] * 2
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert product_dtype("cpu", torch.float32) == torch.float32


def test_products_are_those_of_plain_torch(machine):
    weight, bias, x = torch.randn(OUTSIDE, INSIDE), torch.randn(OUTSIDE), torch.randn(ROWS, INSIDE)
    expected = F.linear(x, weight, bias)
    for rows in (1, 8, ROWS):
        product = packed_linear(weight, bias, rows, torch.float32)
        torch.testing.assert_close(product(x[:rows]), expected[:rows], rtol=1e-4, atol=1e-4)
    lower = packed_product(weight, bias, ROWS, torch.float32)
    torch.testing.assert_close(lower(x), expected, rtol=1e-4, atol=1e-4)
    bent = packed_product(weight, bias, ROWS, torch.float32, gelu=True)
    torch.testing.assert_close(bent(x), F.gelu(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_step_of_an_lstm_is_the_lstms_own(machine):
    lstm = LSTM(5, 64)
    x, h, c = torch.randn(ROWS, 5), torch.randn(ROWS, 64), torch.randn(ROWS, 64)
    step = packed_lstm(lstm, ROWS, torch.float32)
    assert not isinstance(step, PackedLSTM) or machine in ("no AVX-512", "no LSTM in bfloat16")
    for own, expected in zip(step(x, h, c), lstm.step(x, h, c), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mdn-rnn", "rssm", "jepa"])
def test_dreams_in_bfloat16_step_as_in_float32(machine, family):
    world = small_world(family)
    results = []
    for dtype in ("bfloat16", "float32"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            envs = gym.make_vec(
                "dreamgym/World-v0", world=world, num_envs=ROWS, dtype=dtype, device="cpu"
            )
        envs.reset(seed=0)
        results.append(envs.step(torch.zeros(ROWS, dtype=torch.int64)))
    for lower, full in zip(results[0][:4], results[1][:4], strict=True):
        torch.testing.assert_close(lower, full)


@pytest.mark.parametrize("machine", ["no AVX-512"], indirect=True)
def test_a_fit_in_mixed_precision_is_one_in_float32(machine, tmp_path):
    data = dreamgym.record("CartPole-v1", steps=300, out=tmp_path / "d.h5", seed=0)
    losses = []
    for precision in ("bf16-mixed", "32-true"):
        config = FitConfig(updates=2, segment_length=4, batch_size=8, precision=precision)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            losses.append(dreamgym.fit(data, config=config).provenance["history"])
    assert losses[0] == losses[1]


def test_an_ensemble_refuses_bfloat16_only_where_there_is_any(machine):
    model = small_world("ensemble").model
    with pytest.warns(RuntimeWarning, match="float32"):
        prepared = model.prepare(ROWS, CPU, torch.bfloat16)
    assert prepared.feature_dim == model.feature_dim


@pytest.mark.parametrize("machine", ["no AVX-512", "no LSTM in bfloat16"], indirect=True)
def test_an_lstm_unrolls_under_autocast(machine):
    lstm, x = LSTM(3, 4), torch.randn(2, 5, 3)
    expected = lstm.unroll(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(lstm.unroll(x), expected)
