"""Methods that change nothing but a number: the learning rate, or the size of what was learnt.

- *plain*: cross-entropy, min_θ mean_i -log p_θ(y_i).
- *lower-lr*: the same at rate × strength. What a careful user would try first.
- *scaled-adapter*: plain's adapter ΔW becomes strength · ΔW after training and before merging, W + strength · ΔW.
  Linear interpolation between aligned and tuned weights, as in WiSE-FT (Wortsman et al., CVPR 2022) and task
  arithmetic (Ilharco et al., ICLR 2023). Exact, for LoRA: ΔW = (alpha / r) B A.
"""

from __future__ import annotations

from benchmarks.field.methods.base import Method

PLAIN = {
    "plain": Method("plain fine-tuning"),
    "lower-lr": Method("lower learning rate", strength=0.3, scales_rate=True),
    "scaled-adapter": Method("adapter scaled down", strength=0.5, scales_adapter=True),
}
