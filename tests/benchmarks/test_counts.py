"""What the benchmarks count is what happens in real steps: operations, and memory."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from loop import FEW_ANCHORS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import passes
from benchmarks.allocations import Allocations
from benchmarks.costs import AnchorRows
from benchmarks.counts import count
from benchmarks.meta import head_flops
from benchmarks.settings import MODES, PLAIN, Settings
from benchmarks.trainers import StepCallback, Switch, build_trainer
from pact_plugin.data.documents import full_context
from pact_plugin.model.head import LanguageHead

SMALL = {
    "prompts": FEW_ANCHORS["prompts"],
    "batch": 2,
    "length": 32,
    "cycles": 1,
    "warmup": 0,
    "fill_batches": 2,
}
pytestmark = pytest.mark.filterwarnings("ignore")


def in_place_flops(self_shape, a_shape, b_shape, **kwargs):
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


class Counting(StepCallback):
    """FLOPs of each step, forward and backward, and of filling each table, by torch's counter."""

    def __init__(self, switch, plan):
        super().__init__(switch, plan)
        self.flops, self.filling, self.anchors, self.eased = {}, {}, {}, {}

    def on_train_begin(self, args, state, control, **kwargs):
        for name in dict.fromkeys(self.plan):
            if name != PLAIN:
                with FlopCounterMode(display=False) as counter:
                    self.switch.fill(name, args=args, state=state, control=control, **kwargs)
                self.filling[name] = counter.get_total_flops()

    def begin(self):
        # The counter does not know the in-place form, which TRL's head uses.
        self.counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place_flops})
        self.counter.__enter__()

    def end(self, name):
        self.counter.__exit__(None, None, None)
        self.flops[name] = self.counter.get_total_flops()
        if name != PLAIN:
            constraint = self.switch.constraint(name)
            self.anchors[name] = anchors_of(constraint, self.switch.trainer.state.global_step)
            share = constraint.metrics("train", lambda sums: sums).get("pact/eased", 0.0)
            self.eased[name] = round(share * SMALL["batch"])


def anchors_of(constraint, step):
    """The anchors of a step, as they were read."""
    for term in constraint.terms:
        if term.name == "anchors":
            chosen = term.schedule.chosen(step, 0, 0, 1)
            documents = [term.documents[i] for i in chosen]
            rows = [full_context(document) for document in documents]
            length, held = max(len(row.tokens) for row in rows), sum(len(row.columns) for row in rows)
            likeliest = term.aligned.at(chosen).likeliest
            tokens = {*constraint.tokens.positive.ids, *likeliest.flatten().tolist()}
            return AnchorRows(len(rows), length, held, len(tokens))
    return None


MORE = ("hold@3", "easing+hold/step@3", "published", "published/step@3")


# Each pair of values once: operations are positions times what one costs, which training and loss decide.
@pytest.mark.parametrize(
    ("share", "train", "loss", "more"),
    [
        (0.25, "lora", "full", ()),
        (0.25, "full", "chunked", MORE),
        (1.0, "lora", "chunked", MORE),
        (1.0, "full", "full", ()),
    ],
)
def test_counted_operations_are_those_of_a_real_step_and_of_filling(tmp_path, train, loss, share, more):
    modes = (*MODES, *more)
    settings = Settings(train=train, loss=loss, modes=modes, response_share=share, **SMALL)
    # In its first step a constraint of an adapter has its anchors read.
    plan = [PLAIN, *modes] * 2
    trainer = build_trainer(settings, len(plan), tmp_path)
    switch = Switch(trainer, settings, tmp_path / "tables")
    trainer.add_callback(counting := Counting(switch, plan))
    with sdpa_kernel(SDPBackend.MATH):  # nor the fused attention of CPUs
        trainer.train()
    alike = defaultdict(list)
    for name in modes:
        alike[counting.anchors[name], counting.eased[name]].append(name)
    for (anchors, eased), names in alike.items():
        only = replace(settings, modes=tuple(names))
        for name, found in count(only, every_position=True, anchors=anchors, eased=eased).items():
            assert counting.flops[name] == found.flops, name
            assert counting.filling.get(name, 0) == found.reading_flops * settings.fill_batches, name


@pytest.fixture(scope="module", params=["lora", "full"])
def counted(request):
    """What a model of 1B costs at 4096 tokens a step, and its settings."""
    modes = ("easing", "anchors", "default", "hold", "hold@64")
    settings = Settings(shape="1b", train=request.param, modes=modes, dtype="bfloat16")
    return settings, count(settings)


def head_read(settings, positions):
    """FLOPs of the head at some positions: forward, gradients; recomputed in full fine-tuning.

    Else the rows of the safety tokens are multiplied by themselves.
    """
    full, shape = settings.train == "full", settings.sizes
    rows = 0 if full else 2 * positions * shape.hidden_size * settings.tokens
    return rows + head_flops(positions, shape.hidden_size, shape.vocab_size, trained=full, recompute=full)


def test_by_default_a_step_costs_its_anchors_and_the_head_where_responses_are_eased(counted):
    settings, found = counted
    assert found["easing"].extra_flops == 0
    assert found["default"].extra_flops == found["default"].anchor_flops == found["anchors"].extra_flops
    assert 1.09 < found["default"].ratio < 1.11
    assert found["default"].reading_flops == found["easing"].reading_flops > 0
    assert found["anchors"].reading_flops == 0
    eased = count(replace(settings, modes=("easing",)), eased=2)["easing"]
    assert eased.extra_flops == head_read(settings, 2 * 16)


def test_holding_the_data_reads_the_head_where_it_is_held(counted):
    settings, found = counted
    shape = settings.sizes
    for name, positions in (("hold", shape.batch * shape.length // 2), ("hold@64", shape.batch * 64)):
        assert found[name].extra_flops == head_read(settings, positions)


def test_anchors_multiply_the_vocabulary_with_their_answers(counted):
    settings, found = counted
    shape, anchors, full = settings.sizes, AnchorRows(), settings.train == "full"
    own_head = (8 if full else 4) * anchors.held * shape.hidden_size * shape.vocab_size
    assert own_head == head_flops(
        anchors.held, shape.hidden_size, shape.vocab_size, trained=full, recompute=full
    )
    task = head_flops(shape.batch * shape.length // 2, shape.hidden_size, shape.vocab_size, trained=full)
    task += task // (3 if full else 2)  # TRL computes the logits again
    read = anchors.rows * anchors.length
    decoder = (found[PLAIN].flops - task) * read // (shape.batch * shape.length)
    # less attention: they are short
    assert found["anchors"].extra_flops == pytest.approx(own_head + decoder, rel=0.1)


# --- memory ---


@pytest.mark.parametrize("positions", [64, 512])
@pytest.mark.parametrize("vocabulary", [1000, 4000])
@pytest.mark.parametrize("tokens", [16, 200])
def test_the_constraint_allocates_a_chunk_of_logits_and_nothing_of_response_times_vocabulary(
    positions, vocabulary, tokens
):
    width, chunk = 16, 32
    with torch.device("meta"):
        projection = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
        states = torch.zeros(positions, width, requires_grad=True)
        ids, labels = torch.arange(tokens), torch.zeros(positions, dtype=torch.long)
    head = LanguageHead(torch.nn.Identity(), projection)
    with Allocations() as allocations:
        read = head.readout(states, ids, labels, chunk_size=chunk)
        (read.logprobs.sum() + read.log_rest.sum() + read.label.sum()).backward()
    assert allocations.largest == 4 * max(chunk * vocabulary, positions * tokens)
    assert allocations.peak <= 4 * (8 * chunk * vocabulary + 8 * positions * (tokens + width))


class Largest(StepCallback):
    """Sizes of every tensor that each step makes."""

    def __init__(self, switch, plan):
        super().__init__(switch, plan)
        self.sizes = {}

    def on_train_begin(self, args, state, control, **kwargs):
        for name in dict.fromkeys(self.plan):
            if name != PLAIN:
                self.switch.fill(name, args=args, state=state, control=control, **kwargs)

    def begin(self):
        self.allocations = Allocations()
        self.allocations.__enter__()

    def end(self, name):
        self.allocations.__exit__(None, None, None)
        self.sizes[name] = self.allocations.sizes


@pytest.mark.parametrize("loss", ["chunked", "full"])
def test_no_copy_of_the_full_logits_that_plain_training_does_not_have(tmp_path, loss):
    modes = MODES
    settings = Settings(loss=loss, modes=modes, **(SMALL | {"length": 512}))
    plan = [PLAIN, *modes] * 2
    trainer = build_trainer(settings, len(plan), tmp_path)
    switch = Switch(trainer, settings, tmp_path / "tables")
    trainer.add_callback(watched := Largest(switch, plan))
    trainer.train()
    shape = settings.sizes
    logits = 4 * (shape.batch * shape.length // 2) * shape.vocab_size  # those of the response alone
    copies = {name: sum(size >= logits for size in sizes) for name, sizes in watched.sizes.items()}
    assert copies == dict.fromkeys(copies, copies[PLAIN])
    if loss == "full":
        assert copies[PLAIN] > 0


def test_allocations_count_each_storage_once_and_forget_what_is_gone():
    with Allocations() as allocations:
        kept = torch.zeros(10)
        view = kept.view(2, 5)
        view += 1
        gone = kept + 1
        del gone
        torch.zeros(5)
    assert allocations.sizes == [40, 40, 20]
    assert (allocations.live, allocations.peak, allocations.largest) == (40, 80, 40)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_backward_pass_of_the_anchors_own_takes_less_memory(train, checkpointing):
    settings = Settings(shape="growth", train=train, modes=(), gradient_checkpointing=checkpointing)
    few, more = (passes.peaks(settings, AnchorRows(rows=rows, held=16 * rows)) for rows in (4, 8))
    assert few.plain == more.plain
    assert few.apart <= more.apart <= more.together
    assert few.together <= more.together
    if train == "lora":  # else the gradients themselves decide
        assert more.apart < more.together
        assert few.together < more.together
