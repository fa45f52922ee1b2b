"""What is done while a policy trains: checkpoints, TensorBoard logs and evaluations.

Every learner calls `TrainingRun.report` after an update; the rest is here, once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dreamgym._device import private_generators
from dreamgym.errors import TrainingError
from dreamgym.train.policy import TrainedPolicy

Progress = Callable[[int, int, dict[str, float]], None]

Evaluate = Callable[[TrainedPolicy], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Monitoring:
    """What to do while a policy trains.

    Attributes:
        checkpoint_every: dream steps between checkpoints, if the policy is saved at all; None for
            one at Ctrl-C only. A checkpoint is the policy so far, in `<out>.interrupted.<suffix>`.
        tensorboard: folder of TensorBoard logs, or None.
        evaluate_every: dream steps between evaluations; None for none.
        evaluate: function of the policy so far that returns figures, which are logged and put on
            the policy's card. A real environment that it steps costs real steps.
    """

    checkpoint_every: int | None = 100_000
    tensorboard: str | None = None
    evaluate_every: int | None = None
    evaluate: Evaluate | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name} is {value}; expected a whole number of at least 1")
        if (self.evaluate is None) != (self.evaluate_every is None):
            raise TrainingError(
                f"evaluate is {self.evaluate} and evaluate_every {self.evaluate_every}; give both, "
                "or neither"
            )


class Monitor:
    """Does what `Monitoring` asks for while one training runs.

    Args:
        monitoring: what to do.
        checkpoint: file of the checkpoints, or None.
        progress: called with (steps done, steps, figures); None for nothing.
        log: called with (name, figure, steps done).
        done: dream steps that were taken before this run.

    Attributes:
        evaluations: figures of each evaluation, with the dream steps under "steps".
    """

    def __init__(
        self,
        monitoring: Monitoring | None = None,
        *,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        log: Callable[[str, float, int], None] | None = None,
        done: int = 0,
    ) -> None:
        self._monitoring, self._checkpoint = monitoring or Monitoring(), checkpoint
        self._progress, self._log = progress, log
        self.evaluations: list[dict[str, float]] = []
        self._saved = self._evaluated = done

    def report(
        self,
        steps: int,
        total: int,
        figures: dict[str, float],
        policy: Callable[[], TrainedPolicy],
    ) -> None:
        """Report progress, log figures, and save and evaluate the policy where that is due.

        Args:
            steps: dream steps so far.
            total: dream steps of the whole training.
            figures: means of the dreams that ended since the last report; may be empty.
            policy: called for the policy so far, where it is needed.
        """
        every, evaluate = self._monitoring.evaluate_every, self._monitoring.evaluate
        figures = dict(figures)
        if evaluate is not None and every is not None and steps >= self._evaluated + every:
            self._evaluated = steps
            with private_generators():
                measured = {name: float(value) for name, value in evaluate(policy()).items()}
            self.evaluations.append({"steps": float(steps), **measured})
            figures |= measured
        if self._log is not None:
            for name, value in figures.items():
                self._log(name.replace(" ", "_"), value, steps)
        every = self._monitoring.checkpoint_every
        if self._checkpoint is not None and every is not None and steps >= self._saved + every:
            self._saved = steps
            policy().save(self._checkpoint)
        if self._progress is not None:
            self._progress(min(steps, total), total, figures)
