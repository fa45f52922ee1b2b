"""JEPA: window state, objectives, target encoder, probe and correction."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import Decodes, Segment, filter_states
from dreamgym.models.jepa.config import LEWM, PRESETS, JEPAConfig, JEPAObjective
from dreamgym.models.jepa.loss import longest_context
from dreamgym.models.jepa.model import JEPA
from dreamgym.models.nn.distributions import normal
from tests.small_worlds import ACTION_SPACES, STATISTICS

SMALL = JEPAConfig(embedding=8, width=16, blocks=1, heads=2, head_width=4, mlp=16)
NO_PROBE = replace(SMALL, probe="none")
VECTOR = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
IMAGE = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
BATCH, LENGTH = 6, 7


def a_model(config: JEPAConfig = SMALL, space: gym.Space = VECTOR) -> JEPA:
    torch.manual_seed(0)
    model = JEPA(space, ACTION_SPACES["box"], config)
    model.set_statistics(STATISTICS if space is VECTOR else STATISTICS._replace(observation={}))
    return model.eval()


def with_objective(**weights) -> JEPAConfig:
    return replace(SMALL, objective=JEPAObjective(**weights))


def observations(space: gym.Space, *lead: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    if isinstance(space, gym.spaces.Dict):
        return {key: observations(box, *lead, seed=seed) for key, box in space.items()}
    if space.dtype == np.uint8:
        return torch.from_numpy(rng.integers(0, 256, (*lead, *space.shape), dtype=np.uint8))
    return torch.from_numpy(rng.normal(size=(*lead, *space.shape)).astype(np.float32))


def a_segment(space: gym.Space = VECTOR, batch: int = BATCH, length: int = LENGTH) -> Segment:
    generator = torch.Generator().manual_seed(0)
    return Segment(
        observation=observations(space, batch, length + 1),
        action=torch.rand(batch, length, 2, generator=generator),
        reward=torch.randn(batch, length, generator=generator),
        terminated=torch.zeros(batch, length, dtype=torch.bool),
        mask=torch.ones(batch, length, dtype=torch.bool),
    )


def noise_for(model: JEPA, segment: Segment) -> torch.Tensor:
    batch, length = segment.mask.shape
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, length + 1, model.noise_dim, generator=generator)


def test_lewm_has_the_published_size():
    model = JEPA(
        gym.spaces.Box(0, 255, (224, 224, 3), np.uint8), gym.spaces.Box(-1, 1, (10,)), LEWM
    )
    parts = ("senses.images.0.network", "projector", "embed_action", "predictor")
    parts += ("project_prediction",)
    tensors = {k: v for k, v in model.state_dict().items() if k.startswith(parts)}
    weights = [p for k, p in model.named_parameters() if k.startswith(parts)]
    assert len(tensors) == 303
    assert sum(p.numel() for p in weights) == 18_034_478
    dynamics = ("embed_action", "predictor", "project_prediction")
    weights = [p for k, p in model.named_parameters() if k.startswith(dynamics)]
    assert sum(p.numel() for p in weights) / 1e6 == pytest.approx(11.7, abs=0.05)
    assert not isinstance(model, Decodes)


def test_an_untrained_adaln_zero_predictor_ignores_actions_and_the_default_does_not():
    segment = a_segment()
    for gate, same in ((0.0, True), (0.1, False)):
        model = a_model(replace(SMALL, gate=gate))
        model.residual.zero_()
        states = filter_states(model, segment, noise_for(model, segment))
        state = {key: leaf[:, -1] for key, leaf in states.items()}
        noise = torch.rand(BATCH, model.noise_dim)
        one, _ = model.step(state, torch.full((BATCH, 2), 0.9), noise)
        two, _ = model.step(state, torch.full((BATCH, 2), -0.9), noise)
        assert torch.equal(model.features(one), model.features(two)) == same


@pytest.mark.parametrize("context", [1, 3, 5])
def test_the_window_holds_the_last_frames_and_the_actions_between_them(context):
    model = a_model(replace(SMALL, context=context))
    segment = a_segment()
    states = filter_states(model, segment, noise_for(model, segment))
    embedded = model.embed(segment.observation)
    encoded = model.encode_action(segment.action)
    for t in range(LENGTH + 1):
        state = {key: leaf[:, t] for key, leaf in states.items()}
        count = min(t + 1, context)
        assert (state["seen"].sum(1) == count).all()
        torch.testing.assert_close(
            state["embeddings"][:, -count:], embedded[:, t + 1 - count : t + 1]
        )
        if count > 1:
            between = encoded[:, t + 1 - count : t]
            torch.testing.assert_close(state["actions"][:, 1 - count :], between)


def test_one_step_predictions_of_the_loss_are_those_of_step_also_for_short_contexts():
    model = a_model(NO_PROBE)
    model.residual.zero_()
    segment = a_segment()
    noise = noise_for(model, segment)
    states = filter_states(model, segment, noise)
    predicted = longest_context(model.predict_windows(model.encode_segment(segment)))
    for t in range(LENGTH):
        state = {key: leaf[:, t] for key, leaf in states.items()}
        after, _ = model.step(state, segment.action[:, t], noise[:, t])
        torch.testing.assert_close(model.features(after), predicted[:, t], rtol=1e-4, atol=1e-5)


def test_the_rollout_is_repeated_steps():
    model = a_model(replace(NO_PROBE, objective=JEPAObjective(sigreg=1.0, rollout=3)))
    segment = a_segment()
    noise = noise_for(model, segment)
    encoding = model.encode_segment(segment)
    newest = model.predict_windows(encoding)[:, :, -1]
    predictions = [newest, *(t.after for t in model.rollout(encoding, newest, noise))]
    assert len(predictions) == 3
    context = model.config.context
    states = filter_states(model, segment, noise)
    state = {key: leaf[:, context - 1] for key, leaf in states.items()}
    for k, predicted in enumerate(predictions):
        t = context - 1 + k
        # A step returns the noisy embedding; the loss adds the noise when it continues from it.
        state, _ = model.step(state, segment.action[:, t], noise[:, t + 1])
        noisy = predicted[:, 0] + model.residual * normal(noise[:, t + 1])
        torch.testing.assert_close(model.features(state), noisy, rtol=1e-3, atol=1e-4)


def test_with_vectors_only_a_step_is_corrected_towards_embeddings_of_observations():
    model, uncorrected = a_model(), a_model(NO_PROBE)
    uncorrected.load_state_dict(model.state_dict(), strict=False)
    state = model.observe(
        model.initial(BATCH),
        torch.zeros(BATCH, 2),
        observations(VECTOR, BATCH),
        torch.rand(BATCH, 8),
    )
    action, noise = torch.rand(BATCH, 2), torch.rand(BATCH, 8)
    (corrected, _), (predicted, _) = (m.step(state, action, noise) for m in (model, uncorrected))

    def reembedded(embeddings: torch.Tensor) -> torch.Tensor:
        return model.embed(model.senses.to_observation(model.probe.vectors(embeddings), []))

    free = model.features(predicted)
    once = reembedded(free)
    expected = free + 0.3 * (2 * once - reembedded(once) - free)
    torch.testing.assert_close(model.features(corrected), expected)
    assert not torch.allclose(model.features(corrected), free)


def test_the_content_of_an_unseen_slot_does_not_matter():
    model = a_model()
    first = observations(VECTOR, BATCH)
    start = model.initial(BATCH)
    altered = {key: leaf + (key != "seen") * 7.0 for key, leaf in start.items()}
    noise, action = torch.rand(BATCH, model.noise_dim), torch.rand(BATCH, 2)
    stepped = [
        model.step(model.observe(s, torch.zeros(BATCH, 2), first, noise), action, noise)[0]
        for s in (start, altered)
    ]
    assert torch.equal(model.features(stepped[0]), model.features(stepped[1]))


def test_the_content_of_padding_does_not_matter_in_training():
    model = a_model(
        with_objective(sigreg=1, std=1, cov=1, temporal=1, inverse=1, rollout=3)
    ).train()
    segment = a_segment()
    mask = segment.mask.clone()
    mask[0, 2:], mask[1, 5:] = False, False
    observation = segment.observation.clone()
    results = []
    for junk in (0.0, 50.0):
        observation[:, 1:][~mask] = junk
        action, reward = segment.action.clone(), segment.reward.clone()
        action[~mask], reward[~mask] = junk, junk
        model.zero_grad()
        padded = Segment(observation.clone(), action, reward, segment.terminated, mask)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        loss, _ = model.loss(padded, noise_for(model, segment))
        loss.backward()
        after = {key: value.clone() for key, value in model.state_dict().items()}
        results.append((loss.detach(), [p.grad.clone() for p in model.parameters()], after))
        model.load_state_dict(before)
    torch.testing.assert_close(results[0], results[1])


def test_batch_norm_couples_rows_in_training_only():
    model, segment = a_model(), a_segment()
    few = segment._replace(observation=segment.observation[:2])
    assert torch.allclose(model.embed(few.observation), model.embed(segment.observation)[:2])
    mean = model.projector.norm.running_mean.clone()
    model.loss(segment, noise_for(model, segment))
    assert torch.equal(model.projector.norm.running_mean, mean)
    model.train().loss(segment, noise_for(model, segment))
    assert not torch.equal(model.projector.norm.running_mean, mean)


def test_heads_and_probe_give_no_gradient_to_the_embeddings():
    model = a_model(with_objective(temporal=0.0)).train()
    segment = a_segment()
    terms = model.loss_terms(segment, model.encode_segment(segment), noise_for(model, segment))
    sum(terms[name] for name in ("reward", "termination", "probe")).backward()
    embedding = ("senses.encode", "projector", "predictor", "project_prediction")
    assert all(p.grad is None for name, p in model.named_parameters() if name.startswith(embedding))
    assert all(p.grad.any() for name, p in model.named_parameters() if name.startswith("heads"))


def test_targets_have_a_gradient_unless_there_is_a_target_encoder():
    segment = a_segment()
    for momentum in (0.0, 0.99):
        model = a_model(with_objective(momentum=momentum)).train()
        assert model.encode_segment(segment).targets.requires_grad == (momentum == 0.0)


def test_the_target_encoder_follows_slowly_and_then_stops():
    model = a_model(with_objective(momentum=0.9, momentum_updates=10))
    assert not any(p.requires_grad for p in model.target.parameters())
    online, slow = model.projector.inwards.weight, model.target[1].inwards.weight
    assert torch.equal(online, slow)
    with torch.no_grad():
        online += 1.0
    expected = slow.clone()
    for update in range(1, 13):
        model.after_update()
        weight = (1 - 0.9) * (1 - min(1.0, update / 10))
        expected += weight * (online - expected)
        torch.testing.assert_close(slow, expected)
    assert not torch.equal(slow, online)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"lewm"}))
def test_every_small_preset_can_be_fitted(name):
    model = a_model(PRESETS[name]).train()
    segment = a_segment()
    loss, terms = model.loss(segment, noise_for(model, segment))
    loss.backward()
    assert loss.isfinite()
    assert {"prediction", "reward", "termination", "embedding_std", "effective_rank"} <= set(terms)


@pytest.mark.parametrize("probe", ["vectors", "all", "none"])
def test_a_model_decodes_if_its_probe_covers_the_whole_observation(probe):
    spaces = {"vector": VECTOR, "image": IMAGE, "both": gym.spaces.Dict(v=VECTOR, i=IMAGE)}
    decoding = {"vectors": {"vector"}, "all": {"vector", "image", "both"}, "none": set()}
    for name, space in spaces.items():
        torch.manual_seed(0)
        model = JEPA(space, ACTION_SPACES["box"], replace(SMALL, probe=probe)).eval()
        assert isinstance(model, Decodes) == (name in decoding[probe])
        assert model.decodes == (name in decoding[probe])
        state = model.observe(
            model.initial(2), torch.zeros(2, 2), observations(space, 2), torch.rand(2, 8)
        )
        if not model.decodes:
            with pytest.raises(AttributeError, match="pass probe='all'"):
                model.decode(state)
        else:
            decoded = model.decode(state)
            rows = [decoded] if name != "both" else list(decoded.values())
            boxes = [space] if name != "both" else list(space.values())
            for row, box in zip(rows, boxes, strict=True):
                assert box.contains(row[0].detach().numpy())
        segment = a_segment(space, batch=3, length=4)
        loss, _ = model.train().loss(segment, noise_for(model, segment))
        assert loss.isfinite()


def test_vision_transformers_take_images_that_their_patches_divide():
    config = replace(SMALL, image_encoder="vit_tiny_patch14", image_size=28)
    model = a_model(config, IMAGE)
    assert model.embed(observations(IMAGE, 2)).shape == (2, 8)
    with pytest.raises(ValueError, match="work at 28 pixels"):
        JEPA(IMAGE, ACTION_SPACES["box"], replace(config, image_size=30))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_encoder": "resnet"}, "vit_tiny_patch14"),
        ({"context": 0}, "at least 1"),
        ({"probe": "some"}, "all, none, vectors"),
        ({"dropout": 1.0}, "below 1"),
        ({"gate": -1.0}, "at least 0"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        JEPAConfig(**settings)


def test_an_invalid_momentum_is_refused():
    with pytest.raises(ValueError, match="momentum=2"):
        JEPAObjective(momentum=2)


def test_a_resumed_fit_restarts_the_momentum_of_the_target_encoder():
    config = JEPAConfig(objective=JEPAObjective(momentum=0.9, momentum_updates=3))
    space = gym.spaces.Box(-1, 1, (4,), np.float32)
    model = JEPA(space, gym.spaces.Discrete(2), config)
    for _ in range(3):
        model.after_update()

    def target_moves() -> bool:
        before = {key: leaf.clone() for key, leaf in model.target.state_dict().items()}
        with torch.no_grad():
            for weight in model.senses.parameters():
                weight.add_(1.0)
        model.after_update()
        after = model.target.state_dict()
        return any(not torch.equal(leaf, after[key]) for key, leaf in before.items())

    assert not target_moves()
    model.before_fit()
    assert target_moves()


def test_narrow_image_networks_encode_and_decode_with_fewer_weights():
    sizes = []
    for width in (1.0, 0.25):
        model = a_model(replace(SMALL, image_width=width, probe="all"), IMAGE)
        segment = a_segment(IMAGE, batch=2, length=2)
        state = {key: leaf[:, 0] for key, leaf in _filtered(model, segment).items()}
        assert model.decode(state).shape == (2, *IMAGE.shape)
        sizes.append([_count(part) for part in (model.senses.images, model.probe.images)])
    (encoder, decoder), (narrow_encoder, narrow_decoder) = sizes
    assert narrow_encoder < encoder / 10
    assert narrow_decoder < decoder / 10
    with pytest.raises(ValueError, match="image_width=0: expected a number above 0"):
        JEPAConfig(image_width=0)


def _filtered(model, segment):
    with torch.no_grad():
        return filter_states(model, segment, noise_for(model, segment))


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())
