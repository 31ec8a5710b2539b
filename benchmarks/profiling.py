"""Where the time of a constrained step goes, by torch.profiler: the constraint's operators, forward and backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.settings import Settings
from benchmarks.trainers import StepCallback, Switch, build_trainer

STEP, MARK = "benchmark: step", "benchmark: constraint"
_BACKWARD = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class Profile:
    """One step; seconds of the CPU."""

    step: float
    forward: float
    """Of the constraint."""
    backward: float
    """Of the constraint, chunks recomputed included."""
    operators: list[tuple[str, float, int]]
    """Of the constraint: name, seconds in the operator itself, calls; the most expensive first."""


class _Profiler(StepCallback):
    """Profiles the last step."""

    profiler: Any = None

    def begin(self) -> None:
        """A step begins."""
        if self.switch.trainer.state.global_step == len(self.plan) - 1:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.__enter__()
            self._step = record_function(STEP)
            self._step.__enter__()

    def end(self, name: str) -> None:
        """A step has ended."""
        if self.profiler is not None:
            self._step.__exit__(None, None, None)
            self.profiler.__exit__(None, None, None)


def profile_step(settings: Settings, mode: str, folder: Path) -> Profile:
    """The third step of a run that is constrained in one way."""
    plan = [mode] * 3
    trainer = build_trainer(settings, len(plan), folder)
    switch = Switch(trainer, settings, folder / "tables")
    constraint = switch.constraint(mode)
    loss = constraint.loss

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(MARK):
            return loss(*args, **kwargs)

    constraint.loss = marked  # type: ignore[method-assign]
    profiler = _Profiler(switch, plan)
    trainer.add_callback(profiler)
    trainer.add_callback(_Fill(switch, mode))
    trainer.train()
    return read(profiler.profiler.events())


class _Fill(StepCallback):
    def __init__(self, switch: Switch, mode: str) -> None:
        super().__init__(switch, [])
        self._mode = mode

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fill the table."""
        self.switch.fill(self._mode, **kwargs, args=args, state=state, control=control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The other callback's."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The other callback's."""


def read(events: Iterable[Any]) -> Profile:
    """The constraint's part of a profile.

    A backward operator carries the sequence number of the forward operator that it differentiates; the constraint's are
    those whose forward operator lies below its mark.
    """
    events = list(events)
    (step,) = [event for event in events if event.name == STEP]
    marks = [event for event in events if event.name == MARK]
    forward = [event for mark in marks for event in _below(mark)]
    numbers = {event.sequence_nr for event in forward if event.sequence_nr >= 0}
    inside = {event.id for event in forward}  # some gradients are taken in the forward pass already
    nodes = [
        e for e in events if e.name.startswith(_BACKWARD) and e.sequence_nr in numbers and e.id not in inside
    ]
    backward = [event for node in nodes for event in [node, *_below(node)]]
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in forward + backward:
        name = event.name.removeprefix(_BACKWARD)
        seconds[name] += event.self_cpu_time_total / 1e6
        calls[name] += 1
    return Profile(
        step=step.cpu_time_total / 1e6,
        forward=sum(mark.cpu_time_total for mark in marks) / 1e6,
        backward=sum(node.cpu_time_total for node in nodes) / 1e6,
        operators=[(name, spent, calls[name]) for name, spent in seconds.most_common()],
    )


def _below(event: Any) -> Iterator[Any]:
    for child in event.cpu_children:
        yield child
        yield from _below(child)
