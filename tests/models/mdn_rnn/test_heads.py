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


def test_a_reward_is_of_the_transition_alone_and_an_end_may_depend_on_what_was_before():
    heads, (h, new, change, encoded) = fresh_heads(), transitions()
    one, other = heads(h, new, change, encoded), heads(-h, new, change, encoded)
    assert torch.equal(one.reward, other.reward)
    assert torch.equal(one.end_bonus, other.end_bonus)
    assert not torch.allclose(one.termination_logit, other.termination_logit)
    assert not torch.allclose(one.reward, heads(h, new, change, -encoded).reward)


def test_fresh_heads_pay_no_more_at_an_end_than_before():
    judged = fresh_heads()(*transitions())
    assert torch.equal(judged.end_bonus, torch.zeros(N))
    assert torch.equal(judged.expected_reward(torch.ones(N)), judged.reward)


def test_what_an_end_pays_is_learnt_though_it_looks_as_every_moment_before_it():
    heads, parts = fresh_heads(), transitions()
    generator = torch.Generator().manual_seed(1)
    ends = torch.rand(N, generator=generator) < 0.3
    wanted = torch.where(ends, 10.0, 1.0)
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.01)
    for _ in range(300):
        judged = heads(*parts)
        loss = (judged.expected_reward(ends) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    judged = heads(*parts)
    torch.testing.assert_close(
        judged.expected_reward(torch.zeros(N)), torch.ones(N), atol=0.5, rtol=0
    )
    torch.testing.assert_close(judged.expected_reward(ends)[ends], wanted[ends], atol=0.5, rtol=0)
    half = judged.expected_reward(torch.full((N,), 0.5))
    torch.testing.assert_close(half, judged.reward + 0.5 * judged.end_bonus)


def test_linear_heads_read_the_memory_alone():
    torch.manual_seed(0)
    heads, (h, new, change, encoded) = LinearHeads(HIDDEN), transitions()
    judged = heads(h, new, change, encoded)
    for mine, other in zip(judged, heads(h, -new, -change, -encoded), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(judged.end_bonus, torch.zeros(N))


def test_side_by_side_they_are_the_same_function_in_the_rewards_units():
    heads, (h, new, change, encoded) = fresh_heads(), transitions()
    torch.nn.init.normal_(heads.reward[-1].weight)
    torch.nn.init.normal_(heads.reward[-1].bias)
    layers = joint_head_layers(heads, torch.tensor(3.0), torch.tensor(7.0))
    x = torch.cat([h, new, change, encoded], -1)
    for name in ("head0", "head1"):
        x = F.silu(F.linear(x, *layers[name]))
    reward, at_end, logit = F.linear(x, *layers["head2"]).unbind(-1)
    judged = heads(h, new, change, encoded)
    torch.testing.assert_close(reward, judged.reward * 7 + 3)
    torch.testing.assert_close(at_end, judged.end_bonus * 7)
    torch.testing.assert_close(logit, judged.termination_logit)
