"""What a JEPA's probe reads off embeddings, and what of an observation it does not."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import filter_states
from dreamgym.models.jepa.loss import Losses
from dreamgym.models.jepa.modules import ObservationCodec, Probe
from dreamgym.models.observations import get_part
from tests.models.jepa.test_model import (
    BATCH,
    IMAGE,
    LENGTH,
    SMALL,
    VECTOR,
    a_model,
    a_segment,
    noise_for,
)

BOTH = gym.spaces.Dict({"image": IMAGE, "numbers": gym.spaces.Box(-3.0, 3.0, (2,), np.float32)})


@pytest.mark.parametrize("space", [VECTOR, BOTH])
def test_the_vectors_just_seen_are_decoded_as_they_were(space):
    model, segment = a_model(replace(SMALL, probe="all"), space), a_segment(space)
    states = filter_states(model, segment, noise_for(model, segment))
    key = "" if space is VECTOR else "numbers"
    for t in range(segment.mask.shape[1] + 1):
        state = {name: leaf[:, t] for name, leaf in states.items()}
        seen = get_part(segment.observation, key)[:, t]
        decoded = get_part(model.decode(state), key)
        torch.testing.assert_close(decoded, seen.clamp(-3, 3), rtol=1e-5, atol=1e-5)


def test_what_is_unread_fades_by_its_persistence_and_is_added_to_what_is_read():
    model = a_model()
    model.probe.squared.copy_(torch.tensor([1.0, 2.0, 4.0, 0.0]))
    model.probe.lagged.copy_(torch.tensor([0.5, 2.5, -1.0, 0.0]))
    torch.testing.assert_close(model.probe.persistence, torch.tensor([0.5, 1.0, 0.0, 0.0]))
    segment = a_segment()
    states = filter_states(model, segment, noise_for(model, segment))
    state = {name: leaf[:, -1] for name, leaf in states.items()}
    noise = torch.rand(BATCH, model.noise_dim)
    after, _ = model.step(state, segment.action[:, -1], noise)
    torch.testing.assert_close(after["unread"], state["unread"] * model.probe.persistence)
    standard = model.probe.vectors(model.features(after)) + after["unread"]
    wanted = standard * model.senses.vectors[0].std + model.senses.vectors[0].mean
    torch.testing.assert_close(model.decode(after), wanted.clamp(-3, 3))


def test_persistence_is_the_regression_of_what_is_unread_on_what_was_and_padding_has_no_part():
    probe = Probe(ObservationCodec(VECTOR, SMALL), SMALL)
    generator = torch.Generator().manual_seed(0)
    share = torch.tensor([0.0, 0.3, 0.7, 0.95])
    for update in range(200):
        before = torch.randn(8, 16, 4, generator=generator)
        fresh = torch.randn(before.shape, generator=generator)
        after = share * before + (1 - share.square()).sqrt() * fresh
        mask = torch.rand(8, 16, generator=generator) < 0.7
        for spoilt in (before, after):
            spoilt[~mask] = 1e3
        probe.remember_unread(before, after, mask, torch.tensor(1 / (update + 1)))
    torch.testing.assert_close(probe.persistence, share, atol=0.02, rtol=0)


def test_a_fit_teaches_the_probe_what_the_next_step_leaves_unread():
    # Batch norm in training is of the batch; so the moments are of what was computed in it.
    model, segment = a_model().train(), a_segment()
    mask = torch.arange(LENGTH) < torch.tensor([2, 7, 4, 1, 5, 3]).unsqueeze(1)
    segment = segment._replace(mask=mask)
    losses = Losses(model, segment, noise_for(model, segment))
    losses.total()
    standard = model.senses.standard(segment.observation).detach()
    embedded, foretold = losses.embeddings.detach(), losses.transitions[1].new.detach()
    squares, products = torch.zeros(4), torch.zeros(4)
    for row, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            before = standard[row, t] - model.probe.vectors(embedded[row, t])
            after = standard[row, t + 1] - model.probe.vectors(foretold[row, t])
            squares += before.square()
            products += before * after
    torch.testing.assert_close(model.probe.squared, squares / mask.sum())
    torch.testing.assert_close(model.probe.lagged, products / mask.sum())
    model.eval().loss(segment, noise_for(model, segment))
    torch.testing.assert_close(model.probe.squared, squares / mask.sum())


@pytest.mark.parametrize(("space", "probe"), [(IMAGE, "all"), (IMAGE, "none"), (BOTH, "vectors")])
def test_where_no_vectors_are_decoded_nothing_is_carried(space, probe):
    model = a_model(replace(SMALL, probe=probe), space)
    assert "unread" not in model.initial(BATCH)
    assert not [name for name in model.state_dict() if "lagged" in name or "squared" in name]
