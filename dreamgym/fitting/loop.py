"""The training loop: fit a world to a dataset."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import float32_by_default, threads
from dreamgym._files import local_path, require_new
from dreamgym._interrupts import uninterrupted
from dreamgym.data import AnyDataset, Dataset, open_dataset
from dreamgym.errors import CheckpointError, DatasetError, FitError, WorldError
from dreamgym.fitting import checkpoint
from dreamgym.fitting.batches import HELD_OUT, TRAINING, Batches, BatchLosses, MicroBatch, Shard
from dreamgym.fitting.build import (
    FitResult,
    build_model,
    build_world,
    divisible,
    fit_normalisers,
)
from dreamgym.fitting.checkpoint import Checkpoint, FitProgress, TrainedParts
from dreamgym.fitting.config import FitConfig, default_config
from dreamgym.fitting.distributed import is_first, launch
from dreamgym.fitting.optimizer import WeightAverage, clip_gradients, learning_rate, optimizer_for
from dreamgym.metrics import Inspection, TrainingMonitor
from dreamgym.models import WorldModel
from dreamgym.models.checksum import weights_sha256
from dreamgym.models.observations import observation_bytes
from dreamgym.models.spec import family_class, to_json
from dreamgym.world.world import World

DatasetLike = str | Path | AnyDataset | Sequence[tuple[str | Path | Dataset, float]]

Figures = dict[str, Any]
"""Numbers by name; under "alarms", the names of the alarms raised."""

ProgressCallback = Callable[[int, int, Figures], None]
"""Takes the updates done, the total number of updates, and the figures to show."""

Log = Callable[[str, float, int], None]
"""Takes a figure's name, its value, and the number of updates done."""

REPORT_EVERY = 25
"""Updates between two reports of the training loss."""

EVALUATION_BATCHES = 8
"""Batches of held-out segments in one evaluation."""

EVALUATION_BYTES = 1 << 30
"""Size of the observations in one evaluation, above which it has fewer batches, at least one."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Words in the messages of RuntimeErrors with which torch reports a lack of memory."""


@float32_by_default()
def fit(  # noqa: PLR0913 - two are of a fit that goes on
    dataset: DatasetLike,
    out: str | Path | None = None,
    *,
    family: str = "mdn-rnn",
    seed: int = 0,
    config: FitConfig | None = None,
    progress: ProgressCallback | None = None,
    keep_checkpoint: bool = False,
    continue_from: str | Path | None = None,
) -> World:
    """Fit a world to a dataset.

    The episodes are split into training and held-out ones. Normalisers are fitted on the training
    episodes, and the weights with the lowest held-out loss are kept. With `out`, a checkpoint is
    kept beside it while the fit runs, and a killed fit resumes from it when it is called again with
    the same arguments.

    Under `torchrun` the processes share every batch, and the losses are those of a single process.
    Only the first process writes files and reports progress; all return the world.

    Args:
        dataset: dataset or its path; or several with weights, `[(path, 3.0), ...]`, from which
            segments are drawn by weight. To choose how it is read (memory, observation keys, the
            meaning of a foreign format), open it yourself: `fit(Dataset(path, ...))`.
        out: folder of the world to make; None keeps it in memory, without checkpoints.
        family: name of a family in the registry.
        seed: seed of the split, the weights, the batches and the noise.
        config: settings; None for the family's own defaults (`dreamgym.default_config`).
        progress: called with the updates done, the total number of updates, and the losses; after
            an evaluation also with "alarms", the names of the alarms raised (`dreamgym.metrics`);
            and once at the end with "measuring", before the world is measured, which may take
            minutes.
        keep_checkpoint: whether the checkpoint of the last update stays beside the world, as
            `<out>.fitting.safetensors`, for a fit that goes on from it.
        continue_from: checkpoint of a finished fit with the same model and optimizer, whose
            weights, normalisers, optimizer state and count of updates this fit goes on from, for
            example with more data; `config.updates` counts those of before. The schedule should
            be constant.

    Returns:
        The world, saved at `out` if that is given.

    Raises:
        ValueError: unknown family or device, a batch that the processes cannot share, or both a
            fitted model and `continue_from`.
        FileExistsError: `out` exists and `config.overwrite` is false.
        DatasetError: the data cannot be used (too few episodes, not a number, ...).
        CheckpointError: the checkpoint beside `out` belongs to another fit, or `continue_from` to
            one with another model or optimizer, or with as many updates.
        FitError: a loss is not finite, or memory ran out.
        DiskFullError: no space left for a checkpoint or the world.
    """
    family_class(family)  # an unknown family is refused before anything is read
    config = config or default_config(family)
    if continue_from is not None and isinstance(config.model, WorldModel):
        raise ValueError(
            "continue_from and a fitted model are both given; give the checkpoint alone"
        )
    earlier = None if continue_from is None else local_path(continue_from, CheckpointError)
    target = local_path(out, WorldError) if out is not None else None
    if target is not None:
        require_new(target, overwrite=config.overwrite)
    started = time.perf_counter()
    with threads(config.threads), open_dataset(dataset) as data:
        if data.problems:
            raise DatasetError(data.problems[0], path=data.path)
        running = _Fit(divisible(data), family, seed, config, target)
        running.earlier = earlier
        running.run(progress or (lambda done, total, figures: None))
        world = running.world(time.perf_counter() - started)
    if target is not None and is_first():
        world.save(target, overwrite=config.overwrite)
        if not keep_checkpoint:
            checkpoint.path_for(target).unlink(missing_ok=True)
    return world


class _Fit:
    """One fit: model, optimizer, data and progress."""

    def __init__(
        self, data: AnyDataset, family: str, seed: int, config: FitConfig, target: Path | None
    ) -> None:
        self.data, self.family, self.seed, self.config = data, family, seed, config
        self.checkpoint = checkpoint.path_for(target) if target is not None else None
        self.earlier: Path | None = None  # checkpoint of the fit that this one goes on from
        self.runtime = launch(config)
        self.training, self.held_out = data.split(config.held_out, seed)
        self.model = build_model(config, family, seed, data, self.training)
        check_phases(self.model, config)
        self.model.to(self.runtime.device)
        self.losses = BatchLosses(self.runtime, self.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = optimizer_for(self.parameters, config.optimizer)
        self.average = (
            WeightAverage(self.parameters, config.optimizer.ema) if config.optimizer.ema else None
        )
        self.batches = self._batches(self.training, TRAINING)
        self.held_out_batches = self._batches(self.held_out, HELD_OUT)
        self.monitor = TrainingMonitor(dataset=data, episodes=self.held_out, seed=seed)
        self.progress = FitProgress()
        self.row_bytes = observation_bytes(data.observation_space)

    def _batches(self, episodes: NDArray, stream: int) -> Batches:
        config, runtime = self.config, self.runtime
        return Batches(
            self.data,
            episodes,
            sizes=(config.batch_size, config.segment_length, self.model.noise_dim),
            shard=Shard(runtime.rank, runtime.world_size, config.optimizer.accumulate),
            seed=(self.seed, stream),
        )

    def run(self, report: ProgressCallback) -> None:
        """Train from the last checkpoint to the end; the model then has the best weights."""
        self._resume()
        self.data.verify()
        batches = self.batches.iterate(self.progress.update)
        figures: Figures = {}
        with (
            tensorboard_log(self.config.tensorboard if is_first() else None) as log,
            closing(batches),
        ):
            try:
                while not self._is_done():
                    # Ctrl-C takes effect between updates, so that a checkpoint is consistent.
                    with uninterrupted(), self._explain_out_of_memory():
                        figures = self._update(next(batches), log)
                    if figures and is_first():
                        report(self.progress.update, self.config.updates, figures)
            except KeyboardInterrupt:
                if all(bool(p.isfinite().all()) for p in self.parameters):
                    self._save()
                raise
        if is_first():
            figures = {**figures, "measuring": "on held-out episodes"}
            report(self.progress.update, self.config.updates, figures)
        self.model.load_state_dict(self.progress.best)
        self.model.after_fit()
        self.model.eval().requires_grad_(False)

    def _is_done(self) -> bool:
        return self.progress.update >= self.config.updates or self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        """Return whether the held-out loss has not improved for `patience` evaluations."""
        losses = [figures["held_out"] for figures in self.progress.history]
        if self.config.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.config.patience

    def _update(self, micro_batches: list[MicroBatch], log: Log) -> Figures:
        """Do one update, and an evaluation if one is due; return the figures to report."""
        config, progress = self.config, self.progress
        self.model.train()
        rate = learning_rate(
            config.optimizer, progress.update, config.updates, self.model.phase_starts
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.losses.backward(micro_batches)
        clip_gradients(self.parameters, config.optimizer)
        # Reading the losses is a host sync, so it is not done in every update.
        is_report_due = progress.update % REPORT_EVERY == 0
        figures: Figures = {**self._to_finite(terms)} if is_report_due else {}
        self.optimizer.step()
        self.model.after_update()
        progress.update += 1
        if self.average is not None:
            self.average.update(progress.update)
        for name, value in figures.items():
            log(f"fit/{name}", value, progress.update)
        if progress.update % config.evaluate_every == 0 or progress.update == config.updates:
            figures = self._evaluate(terms, log)
            self._save()
        return figures

    def _evaluate(self, terms: dict[str, Tensor], log: Log) -> Figures:
        """Evaluate on held-out episodes, append to the history, and return the figures to report.

        Args:
            terms: loss of the last update and its terms.
            log: takes the held-out figures.
        """
        figures: Figures = {**self._to_finite(terms)}
        with self._averaged_weights():
            figures["held_out"] = self._held_out_loss()
            inspection = Inspection({}, [])
            if not self.model.foreign_step:
                inspection = self.monitor.inspect(self.model)
        for name, value in {"loss": figures["held_out"], **inspection.scalars()}.items():
            log(f"held_out/{name}", value, self.progress.update)
        if inspection.alarms:
            figures["alarms"] = inspection.alarm_names
        # Some figures of the inspection have the name of a term of the training loss.
        inspected = {
            f"held_out_{name}" if name in figures else name: value
            for name, value in inspection.figures.items()
        }
        self.progress.history.append({"update": self.progress.update, **figures, **inspected})
        return figures

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Return the loss on held-out episodes, and remember the best weights so far."""
        self.model.eval()
        batch_bytes = self.config.batch_size * (self.config.segment_length + 1) * self.row_bytes
        numbers = range(min(EVALUATION_BATCHES, max(1, EVALUATION_BYTES // batch_bytes)))
        terms = self.losses.mean(self.held_out_batches.draw(number) for number in numbers)
        loss = self._to_finite({"held_out": terms.pop("loss")})["held_out"]
        self.model.after_evaluation(terms)
        if loss < self.progress.best_loss or not self.model.selects_by_loss:
            self.progress.best_loss = loss
            self.progress.best = {k: v.clone() for k, v in self.model.state_dict().items()}
        return loss

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Replace the weights by their moving averages inside the block, if there are any."""
        if self.average is None:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def _to_finite(self, terms: dict[str, Tensor]) -> dict[str, float]:
        return to_finite(terms, self.progress.update, self.checkpoint)

    def _explain_out_of_memory(self) -> AbstractContextManager[None]:
        return explain_out_of_memory(self.config, self.progress.update, self.checkpoint)

    def _resume(self) -> None:
        """Restore the checkpoint if there is one; every process takes the first one's."""
        path, saved, earlier = self.checkpoint, None, self.earlier
        resumes = path is not None and path.exists()
        if is_first() and path is not None and resumes:
            saved = checkpoint.read(path, self.fingerprint())
        elif is_first() and earlier is not None:
            saved = checkpoint.read(earlier)
            self._check_continues(saved)
        saved = self.runtime.broadcast(saved)
        if saved is None:
            return
        self.progress = checkpoint.restore(saved, self._parts())
        if not resumes:
            # Losses on other data cannot be compared with those of this fit.
            self.progress = FitProgress(update=self.progress.update)
            if self.config.refit_normalisers:
                fit_normalisers(self.model, self.data, self.training)

    def _check_continues(self, earlier: Checkpoint) -> None:
        """Check that this fit can go on from a finished one.

        Raises:
            CheckpointError: that had another model or optimizer, or as many updates.
        """
        own, path = self.fingerprint(), self.earlier
        for name in ("family", "model", "optimizer"):
            theirs = earlier.info["fingerprint"][name]
            if own[name] != theirs:
                raise CheckpointError(
                    f"{path} is of a fit with {name} {theirs!r}, and this one has {own[name]!r}; "
                    "give the settings of the fit to continue"
                )
        if earlier.info["update"] >= self.config.updates:
            raise CheckpointError(
                f"{path} has {earlier.info['update']} updates, which count towards "
                f"updates={self.config.updates}; give more"
            )

    def _save(self) -> None:
        if self.checkpoint is not None and self.progress.update and is_first():
            checkpoint.save(self.checkpoint, self.fingerprint(), self._parts(), self.progress)

    def _parts(self) -> TrainedParts:
        return TrainedParts(self.model, self.optimizer, self.average.means if self.average else [])

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be the same for a fit to resume from a checkpoint, JSON-plain.

        The keys are part of the format of checkpoints and of world.json.
        """
        # These change nothing, or are entered below in another form.
        left_out = ("device", "threads", "overwrite", "tensorboard", "model", "optimizer")
        settings = {k: v for k, v in vars(self.config).items() if k not in left_out}
        if not self.config.refit_normalisers:  # checkpoints and worlds of before have no such key
            del settings["refit_normalisers"]
        optimizer = asdict(self.config.optimizer)
        fingerprint = {
            "dataset": self.data.checksum,
            "family": self.family,
            "seed": self.seed,
            **self.data.selection,
            **settings,
            "optimizer": optimizer.pop("name"),
            **optimizer,
            "model": to_json(self.model.config),
        }
        if isinstance(self.config.model, WorldModel):
            fingerprint["begun_from"] = weights_sha256(self.config.model).hex()
        if self.earlier is not None:
            with self.earlier.open("rb") as file:
                fingerprint["continued_from"] = hashlib.file_digest(file, "sha256").hexdigest()
        plain: dict[str, Any] = json.loads(json.dumps(fingerprint))
        return plain

    def world(self, seconds: float) -> World:
        """Build the fitted world; `seconds` is how long the fit took."""
        info = {
            "fit": self.fingerprint(),
            "updates": self.progress.update,
            "stopped_early": self.progress.update < self.config.updates,
            "history": self.progress.history,
            "best_held_out_loss": self.progress.best_loss,
            "seconds": round(seconds, 1),
            "device": str(self.runtime.device),
            "processes": self.runtime.world_size,
        }
        return build_world(
            FitResult(
                model=self.model,
                data=self.data,
                training=self.training,
                held_out=self.held_out,
                config=self.config,
                seed=self.seed,
                info=info,
            )
        )


def check_phases(model: WorldModel, config: FitConfig) -> None:
    """Check that every phase of a fit begins before it ends.

    Raises:
        FitError: one does not, so that a part of the model would never be fitted.
    """
    last = max(model.phase_starts, default=0)
    if last >= config.updates:
        raise FitError(
            f"updates={config.updates} end before the last phase of this fit begins, at {last}: a "
            "part of the model would never be fitted. Give more updates, or let that phase begin "
            "earlier by the model's config"
        )


def to_finite(
    terms: Mapping[str, Tensor], update: int, checkpoint: Path | None
) -> dict[str, float]:
    """Return the terms of a loss as numbers.

    Args:
        terms: scalars by name.
        update: number of updates done.
        checkpoint: path of the checkpoint, if checkpoints are saved.

    Raises:
        FitError: a term is not finite.
    """
    figures = {name: float(term.detach()) for name, term in terms.items()}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise FitError(
                f"{name} is {value} at update {update}{_checkpoint_note(checkpoint)}. "
                "Lower the learning rate, or check the data with `dreamgym check`"
            )
    return figures


@contextmanager
def explain_out_of_memory(
    config: FitConfig, update: int, checkpoint: Path | None
) -> Iterator[None]:
    """Turn any out-of-memory error into one that says which settings to lower.

    Args:
        config: settings of the fit.
        update: number of updates done.
        checkpoint: path of the checkpoint, if checkpoints are saved.

    Raises:
        FitError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = str(error).lower()
        has_known_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not has_known_type and not any(words in message for words in OUT_OF_MEMORY):
            raise
        steps = config.optimizer.accumulate
        raise FitError(
            f"out of memory at update {update} with batch_size={config.batch_size}, "
            f"segment_length={config.segment_length} and accumulate={steps}"
            f"{_checkpoint_note(checkpoint)}. Give accumulate={2 * steps}, which processes the "
            "same batch in smaller parts; or lower batch_size or segment_length"
        ) from error


def _checkpoint_note(checkpoint: Path | None) -> str:
    exists = checkpoint is not None and checkpoint.exists()
    return f"; the last good checkpoint is {checkpoint}" if exists else ""


@contextmanager
def tensorboard_log(folder: str | None) -> Iterator[Log]:
    """Yield a function that writes figures to TensorBoard.

    Args:
        folder: folder of TensorBoard's event files; None writes nothing.

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
    with SummaryWriter(os.path.expanduser(folder)) as writer:
        yield lambda name, value, update: writer.add_scalar(name, value, update)
