"""Operations and bytes of a step, counted without a GPU and without the weights: tensors that have a shape and no data.

The decoder's passes and the constraint's terms are run by their own code on torch's `meta` device under torch's FLOP
counter; the task's head is a formula (`head_flops`). tests/benchmarks/test_counts.py compares both with the counter
over real steps of the real trainers.
"""

from __future__ import annotations

from benchmarks.costs import AnchorRows, Count
from benchmarks.kinds import Kind
from benchmarks.meta import build, decoder_pass, head_flops
from benchmarks.settings import PLAIN, Mode, Settings
from benchmarks.shapes import lora, response_length
from pact_plugin.model.head import language_head


def count(
    settings: Settings, *, every_position: bool = False, anchors: AnchorRows | None = None, eased: int = 0
) -> dict[str, Count]:
    """Every kind of step of some settings.

    Args:
        settings: Shape, training, loss, ways to constrain, `dtype`.
        every_position: Whether TRL's head reads every position, as it does without Triton; else those that are trained.
        anchors: Of a step.
        eased: Responses of a step that are eased.
    """
    shape = settings.sizes
    model = build(settings)
    full = settings.train == "full"
    trained = model if full else lora(model, settings.rank)
    head = language_head(trained)
    forward, backward = decoder_pass(head, shape.batch, shape.length)
    answer = response_length(shape.length, settings.response_share)
    scored = shape.batch * (shape.length - 1 if every_position else min(answer, shape.length - 1))
    if settings.loss == "full":
        task = head_flops(shape.batch * shape.length, shape.hidden_size, shape.vocab_size, trained=full)
    else:
        task = head_flops(scored, shape.hidden_size, shape.vocab_size, trained=full, recompute=True)
    plain = forward + backward + task
    kinds = {PLAIN: Count(plain)}
    for name in settings.modes:
        trained.zero_grad()
        kinds[name] = Kind(Mode.parse(name), settings, trained).count(plain, anchors or AnchorRows(), eased)
    return kinds
