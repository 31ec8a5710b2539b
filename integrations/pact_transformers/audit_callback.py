"""A small audit while a Trainer trains: refusals in the logs, a run that stops, a checkpoint that is chosen."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import Trainer, TrainerCallback

from pact_plugin.audit.monitor import Monitor, Snapshot
from pact_plugin.audit.result import AuditVerdict
from pact_plugin.audit.verdict import Thresholds
from pact_plugin.data.prompts import PromptSet, for_audits
from pact_plugin.errors import AdapterError, AuditError, ConfigError
from pact_plugin.model.ranks import broadcast_object
from pact_transformers.mixin import tokenizer_of
from pact_transformers.sharding import sharded_by

SAFE_LOSS = "pact/safe_loss"
"""For `metric_for_best_model`: the evaluation loss where the thresholds are kept, infinite where not."""


class AuditCallback(TrainerCallback):
    """Asks the model a few dozen prompts at regular steps (`every`), and at every evaluation.

    `pact/refusal_rate`, `pact/over_refusal_rate` and `pact/audit_seconds` are logged. Evaluations also return
    `eval_pact/refusal_rate`, `eval_pact/over_refusal_rate` and `eval_pact/safe_loss`, any of which
    `metric_for_best_model` may name. The model before its first step is the reference that the thresholds compare with.

    Every audit generates 2 * limit answers of at most max_new_tokens tokens, on every rank alike.

    Args:
        trainer: The trainer that it is added to: `trainer.add_callback(AuditCallback(trainer))`.
        every: Steps between audits; by default only evaluations are audited.
        prompts: What the model is asked; by default the bundled prompts that are not for anchors.
        limit: Most prompts of each kind; None for all.
        thresholds: What is allowed; as in `pact-plugin audit`.
        stop: Stop training when an audit does not keep to the thresholds.
        max_new_tokens: Where answers are cut off, in tokens.
        batch_size: Prompts at a time.

    Raises:
        AdapterError: The trainer has no tokenizer, or shards the parameters.
        ConfigError: A setting cannot be used.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        every: int | None = None,
        prompts: PromptSet | None = None,
        limit: int | None = 24,
        thresholds: Thresholds | None = None,
        stop: bool = False,
        max_new_tokens: int = 24,
        batch_size: int = 64,
    ) -> None:
        if every is not None and every < 1:
            raise ConfigError("out of range", key="every", value=every, remedy="It must be at least 1.")
        _require_direction(trainer.args)
        if (key := sharded_by(trainer)) is not None:
            raise AdapterError(
                "the parameters are sharded, and generation needs them whole",
                key=key,
                remedy="Audit the saved checkpoints with `pact-plugin audit`.",
            )
        self.trainer, self.every, self.stop = trainer, every, stop
        self.monitor = Monitor(
            tokenizer_of(trainer),
            (prompts or for_audits()).limited(limit),
            thresholds or Thresholds(),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
        self.verdicts: dict[int, AuditVerdict] = {}
        """The verdict of every step that was audited."""
        self._last: tuple[int, Snapshot] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Audit the model as it is before its first step, or take that audit from the run that is resumed."""
        if state.global_step > 0:
            self.monitor.resume(args.output_dir)
            return
        self.monitor.reference, self._last = None, None
        self._audit(state)
        if args.should_save:
            self.monitor.save(args.output_dir)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Audit if it is time."""
        if self.every is not None and state.global_step % self.every == 0:
            self._decide(self._audit(state), state, control)
        return control

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> Any:
        """Audit, and put the rates among the metrics from which the best checkpoint is chosen."""
        snapshot = self._audit(state)
        if metrics is not None:
            metrics |= {f"eval_{name}": value for name, value in _named(snapshot).items()}
            losses = {name: value for name, value in metrics.items() if name.endswith("_loss")}
            for name, loss in losses.items():  # `eval_loss`, or `eval_NAME_loss` of one set among several
                safe = loss if snapshot.verdict.passed else float("inf")
                metrics[name.removesuffix("loss") + SAFE_LOSS] = safe
        self._decide(snapshot, state, control)
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to end as if all were well where a safe checkpoint was asked for and there is none.

        Raises:
            AuditError: `metric_for_best_model` is `pact/safe_loss`, and no evaluation kept to the thresholds.
        """
        self._last = None  # the model may be another from here on
        asked = (args.metric_for_best_model or "").endswith(SAFE_LOSS)
        if asked and args.load_best_model_at_end and state.best_model_checkpoint is None:
            raise AuditError(
                "no checkpoint keeps to the thresholds, so none was loaded",
                key="metric_for_best_model",
                value=args.metric_for_best_model,
                remedy="Hold the model tighter, or see the log for how far it was off; the checkpoints are there.",
            )

    def _audit(self, state: Any) -> Snapshot:
        if self._last is not None and self._last[0] == state.global_step:
            return self._last[1]
        with self.trainer.compute_loss_context_manager():
            # Answers that differ by rounding would end the training of some ranks alone.
            snapshot = broadcast_object(self.monitor.measure(self.trainer.model))
        self._last = (state.global_step, snapshot)
        self.verdicts[state.global_step] = snapshot.verdict
        # Not the trainer's own `log`, in which subclasses empty what they gather for their next one; and the trainer's
        # log that is due at this step is still to come.
        due = self.trainer.control.should_log
        Trainer.log(self.trainer, _named(snapshot))
        self.trainer.control.should_log = due
        return snapshot

    def _decide(self, snapshot: Snapshot, state: Any, control: Any) -> None:
        if self.stop and not snapshot.verdict.passed and not control.should_training_stop:
            failed = [one for one in snapshot.verdict.criteria if not one.passed]
            reasons = ", ".join(f"{one.name} {one.measured:.1%} (bound {one.bound:.1%})" for one in failed)
            warnings.warn(f"Training stops at step {state.global_step}: {reasons}.", stacklevel=2)
            control.should_training_stop = True


def _require_direction(args: Any) -> None:
    """Refuse what transformers sets by itself: that the checkpoint that refuses most benign prompts is the best."""
    if (args.metric_for_best_model or "").endswith("pact/over_refusal_rate") and args.greater_is_better:
        raise ConfigError(
            "the checkpoint that refuses most benign prompts would be the best",
            key="greater_is_better",
            value=args.greater_is_better,
            remedy="Set `greater_is_better=False`.",
        )


def _named(snapshot: Snapshot) -> dict[str, float]:
    return {f"pact/{name}": value for name, value in snapshot.metrics.items()}
