"""A step as one graph that a device records once and replays: nothing but its launch is left.

On a GPU a small model's step is a hundred kernels, and launching them one by one takes ten times as
long as running them. So the whole step (noise, dynamics, heads, termination, horizon, starts,
statistics) is captured once, on memory that stays where it is, and replayed. What is handed out is
copied out of that memory, so that it is the caller's own.

Which device has graphs is said in `GRAPHS`; all else here is the same for every one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dreamgym.dream.state import Dreams, Outcome
from dreamgym.models.observations import Observation, map_observation

Step = Callable[[Dreams, Tensor], tuple[Dreams, Outcome]]

"""`Engine.step`: a pure function of tensors."""


WARM_UPS = 3

"""Runs before a capture, in which libraries take their workspaces and compilers compile."""


class Graph(Protocol):
    """Work that a device does again on the same memory."""

    def record(self, work: Callable[[], None]) -> None:
        """Record what `work` asks of the device; it may be run several times before."""

    def replay(self) -> None:
        """Do it again."""


class CudaGraph:
    """A CUDA graph.

    Args:
        device: which GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], None]) -> None:
        """See `Graph.record`; warm-ups run beside the current stream, as captures must."""
        with torch.cuda.device(self.device):
            current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
            beside.wait_stream(current)
            with torch.cuda.stream(beside):
                for _ in range(WARM_UPS):
                    work()
            current.wait_stream(beside)
            # Other threads may use the device meanwhile: only this one's mistakes count.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                work()

    def replay(self) -> None:
        """See `Graph.replay`."""
        self.graph.replay()


GRAPHS: dict[str, Callable[[torch.device], Graph]] = {"cuda": CudaGraph}

"""The kinds of device that have graphs."""


class CapturedStep:
    """A step as one graph.

    Dreams that it gives are the graph's own memory: the next call overwrites them, and takes them
    from there without a copy. `owned` gives what may be kept.

    Args:
        step: what to capture; it must ask the device nothing.
        graph: of the device that the dreams are on.
        dreams: where rows stand, as in every later call; copied.
        action: (N, ...) as in every later call.

    Raises:
        RuntimeError: the device cannot capture this step.
    """

    def __init__(self, step: Step, graph: Graph, dreams: Dreams, action: Tensor) -> None:
        self._graph = graph
        self._dreams, self._action = dreams.detach().clone(), action.detach().clone()
        self._leaves = self._dreams.tensors()
        self._step = step
        self._seen: tuple[Observation, Observation]
        self._numbers, self._flags, self._length = (torch.empty(0),) * 3
        graph.record(self._work)

    def __call__(self, dreams: Dreams, action: Tensor) -> tuple[Dreams, Outcome]:
        """See `Engine.step`; without gradients.

        Raises:
            ValueError: another shape than was captured.
        """
        if action.shape != self._action.shape:
            raise ValueError(
                f"actions have shape {tuple(action.shape)}; give {tuple(self._action.shape)}"
            )
        if dreams is not self._dreams:
            given = dreams.tensors()
            for name, own in self._leaves.items():
                own.copy_(given[name])
        self._action.copy_(action)
        self._graph.replay()
        return self._dreams, self._outcome()

    def owned(self, dreams: Dreams) -> Dreams:
        """The same dreams in memory that no later step overwrites."""
        return dreams.clone() if dreams is self._dreams else dreams

    def _work(self) -> None:
        """What is recorded: a step, what it gives side by side, and the new dreams in place."""
        dreams, outcome = self._step(self._dreams, self._action)
        self._seen = (outcome.observation, outcome.final_observation)
        # One copy for each kind, instead of one for each leaf, is all that a replay then needs.
        self._numbers = torch.stack([outcome.reward, outcome.episode_return, outcome.uncertainty])
        self._flags = torch.stack([outcome.terminated, outcome.truncated, outcome.done])
        self._length = outcome.episode_length
        # By name: a model may give the leaves of its states in another order than a file does.
        apart = self._apart(dreams)
        for name, own in self._leaves.items():
            own.copy_(apart[name])

    def _apart(self, dreams: Dreams) -> dict[str, Tensor]:
        """The new dreams' leaves: copied where they lie in memory that another leaf overwrites."""
        places = {leaf.untyped_storage().data_ptr() for leaf in self._leaves.values()}
        return {
            name: new.clone()
            if new is not self._leaves[name] and new.untyped_storage().data_ptr() in places
            else new
            for name, new in dreams.tensors().items()
        }

    def _outcome(self) -> Outcome:
        """What the last replay gave, in fresh memory."""
        observation, final = self._seen
        seen = map_observation(torch.clone, observation)
        reward, episode_return, uncertainty = _fresh_rows(self._numbers)
        terminated, truncated, done = _fresh_rows(self._flags)
        return Outcome(
            observation=seen,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            done=done,
            final_observation=seen if final is observation else map_observation(torch.clone, final),
            episode_return=episode_return,
            episode_length=self._length.clone(),
            uncertainty=uncertainty,
        )


def _fresh_rows(stacked: Tensor) -> list[Tensor]:
    """The rows of a copy; through `data`, for autograd would not let a caller write into views."""
    return [row.data for row in stacked.clone().unbind()]
