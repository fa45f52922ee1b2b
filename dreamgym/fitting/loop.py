"""What stops a fit, in words that say what to do."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import threads
from dreamgym._files import nearest
from dreamgym._interrupts import uninterrupted
from dreamgym.data import AnyDataset, Dataset, opened
from dreamgym.errors import FitError
from dreamgym.fitting import checkpoint
from dreamgym.fitting.batches import HELD_OUT, TRAINING, Batches, BatchLosses, Piece, Share
from dreamgym.fitting.build import FitResult, build_world, first_model, load_initial_weights
from dreamgym.fitting.checkpoint import Parts, Progress
from dreamgym.fitting.config import FitConfig, default_config
from dreamgym.fitting.distributed import is_first, launched
from dreamgym.fitting.optimizer import RunningMean, clip_gradients, learning_rate, optimizer_for
from dreamgym.metrics import TrainingMonitor
from dreamgym.models import FAMILIES
from dreamgym.models.spec import to_json
from dreamgym.world.world import World

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def finite(terms: Mapping[str, Tensor], update: int, checkpoint: Path | None) -> dict[str, float]:
    """The terms of a loss as numbers.

    Args:
        terms: scalars by name.
        update: updates done.
        checkpoint: where one is kept, if there is one.

    Raises:
        FitError: one of them is not finite.
    """
    figures = {name: float(term.detach()) for name, term in terms.items()}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise FitError(
                f"{name} is {value} at update {update}{_kept(checkpoint)}. "
                "Lower the learning rate or look at the data with `dreamgym check`"
            )
    return figures


@contextmanager
def naming_memory(config: FitConfig, update: int, checkpoint: Path | None) -> Iterator[None]:
    """Turn every way of saying "out of memory" into one error that says which size to lower.

    Args:
        config: whose sizes are named.
        update: updates done.
        checkpoint: where one is kept, if there is one.

    Raises:
        FitError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error).lower()
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in said for words in OUT_OF_MEMORY):
            raise
        pieces = config.optimizer.accumulate
        raise FitError(
            f"out of memory at update {update} with batch_size={config.batch_size}, "
            f"segment_length={config.segment_length} and accumulate={pieces}"
            f"{_kept(checkpoint)}. Give accumulate={2 * pieces}, which leaves the batch what it "
            "is and takes it in smaller pieces; or lower batch_size, or else segment_length"
        ) from error


def _kept(checkpoint: Path | None) -> str:
    there = checkpoint is not None and checkpoint.exists()
    return f"; the last good checkpoint is {checkpoint}" if there else ""


Log = Callable[[str, float, int], None]

"""Takes a figure's name, its value, and the number of updates done."""


@contextmanager
def logger(folder: str | None) -> Iterator[Log]:
    """What writes figures to TensorBoard, or nowhere.

    Args:
        folder: of TensorBoard's events; None writes nothing.

    Raises:
        ImportError: the package tensorboard is not installed.
    """
    if folder is None:
        yield lambda name, value, update: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "logging to TensorBoard needs the package tensorboard: "
            "pip install 'dreamgym[tensorboard]', or leave tensorboard=None"
        ) from error
    with SummaryWriter(folder) as writer:
        yield lambda name, value, update: writer.add_scalar(name, value, update)


DatasetLike = str | Path | AnyDataset | Sequence[tuple[str | Path | Dataset, float]]


Figures = dict[str, Any]  # numbers by name; under "alarms" the names of those that were raised


ProgressCallback = Callable[[int, int, Figures], None]


REPORT_EVERY = 25


EVALUATION_BATCHES = 8


def fit(
    dataset: DatasetLike,
    out: str | Path | None = None,
    *,
    family: str = "mdn-rnn",
    seed: int = 0,
    config: FitConfig | None = None,
    progress: ProgressCallback | None = None,
) -> World:
    """Fit a world to a dataset.

    The episodes are split, normalisers are fitted on the training ones, and the weights with the
    lowest loss on the held-out ones are kept. With `out`, a checkpoint lies beside it while the
    fit runs: a fit that was killed goes on from there when it is called again the same way.

    Under `torchrun` the processes share every batch, and the losses are those of one process; the
    first process alone writes files and reports progress, and all get the world.

    Args:
        dataset: a dataset, or the path of one; or several with weights, `[(path, 3.0), ...]`, from
            which segments are then drawn by weight. How it is read (memory, observation keys, the
            user's word on a foreign format) is said by opening it: `fit(Dataset(path, ...))`.
        out: folder of the world to make; None keeps it in memory, without checkpoints.
        family: a name of the table of families.
        seed: of the split, the weights, the batches and the noise.
        config: settings; None for those of the family's authors (`dreamgym.recommended`).
        progress: called with updates done, updates in all, and the losses; after a look at held-out
            episodes also with "alarms", the names of those that were raised (`dreamgym.metrics`).

    Returns:
        The world, saved at `out` if that is given.

    Raises:
        ValueError: an unknown family or device, or a batch that the processes cannot share.
        FileExistsError: `out` exists and may not be overwritten.
        DatasetError: the data cannot be used (too few episodes, not a number, ...).
        CheckpointError: beside `out` lies the checkpoint of another fit.
        FitError: a loss is not finite, or memory ran out.
        DiskFullError: no room for a checkpoint or the world.
    """
    config = config or default_config(family)
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: {nearest(family, FAMILIES)}")
    target = Path(out) if out is not None else None
    if target is not None and target.exists() and not config.overwrite:
        raise FileExistsError(f"{target} exists already; give another path or overwrite=True")
    began = time.perf_counter()
    with threads(config.threads), opened(dataset) as data:
        job = _Fit(data, family, seed, config, target)
        job.run(progress or (lambda done, total, figures: None))
        world = job.world(time.perf_counter() - began)
    if target is not None and is_first():
        world.save(target, overwrite=config.overwrite)
        checkpoint.path_for(target).unlink(missing_ok=True)
    return world


class _Fit:
    """One fit: model, optimiser and data, and how far it has come."""

    def __init__(
        self, data: AnyDataset, family: str, seed: int, config: FitConfig, target: Path | None
    ) -> None:
        self.data, self.family, self.seed, self.config = data, family, seed, config
        self.checkpoint = checkpoint.path_for(target) if target is not None else None
        self.fabric = launched(config)
        self.device = self.fabric.device
        self.training, self.held_out = data.split(config.held_out, seed)
        self.model = first_model(config.model, family, seed, data, self.training)
        self.fabric.to_device(self.model)
        self.losses = BatchLosses(self.fabric, self.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        # In these precisions an optimiser needs nothing of Fabric's.
        self.optimizer = optimizer_for(self.parameters, config.optimizer)
        self.mean = (
            RunningMean(self.parameters, config.optimizer.ema) if config.optimizer.ema else None
        )
        self.batches = self._batches(self.training, TRAINING)
        self.held_out_batches = self._batches(self.held_out, HELD_OUT)
        self.watch = TrainingMonitor(dataset=data, episodes=self.held_out, seed=seed)
        self.progress = Progress()

    def _batches(self, episodes: NDArray, stream: int) -> Batches:
        config, fabric = self.config, self.fabric
        return Batches(
            self.data,
            episodes,
            sizes=(config.batch_size, config.segment_length, self.model.noise_dim),
            share=Share(fabric.global_rank, fabric.world_size, config.optimizer.accumulate),
            seed=(self.seed, stream),
        )

    def run(self, report: ProgressCallback) -> None:
        """Update until done, from the last checkpoint on; leave the best weights in the model."""
        self._resume()
        self.data.verify()  # what is held in memory was, and most of the rest
        batches = self.batches.following(self.progress.update)
        with (
            logger(self.config.tensorboard if is_first() else None) as log,
            closing(batches) as drawn,
        ):
            try:
                while not self._done():
                    with uninterrupted(), self._naming_memory():  # an update is done, or not begun
                        figures = self._update(next(drawn), log)
                    if figures and is_first():
                        report(self.progress.update, self.config.updates, figures)
            except KeyboardInterrupt:
                if all(bool(p.isfinite().all()) for p in self.parameters):
                    self._save()
                raise
        self.model.load_state_dict(self.progress.best)
        self.model.after_fit()
        self.model.eval().requires_grad_(False)

    def _done(self) -> bool:
        return self.progress.update >= self.config.updates or self._stopped_early()

    def _stopped_early(self) -> bool:
        """Whether the held-out loss has not fallen for as many looks as there is patience."""
        losses = [figures["held_out"] for figures in self.progress.history]
        if self.config.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.config.patience

    def _update(self, pieces: list[Piece], log: Log) -> Figures:
        """One update, and a look at the held-out episodes where one is due; figures to show."""
        config, progress = self.config, self.progress
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                config.optimizer, progress.update, config.updates, self.model.phase_starts
            )
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.losses.gradient(pieces)
        clip_gradients(self.parameters, config.optimizer)
        due = progress.update % REPORT_EVERY == 0
        figures: Figures = {**self._finite(terms)} if due else {}
        self.optimizer.step()
        self.model.after_update()
        progress.update += 1
        if self.mean is not None:
            self.mean.follow(progress.update)
        for name, value in figures.items():
            log(f"fit/{name}", value, progress.update)
        if progress.update % config.evaluate_every == 0 or progress.update == config.updates:
            figures = self._finite(terms)
            with self._averaged():
                figures |= self._evaluate(log)
                found = self.watch.inspect(self.model)
            for name, value in found.scalars().items():
                log(f"held_out/{name}", value, progress.update)
            if found.alarms:
                figures["alarms"] = found.alarm_names
            # Of held-out data; some are called as the terms of the loss are.
            watched = {f"held_out_{k}" if k in figures else k: v for k, v in found.figures.items()}
            progress.history.append({"update": progress.update, **figures, **watched})
            self._save()
        return figures

    @torch.no_grad()
    def _evaluate(self, log: Log) -> dict[str, float]:
        """The loss of held-out episodes; the best weights so far are kept."""
        self.model.eval()
        numbers = range(EVALUATION_BATCHES)
        terms = self.losses.mean(self.held_out_batches.draw(number) for number in numbers)
        figures = self._finite({"held_out": terms.pop("loss")})
        self.model.after_evaluation(terms)
        log("held_out/loss", figures["held_out"], self.progress.update)
        if figures["held_out"] < self.progress.best_loss:
            self.progress.best_loss = figures["held_out"]
            self.progress.best = {k: v.clone() for k, v in self.model.state_dict().items()}
        return figures

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The running means in the place of the weights, where they are taken."""
        if self.mean is None:
            yield
            return
        self.mean.swap()
        try:
            yield
        finally:
            self.mean.swap()

    def _finite(self, terms: dict[str, Tensor]) -> dict[str, float]:
        return finite(terms, self.progress.update, self.checkpoint)

    def _naming_memory(self) -> Any:
        return naming_memory(self.config, self.progress.update, self.checkpoint)

    def _parts(self) -> Parts:
        return Parts(self.model, self.optimizer, self.mean.means if self.mean else [])

    def _resume(self) -> None:
        """Go on from the checkpoint, if there is one; the first process's is that of all."""
        path, stored = self.checkpoint, None
        if path is not None and path.exists() and is_first():
            stored = checkpoint.read(path, self.fingerprint())
        stored = self.fabric.broadcast(stored)
        if stored is not None:
            self.progress = checkpoint.restore(stored, self._parts())

    def _save(self) -> None:
        if self.checkpoint is not None and self.progress.update and is_first():
            checkpoint.save(self.checkpoint, self.fingerprint(), self._parts(), self.progress)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be of this fit."""
        elsewhere = ("device", "threads", "overwrite", "tensorboard", "model", "optimizer")
        settings = {k: v for k, v in vars(self.config).items() if k not in elsewhere}
        optimizer = asdict(self.config.optimizer)
        said = {
            "dataset": self.data.checksum,
            "family": self.family,
            "seed": self.seed,
            **self.data.selection,
            **settings,
            "optimizer": optimizer.pop("name"),
            **optimizer,
            "model": to_json(self.model.config),
            **load_initial_weights(self.config.model),
        }
        as_read: dict[str, Any] = json.loads(json.dumps(said))
        return as_read

    def world(self, seconds: float) -> World:
        """The fitted world."""
        said = {
            "fit": self.fingerprint(),
            "updates": self.progress.update,
            "stopped_early": self.progress.update < self.config.updates,
            "history": self.progress.history,
            "best_held_out_loss": self.progress.best_loss,
            "seconds": round(seconds, 1),
            "device": str(self.device),
            "processes": self.fabric.world_size,
        }
        fitted = FitResult(
            model=self.model,
            data=self.data,
            training=self.training,
            held_out=self.held_out,
            config=self.config,
            seed=self.seed,
            said=said,
        )
        return build_world(fitted)
