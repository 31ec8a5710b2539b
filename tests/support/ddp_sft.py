"""One SFT run for test_trl.py, alone or as one of several ranks: ddp_sft.py OUTPUT BATCH_SIZE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from both import HELD
from leaving import leave
from sft import completions, sft_trainer, train_logs, weights

import pact_plugin as pact


def main(output: Path, batch_size: int) -> None:
    trainer = sft_trainer(
        output,
        data=completions(24),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=4,  # no row is repeated to fill the last batch of a rank
        save_strategy="steps",
    )
    pact.attach(trainer, HELD)
    trainer.train()
    evaluation = trainer.evaluate()
    if trainer.is_world_process_zero():
        norms = {name: float(weight.double().norm()) for name, weight in weights(trainer).items()}
        (output / "result.json").write_text(
            json.dumps(
                {
                    "logs": train_logs(trainer),
                    "norms": norms,
                    "eval": evaluation,
                    "ranks": trainer.args.world_size,
                }
            )
        )
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
