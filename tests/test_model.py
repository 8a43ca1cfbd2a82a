"""The model: attention as in the textbook, no look into the future,
and the options that a configuration has.
"""

import numpy as np
import pytest
import torch

from si_nb.model.gpt import (
    GPT,
    Attention,
    KeyValueCache,
    ModelConfig,
    Packing,
    count_parameters,
    forward_flops,
)
from si_nb.model.positions import POSITIONAL_ENCODINGS, rotate

CPU = torch.device("cpu")
SMALL = dict(n_layer=2, n_head=4, n_embd=32, block_size=24)


def new_model(seed=0, **settings):
    return GPT(ModelConfig(**{**SMALL, **settings}), torch.Generator().manual_seed(seed))


def new_tokens(batch=3, length=20, seed=1):
    return torch.randint(14, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_is_the_textbook_formula(heads, bias):
    """Fused attention equals softmax(q k / sqrt(d)) v under a causal mask,
    one head and one query at a time.
    """
    torch.manual_seed(0)
    attention, x = (
        Attention(ModelConfig(n_layer=1, n_head=heads, n_embd=32, bias=bias), 0),
        torch.randn(2, 9, 32),
    )
    with torch.no_grad():
        query, key, value = attention.queries_keys_values(x).unflatten(-1, (3, heads, 32 // heads)).unbind(2)
        gathered = torch.zeros(2, 9, heads, 32 // heads)
        for head in range(heads):
            for now in range(9):
                scores = (query[:, now, None, head] * key[:, : now + 1, head]).sum(-1) / (32 / heads) ** 0.5
                gathered[:, now, head] = (scores.softmax(-1)[..., None] * value[:, : now + 1, head]).sum(1)
        assert torch.allclose(attention(x), attention.projection(gathered.flatten(2)), atol=1e-6)


@pytest.mark.parametrize("place", [0, 7, 19])
def test_no_token_sees_the_future(place):
    """Changing a token changes no output before it, not in the last bit, and does change its own."""
    model, tokens = new_model(), new_tokens()
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % 14
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert (before[:, place] != after[:, place]).any(dim=-1).all()


@pytest.mark.parametrize("encoding", POSITIONAL_ENCODINGS)
def test_a_cache_may_be_filled_in_two_ways(encoding):
    """Prompt at once and then token by token through a cache gives the logits of one pass."""
    model, tokens = new_model(positional_encoding=encoding), new_tokens()
    cache = KeyValueCache(model.config, 3, 20, CPU, torch.float32)
    with torch.no_grad():
        parts = [model(tokens[:, :8], cache)] + [model(tokens[:, [step]], cache) for step in range(8, 20)]
        assert torch.allclose(torch.cat(parts, dim=1), model(tokens), atol=1e-5)
    assert cache.filled == 20


@pytest.mark.parametrize("encoding", POSITIONAL_ENCODINGS)
def test_packing_changes_nothing(encoding):
    """Computing only the real tokens gives them the logits that they have among padding,
    and the same gradients.
    """
    model = new_model(positional_encoding=encoding)
    tokens, lengths = new_tokens(4, 12), np.array([12, 5, 1, 9])
    places = torch.as_tensor(np.flatnonzero(np.arange(12) < lengths[:, None]))
    padded = model(tokens).flatten(0, 1)[places]
    packed = model(tokens, packing=Packing(places, 4, 12))
    assert packed.shape == (lengths.sum(), 14) and torch.allclose(packed, padded, atol=1e-6)
    gradients = [
        torch.autograd.grad(logits.square().mean(), list(model.parameters())) for logits in (padded, packed)
    ]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("encoding", POSITIONAL_ENCODINGS)
def test_tokens_that_are_not_wanted_change_nothing(encoding):
    """Logits of some tokens are those that they have among all, packed, padded or with a cache; so are the
    gradients of a loss on them.
    """
    model, tokens = new_model(positional_encoding=encoding), new_tokens(4, 12)
    whole, wanted = model(tokens), torch.tensor([3, 10, 11, 40])
    packing = Packing(torch.arange(48), 4, 12)
    some = model(tokens, packing=packing, wanted=wanted)
    assert some.shape == (4, 14) and torch.allclose(some, whole.flatten(0, 1)[wanted], atol=1e-6)
    losses = (whole.flatten(0, 1)[wanted].square().mean(), some.square().mean())
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))
    with torch.no_grad():
        cache = KeyValueCache(model.config, 4, 12, CPU, torch.float32)
        assert torch.allclose(model(tokens, cache, wanted=7), whole[:, 7:], atol=1e-6) and cache.filled == 12
        assert torch.allclose(model(tokens, wanted=11), whole[:, 11:], atol=1e-6)


def test_no_position_is_stored_by_default():
    """NoPE: nothing in the model depends on the block size, and a longer block gives the same logits."""
    short, long, tokens = new_model(), new_model(block_size=500), new_tokens()
    assert {name: weight.shape for name, weight in short.state_dict().items()} == {
        name: weight.shape for name, weight in long.state_dict().items()
    }
    with torch.no_grad():
        assert torch.equal(short(tokens), long(tokens))


@pytest.mark.parametrize("encoding", POSITIONAL_ENCODINGS)
def test_the_order_of_what_came_before(encoding):
    """Without positions one layer gathers the same from earlier tokens in any order, to rounding;
    with an encoding it does not.
    """
    model, tokens = new_model(n_layer=1, positional_encoding=encoding), new_tokens(length=8)
    shuffled = torch.cat([tokens[:, [3, 0, 6, 2, 5, 1, 4]], tokens[:, 7:]], dim=1)
    with torch.no_grad():
        moved = (model(tokens)[:, -1] - model(shuffled)[:, -1]).abs().max()
    assert (moved < 1e-6) == (encoding == "none")


def test_rotary_encoding_is_complex_rotation():
    """Each pair is a complex number times exp(i position rate), as the paper defines it; scores depend on
    the distance only.
    """
    heads = torch.randn(2, 3, 11, 6, generator=torch.Generator().manual_seed(0))
    pairs = torch.complex(heads[..., :3], heads[..., 3:])
    rates = torch.tensor([10_000 ** (-pair / 3) for pair in range(3)])
    angles = (torch.arange(11) + 5)[:, None] * rates
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    assert torch.allclose(rotate(heads, 5), torch.cat([turned.real, turned.imag], dim=-1), atol=1e-5)
    here, there = ((rotate(heads[0], start) @ rotate(heads[1], start).mT) for start in (0, 40))
    assert torch.allclose(here, there, atol=1e-4)
    assert rotate(heads.bfloat16(), 5).dtype == torch.bfloat16


def test_learned_positions_are_added():
    """A learned vector for each place of the block is added to the embedding, wherever a pass begins."""
    model, tokens = new_model(positional_encoding="learned"), new_tokens()
    assert model.positions.weight.shape == (SMALL["block_size"], SMALL["n_embd"])
    with torch.no_grad():
        model.positions.weight[5] += 1.0
        before, after = new_model(positional_encoding="learned")(tokens), model(tokens)
    changed = (before != after).any(dim=(0, 2))
    assert not changed[:5].any() and changed[5:].all()


@pytest.mark.parametrize("encoding", POSITIONAL_ENCODINGS)
def test_parameters_and_operations_of_encodings(encoding):
    """Learned positions are block times width numbers more; turning costs operations and no numbers."""
    plain, model = new_model(), new_model(positional_encoding=encoding)
    more = count_parameters(model) - count_parameters(plain)
    assert more == (24 * 32 if encoding == "learned" else 0)
    operations = forward_flops(model.config, 10) - forward_flops(plain.config, 10)
    assert operations == 10 * {"none": 0, "rotary": 2 * 6 * 32, "learned": 32}[encoding]


def test_bias_is_optional():
    """Without the option no linear layer or norm has a bias;
    with it all have one but the output head, starting at zero.
    """
    biases = {
        bias: [name for name, _ in new_model(bias=bias).named_parameters() if name.endswith("bias")]
        for bias in (False, True)
    }
    assert biases[False] == [] and len(biases[True]) == 2 * 6 + 1 and "head.bias" not in biases[True]
    model = new_model(bias=True)
    assert all(
        (parameter == 0).all() for name, parameter in model.named_parameters() if name.endswith("bias")
    )


def test_dropout_acts_in_training_only():
    """Dropout changes the logits from call to call while training, and never in evaluation."""
    model, tokens = new_model(dropout=0.3), new_tokens()
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(model.train()(tokens), model(tokens))
        assert torch.equal(model.eval()(tokens), model(tokens)) and torch.equal(
            model(tokens), new_model()(tokens)
        )


def test_the_block_size_is_a_limit():
    """A sequence longer than the block is an error that names both sizes, with and without a cache."""
    model, tokens = new_model(), new_tokens(1, 25)
    with pytest.raises(ValueError, match="25 tokens do not fit a block_size of 24"):
        model(tokens)
    cache = KeyValueCache(model.config, 1, 30, CPU, torch.float32)
    model(tokens[:, :24], cache)
    with pytest.raises(ValueError, match="25 tokens"):
        model(tokens[:, 24:], cache)


@pytest.mark.parametrize(
    "mistake, named",
    [(dict(n_embd=33), "n_head"), (dict(n_layer=0), "n_layer"), (dict(n_head=-1), "n_head"),
    (dict(block_size=0), "block_size"),
     (dict(vocab_size=0), "vocab_size"), (dict(dropout=1.0), "dropout"), (dict(dropout=-0.1), "dropout"),
     (dict(positional_encoding="sinusoidal"), "choose none, rotary, learned"),
     (dict(positional_encoding="rotary", n_embd=12), "must be even")],
)  # fmt: skip
def test_impossible_sizes_are_refused(mistake, named):
    """A size that cannot work is one line that names it."""
    with pytest.raises(ValueError, match=named) as error:
        ModelConfig(**{**SMALL, **mistake})
    assert "\n" not in str(error.value)


def test_a_seed_decides_the_weights():
    """Equal generators give equal weights whatever else the process has drawn; normal(0, 0.02);
    head and embedding are two.
    """
    first = new_model(seed=5)
    torch.rand(10)
    again, other = new_model(seed=5), new_model(seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)
    big = GPT(ModelConfig(n_layer=1), torch.Generator().manual_seed(0))
    assert abs(big.blocks[0].gate_up.weight.std().item() - 0.02) < 1e-4
    assert big.head.weight.data_ptr() != big.embedding.weight.data_ptr()


def test_the_full_size():
    """6 layers of width 384 with a SwiGLU of inner width 1024: the parameter count worked out by hand."""
    width, inner = 384, 1024
    per_block = 4 * width**2 + 3 * width * inner + 2 * width
    assert count_parameters(GPT(ModelConfig(), torch.Generator())) == 6 * per_block + 2 * 14 * width + width
