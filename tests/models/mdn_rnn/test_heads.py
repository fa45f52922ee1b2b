"""The reward and termination heads of the MDN-RNN."""

import torch
import torch.nn.functional as F

from dreamgym.models.mdn_rnn.fast import joint_head_layers
from dreamgym.models.mdn_rnn.model import LinearHeads, TransitionHeads

N, HIDDEN, SIZE, ACTIONS = 64, 5, 3, 2


def transitions(seed=0):
    generator = torch.Generator().manual_seed(seed)
    widths = (HIDDEN, SIZE, SIZE, ACTIONS)
    return [torch.randn(N, width, generator=generator) for width in widths]


def fresh_heads():
    torch.manual_seed(0)
    return TransitionHeads(HIDDEN, SIZE, ACTIONS, 16)


def test_the_reward_ignores_h_and_the_termination_does_not():
    heads, (h, new, change, encoded) = fresh_heads(), transitions()
    one, other = heads(h, new, change, encoded), heads(-h, new, change, encoded)
    assert torch.equal(one.reward, other.reward)
    assert torch.equal(one.end_bonus, other.end_bonus)
    assert not torch.allclose(one.termination_logit, other.termination_logit)
    assert not torch.allclose(one.reward, heads(h, new, change, -encoded).reward)


def test_the_end_bonus_of_fresh_heads_is_zero():
    output = fresh_heads()(*transitions())
    assert torch.equal(output.end_bonus, torch.zeros(N))
    assert torch.equal(output.expected_reward(torch.ones(N)), output.reward)


def test_the_end_bonus_is_learnt_although_ends_look_like_other_transitions():
    heads, parts = fresh_heads(), transitions()
    generator = torch.Generator().manual_seed(1)
    ends = torch.rand(N, generator=generator) < 0.3
    expected = torch.where(ends, 10.0, 1.0)
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.01)
    for _ in range(300):
        output = heads(*parts)
        loss = (output.expected_reward(ends) - expected).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = heads(*parts)
    torch.testing.assert_close(
        output.expected_reward(torch.zeros(N)), torch.ones(N), atol=0.5, rtol=0
    )
    torch.testing.assert_close(output.expected_reward(ends)[ends], expected[ends], atol=0.5, rtol=0)
    half = output.expected_reward(torch.full((N,), 0.5))
    torch.testing.assert_close(half, output.reward + 0.5 * output.end_bonus)


def test_linear_heads_read_h_only():
    torch.manual_seed(0)
    heads, (h, new, change, encoded) = LinearHeads(HIDDEN), transitions()
    output = heads(h, new, change, encoded)
    for mine, other in zip(output, heads(h, -new, -change, -encoded), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(output.end_bonus, torch.zeros(N))


def test_the_joint_layers_are_all_heads_in_the_units_of_the_reward():
    heads, (h, new, change, encoded) = fresh_heads(), transitions()
    torch.nn.init.normal_(heads.end_bonus[-1].weight)
    torch.nn.init.normal_(heads.end_bonus[-1].bias)
    layers = joint_head_layers(heads, torch.tensor(3.0), torch.tensor(7.0))
    x = torch.cat([h, new, change, encoded], -1)
    first = F.silu(F.linear(x, *layers["head0"])).chunk(3, -1)
    second = [F.linear(each, *layers[f"head1_{k}"]) for k, each in enumerate(first)]
    x = F.silu(torch.cat(second, -1))
    reward, end_bonus, logit = F.linear(x, *layers["head2"]).unbind(-1)
    output = heads(h, new, change, encoded)
    torch.testing.assert_close(reward, output.reward * 7 + 3)
    torch.testing.assert_close(end_bonus, output.end_bonus * 7)
    torch.testing.assert_close(logit, output.termination_logit)
