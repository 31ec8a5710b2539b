"""The head read from hidden states equals the model's own logits, for every family, and costs one chunk."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, tiny_model
from torch import nn

from pact_plugin.errors import ModelStructureError
from pact_plugin.model.check_head import check_head
from pact_plugin.model.head import language_head

TRANSFORMED = {
    "gemma2": {"final_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 4.0},
}
IDS = torch.tensor([5, 9, 40, 41])


def model_and_tokens(architecture: str, **config):
    model = tiny_model(architecture, **TRANSFORMED.get(architecture, {}), **config)
    tokens = torch.randint(0, 300, (3, 11), generator=torch.Generator().manual_seed(1))
    return model, tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_equals_the_models_own_logits(architecture, chunk_size):
    model, tokens = model_and_tokens(architecture)
    head = language_head(model)
    check_head(model, head, torch.arange(12))
    with torch.no_grad():
        own = model(input_ids=tokens).logits.flatten(0, 1)
        hidden = head.decoder(input_ids=tokens).last_hidden_state.flatten(0, 1)
        labels = tokens.flatten()
        read = head.readout(hidden, IDS, labels, chunk_size=chunk_size)
        logprobs = own.double().log_softmax(-1)
    rest = logprobs.index_fill(1, IDS, -torch.inf).logsumexp(1)
    torch.testing.assert_close(read.logprobs, logprobs[:, IDS].float(), atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(read.log_rest, rest.float(), atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(
        read.label, logprobs.gather(1, labels[:, None])[:, 0].float(), atol=5e-6, rtol=1e-5
    )
    torch.testing.assert_close(head.safety_logits(hidden, IDS, chunk_size=chunk_size), own[:, IDS])


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_gradients_equal_those_of_the_full_logits(architecture):
    model, tokens = model_and_tokens(architecture)
    head = language_head(model)
    weights = torch.randn(tokens.numel(), len(IDS), generator=torch.Generator().manual_seed(2))
    read = head.readout(
        head.decoder(input_ids=tokens).last_hidden_state.flatten(0, 1), IDS, tokens.flatten(), chunk_size=5
    )
    loss = (read.logprobs * weights).sum() + read.log_rest.sum() + 0.5 * read.label.sum()
    ours = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    logprobs = model(input_ids=tokens).logits.flatten(0, 1).log_softmax(-1)
    rest = logprobs.index_fill(1, IDS, -torch.inf).logsumexp(1)
    label = logprobs.gather(1, tokens.flatten()[:, None])[:, 0]
    loss = (logprobs[:, IDS] * weights).sum() + rest.sum() + 0.5 * label.sum()
    plain = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert all(a is not None for a in plain)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere", "granite"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_frozen_head_gives_the_same_from_logits_computed_once(architecture, dtype):
    model, tokens = model_and_tokens(architecture)
    model.to(dtype).requires_grad_(False)
    head = language_head(model)
    hidden = head.decoder(input_ids=tokens).last_hidden_state.flatten(0, 1)
    weights = torch.randn(tokens.numel(), len(IDS), generator=torch.Generator().manual_seed(2))
    projected = []
    head.projection.register_forward_hook(lambda module, args, output: projected.append(len(output)))

    def read_and_gradient():
        projected.clear()
        leaf = hidden.clone().requires_grad_()
        read = head.readout(leaf, IDS, tokens.flatten(), chunk_size=5)
        loss = (read.logprobs * weights).sum() - 2 * read.log_rest.sum() + 0.5 * read.label.sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return read, gradient, sum(projected)

    read, gradient, once = read_and_gradient()
    assert once == len(hidden)
    head.projection.requires_grad_(True)
    plain, expected, twice = read_and_gradient()
    assert twice == 2 * len(hidden)
    assert torch.equal(read.logprobs, plain.logprobs)
    assert torch.equal(read.log_rest, plain.log_rest)
    assert torch.equal(read.label, plain.label)
    scale = expected.abs().max().item()
    torch.testing.assert_close(gradient, expected, atol=4 * torch.finfo(dtype).eps * scale, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere", "gpt2"])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    ("states", "weight"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_states_of_another_type_than_the_head_are_read_outside_of_autocast(
    architecture, trained, states, weight
):
    """Norms may end in float32 under autocast, and a decoder of matrix products ends in bfloat16."""
    model, tokens = model_and_tokens(architecture)
    head = language_head(model)
    with torch.no_grad():
        hidden = head.decoder(input_ids=tokens).last_hidden_state.flatten(0, 1).to(states)
    head.projection.to(weight).requires_grad_(trained)
    weights = torch.randn(tokens.numel(), len(IDS), generator=torch.Generator().manual_seed(2))

    def read(given):
        leaf = given.clone().requires_grad_()
        found = head.readout(leaf.to(states), IDS, tokens.flatten(), chunk_size=5)
        loss = (found.logprobs * weights).sum() + found.log_rest.sum() + 0.5 * found.label.sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return found.logprobs, found.log_rest, found.label, head.safety_logits(leaf, IDS), gradient.to(weight)

    for ours, expected in zip(read(hidden), read(hidden.to(weight)), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=2e-2)


def test_a_bias_on_the_head():
    model, tokens = model_and_tokens("phi3")
    model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, model.config.vocab_size))
    head = language_head(model)
    check_head(model, head, torch.arange(12))
    with torch.no_grad():
        hidden = head.decoder(input_ids=tokens).last_hidden_state.flatten(0, 1)
        own = model(input_ids=tokens).logits.flatten(0, 1)
        torch.testing.assert_close(head.safety_logits(hidden, IDS), own[:, IDS])
        logprobs = own.log_softmax(-1)
        labels = tokens.flatten()
        read = head.readout(hidden, IDS, labels)
        torch.testing.assert_close(read.logprobs, logprobs[:, IDS])
        torch.testing.assert_close(read.label, logprobs.gather(1, labels[:, None])[:, 0])


def test_exact_where_the_safety_tokens_hold_all_or_nothing():
    model, _ = model_and_tokens("llama")
    head = language_head(model)
    projection = nn.Linear(2, 50, bias=False)
    with torch.no_grad():
        projection.weight.zero_()
        projection.weight[:4] = torch.tensor([[60.0, -60.0]] * 4)
    head = type(head)(head.decoder, projection)
    read = head.readout(torch.eye(2), torch.arange(4), torch.tensor([0, 0]))
    # all mass on S: log r = log(46 e^0) - log(4 e^60 + 46); none on S: log p(k) = -60 - log(46 + ...)
    assert read.log_rest[0].item() == pytest.approx(torch.tensor(46 / 4).log().item() - 60, rel=1e-6)
    assert read.logprobs[1, 0].item() == pytest.approx(-60 - torch.tensor(46.0).log().item(), rel=1e-6)
    assert read.log_rest[1].item() == pytest.approx(-4 / 46 * torch.tensor(-60.0).exp().item(), rel=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_without_labels_the_same_is_read_of_the_safety_tokens(frozen):
    """And no row of the head is kept for labels."""
    model, tokens = model_and_tokens("llama")
    head = language_head(model.requires_grad_(not frozen))
    hidden = torch.randn(tokens.numel(), model.config.hidden_size, requires_grad=True)
    found, sizes = [], []
    for labels in (tokens.flatten(), None):
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, kept=kept: kept.append(one) or one, lambda x: x
        ):
            read = head.readout(hidden, IDS, labels, chunk_size=5)
        total = read.logprobs.sum() + read.log_rest.sum()
        found.append((read.logprobs, read.log_rest, *torch.autograd.grad(total, hidden)))
        sizes.append(sum(one.shape == hidden.shape for one in kept))
        assert (read.label is None) == (labels is None)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert sizes == ([2, 1] if frozen else [sizes[0]] * 2)


def test_no_position():
    model, _ = model_and_tokens("llama")
    head = language_head(model)
    hidden = torch.zeros(0, model.config.hidden_size, requires_grad=True)
    read = head.readout(hidden, IDS, torch.zeros(0, dtype=torch.long))
    assert read.logprobs.shape == (0, len(IDS))
    (read.logprobs.sum() + read.log_rest.sum()).backward()
    assert hidden.grad is not None


def saved_bytes(chunk_size: int, positions: int, vocabulary: int) -> int:
    """Bytes that autograd keeps between forward and backward."""
    head = language_head(tiny_model("llama", vocab_size=vocabulary))
    hidden = torch.randn(positions, 32, requires_grad=True)
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        head.readout(hidden, IDS, torch.zeros(positions, dtype=torch.long), chunk_size=chunk_size)
    return kept


def test_memory_grows_with_the_chunk_not_with_vocabulary_times_sequence():
    small, large = saved_bytes(16, 256, 1000), saved_bytes(16, 256, 16000)
    assert large - small < 256 * 15000  # a quarter of one byte array [positions, extra vocabulary] in float32
    assert saved_bytes(16, 1024, 1000) - small < 1024 * 1000


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_found_or_reproduced():
    with pytest.raises(ModelStructureError, match="decoder"):
        language_head(nn.Linear(2, 2))
    model, _ = model_and_tokens("llama")
    with pytest.raises(ModelStructureError, match="language-model head"):
        language_head(_WithoutHead(model))
    head = language_head(model)
    wrong = type(head)(head.decoder, head.projection, scale=2.0)
    with pytest.raises(ModelStructureError, match="differ from the model's own"):
        check_head(model, wrong, torch.arange(12))


class _WithoutHead(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model.model

    @property
    def base_model(self):
        return self.inner

    def get_output_embeddings(self):
        return None


def test_documents_of_a_row_are_kept_apart_by_flash_attention_alone():
    """Layers of a state-space model would carry their state from one document to the next."""
    model, _ = model_and_tokens("llama")
    assert not language_head(model).keeps_documents_apart
    model.config._attn_implementation = "flash_attention_2"
    assert language_head(model).keeps_documents_apart
    model.config.layer_types = ["full_attention", "linear_attention"]  # as MiniMax's, which does not convolve
    assert not language_head(model).keeps_documents_apart
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert language_head(model).keeps_documents_apart
    model.model.layers[0].mixer = nn.Conv1d(4, 4, 2)
    assert not language_head(model).keeps_documents_apart


def test_hooks_on_saved_tensors_see_no_backward_pass_before_the_steps():
    """Those that offload activations keep all of them on the accelerator if they do."""
    model, tokens = model_and_tokens("llama")
    head = language_head(model.requires_grad_(False))
    hidden = head.decoder(input_ids=tokens).last_hidden_state.flatten(0, 1).requires_grad_()
    seen: list[torch.Tensor] = []

    def unpacked(tensor):
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpacked):
        read = head.readout(hidden * 1.0, IDS, tokens.flatten(), chunk_size=5)
        assert not seen
        read.log_rest.sum().backward()
    assert seen
    assert hidden.grad is not None
