"""Speed of fitting.

An update of DreamerV3's world model against a loop that is written step by step (`plain_rssm.py`),
in turns; and the updates a second of every published preset that fits the machine, eager and
compiled, with the fraction of the machine's bfloat16 peak where it is a known GPU.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import torch._dynamo.exc
import torch._inductor.exc
from support.plain_rssm import PlainRSSM, dense
from support.reporting import Row, below, parser, report
from support.side_by_side import side_by_side
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dreamgym import FitConfig, default_config
from dreamgym.data import SegmentBatch
from dreamgym.errors import PretrainedError
from dreamgym.fitting.batches import BatchLosses, MicroBatch
from dreamgym.fitting.distributed import launch
from dreamgym.fitting.optimizer import clip_gradients, optimizer_for
from dreamgym.models import FAMILIES, RSSMConfig

BAR = 0.8
COMPARED = "dreamer-v3-1m"
VECTOR, PIXELS = (24,), (64, 64, 3)
ACTIONS = 6
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 products a second, as their makers say, twice a multiply-add."""
COMPILERS = torch._inductor.exc.InductorError, torch._dynamo.exc.TorchDynamoException
"""What PyTorch's compiler raises where it cannot compile something."""
SMALL = 8
"""A preset is tried with so many times fewer segments first, to see whether it fits."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the measurements.

    Attributes:
        seconds: largest duration of one update; slower ones are left out.
        turn: seconds of one turn.
        turns: number of turns of each contender.
        compiled: whether to measure compiled models too.
    """

    seconds: float
    turn: float
    turns: int
    compiled: bool


class Updates:
    """Updates of a fit, without the data: the package's own parts on one random batch.

    Args:
        family: family of the model.
        config: settings of the fit.
        shape: shape of one observation.
    """

    def __init__(self, family: str, config: FitConfig, shape: tuple[int, ...]) -> None:
        self.config, runtime = config, launch(config)
        torch.manual_seed(0)
        actions = gym.spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)
        made = config.model or FAMILIES[family].config_type()
        self.model = FAMILIES[family](space(shape), actions, made).train()
        self.model.to(runtime.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = optimizer_for(self.parameters, config.optimizer)
        self.losses = BatchLosses(runtime, self.model)
        sizes = (config.batch_size, config.segment_length)
        self.batch = segments(shape, *sizes)
        rng = np.random.default_rng(1)
        noise = rng.random((sizes[0], sizes[1] + 1, self.model.noise_dim), dtype=np.float32)
        self.pieces = [MicroBatch(self.batch, noise, 0)]

    def __call__(self) -> None:
        """Do one update."""
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.backward(self.pieces)
        clip_gradients(self.parameters, self.config.optimizer)
        self.optimizer.step()
        self.model.after_update()

    def compile(self) -> None:
        """Mark the parts of the model for compilation, which the next update does.

        The whole of a loss that is unrolled over 64 steps takes the compiler many minutes.
        """
        for part in called_parts(self.model):
            part.compile(dynamic=False)


def called_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Return the outermost modules with several layers that are called themselves."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from called_parts(child)
        elif any(child.children()):
            yield child


def space(shape: tuple[int, ...]) -> gym.spaces.Box:
    if len(shape) == 3:
        return gym.spaces.Box(0, 255, shape, np.uint8)
    return gym.spaces.Box(-np.inf, np.inf, shape, np.float32)


def segments(shape: tuple[int, ...], batch: int, length: int) -> SegmentBatch:
    rng = np.random.default_rng(0)
    size = (batch, length + 1, *shape)
    images = len(shape) == 3
    seen = rng.integers(0, 256, size, np.uint8) if images else rng.random(size, np.float32)
    return SegmentBatch(
        observation=seen,
        action=rng.uniform(-1, 1, (batch, length, ACTIONS)).astype(np.float32),
        reward=rng.random((batch, length), np.float32),
        terminated=rng.random((batch, length)) < 0.05,
        mask=np.ones((batch, length), dtype=bool),
    )


class Images(nn.Module):
    """A decoder with a sigmoid at its end."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor) -> Tensor:
        """(B, features) to (B, channels, height, width)."""
        return self.decoder(features).sigmoid() - 0.5


def plain_updates(ours: Updates, config: FitConfig, shape: tuple[int, ...]) -> Callable[[], None]:
    """The same updates in plain PyTorch; the convolutions are the same modules."""
    sizes: RSSMConfig = config.model
    if len(shape) == 3:
        senses = ours.model.senses
        encoder = copy.deepcopy(senses.encode_images[0])
        decoder: nn.Module = Images(copy.deepcopy(senses.decode_images[0]))
        embedded = encoder.dim
    else:
        features = sizes.deter + sizes.stoch * sizes.classes
        encoder = dense(shape[0], sizes.layers, sizes.units)
        decoder, embedded = dense(features, sizes.layers, sizes.units, shape[0]), sizes.units
    model = PlainRSSM(encoder, decoder, embedded, ACTIONS, sizes)
    count, expected = (sum(p.numel() for p in m.parameters()) for m in (model, ours.model))
    if count != expected:
        raise ValueError(f"the plain model has {count} parameters, ours {expected}")
    parameters = list(model.parameters())
    optimizer = optimizer_for(parameters, config.optimizer)
    batch = ours.batch
    given = (batch.observation, batch.action, batch.reward, batch.terminated.astype(np.float32))
    arguments = [torch.from_numpy(each) for each in given]

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(*arguments).backward()
        clip_gradients(parameters, config.optimizer)
        optimizer.step()

    return update


def against_the_plain_loop(limits: Limits) -> list[Row]:
    rows = []
    for name, shape in {"vectors": VECTOR, "64x64 pixels": PIXELS}.items():
        config = default_config("rssm", COMPARED, device="cpu")
        ours = Updates("rssm", config, shape)
        calls = {"ours": ours, "plain": plain_updates(ours, config, shape)}
        taken = side_by_side(calls, turn=limits.turn, turns=limits.turns)
        what = f"RSSM {COMPARED}, 16x64, {name}: an update"
        rows += [
            below(
                f"{what}, of the plain loop's time", taken["ours"] / taken["plain"], "ratio", BAR
            ),
            Row(name=what, value=1e3 * taken["ours"], unit="ms"),
        ]
    return rows


def of_presets(names: list[tuple[str, str | None]], limits: Limits) -> list[Row]:
    rows = []
    for family, preset in names:
        config = default_config(family, preset)
        shape = (224, 224, 3) if preset == "lewm" else PIXELS
        what = f"{family} {preset or 'default'}, {config.batch_size}x{config.segment_length}"
        try:
            fitting = fits(family, config, shape, limits)
        except PretrainedError as error:
            print(f"{what}: left out, {error}")
            continue
        if not fitting:
            print(f"{what}: left out, an update would take too long or too much memory")
            continue
        updates = Updates(family, config, shape)
        rows += timed(f"{what}, eager", updates, limits)
        if limits.compiled:
            updates.compile()
            try:
                rows += timed(f"{what}, compiled", updates, limits)
            except COMPILERS as error:
                reason = str(error).splitlines()[0]
                print(f"{what}, compiled: left out, PyTorch's compiler cannot do it: {reason}")
    return rows


def fits(family: str, config: FitConfig, shape: tuple[int, ...], limits: Limits) -> bool:
    """Return whether an update is fast enough and needs at most half of the free memory."""
    small = replace(config, batch_size=max(1, config.batch_size // SMALL))
    before = peak_memory()
    updates = Updates(family, small, shape)
    started = time.perf_counter()
    updates()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) * SMALL
    return seconds < limits.seconds and (peak_memory() - before) * SMALL < free_memory() / 2


def peak_memory() -> int:
    """Return the peak memory of this process on the compute device, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def timed(what: str, updates: Updates, limits: Limits) -> list[Row]:
    seconds = side_by_side({"": updates}, turn=limits.turn, turns=limits.turns)[""]
    rows = [Row(name=f"{what}: updates", value=1.0 / seconds, unit="1/s")]
    peak = _peak()
    if peak:
        with FlopCounterMode(display=False) as counter:
            updates()
        share = counter.get_total_flops() / seconds / peak
        rows.append(Row(name=f"{what}: of the bfloat16 peak", value=share, unit="share"))
    return rows


def _peak() -> float | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def arguments() -> argparse.Namespace:
    parsed = parser(__doc__.splitlines()[0])
    parsed.add_argument("--threads", type=int, default=2, help="inside an operation")
    parsed.add_argument("--presets", nargs="*", metavar="FAMILY:PRESET", help="only these")
    parsed.add_argument("--no-compile", action="store_true", help="eager only")
    return parsed.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    quick = given.quick
    limits = Limits(
        seconds=8.0 if quick else 10.0,
        turn=0.7 if quick else 5.0,
        turns=3 if quick else 7,
        compiled=not (quick or given.no_compile),
    )
    every = [(family, preset) for family, known in FAMILIES.items() for preset in known.presets]
    if given.presets is not None:
        every = [tuple(each.split(":")) for each in given.presets]  # type: ignore[misc]
    elif quick:
        every = [("rssm", COMPARED), ("jepa", "pldm")]
    rows = against_the_plain_loop(limits)
    # No two things are compared: fewer turns will do.
    report([*rows, *of_presets(every, replace(limits, turns=3))], given)


if __name__ == "__main__":
    main()
