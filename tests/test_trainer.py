"""The trainer: schedule, batches, loss and precision, and that a seed decides every bit."""

import math
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import run
from hypothesis import given, settings
from hypothesis import strategies as st

import si_nb.model.trainer
from si_nb.model.gpt import GPT, ModelConfig, Packing
from si_nb.model.trainer import (
    AdamW,
    DeviceError,
    DivergedError,
    Mixture,
    TrainConfig,
    autocast,
    choose_device,
    choose_precision,
    learning_rate_at,
    next_tokens,
    token_loss,
    train,
)
from si_nb.problems.tasks import TASKS, make_base_data
from si_nb.problems.tokenizer import EQUALS, PAD, encode

CPU = torch.device("cpu")


def new_model(seed=0, **settings):
    return GPT(
        ModelConfig(**{**dict(n_layer=1, n_head=2, n_embd=32), **settings}),
        torch.Generator().manual_seed(seed),
    )


def rows_of(lengths, width, seed=0):
    """Rows of digits with one equals sign, of the given lengths, filled with padding."""
    rows = np.random.default_rng(seed).integers(0, 10, (len(lengths), width), dtype=np.uint8)
    rows[np.arange(width) >= np.array(lengths)[:, None]] = PAD
    rows[:, 1] = EQUALS
    return rows


# --- schedule


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_schedule_is_warmup_stable_decay(warmup, stable, decay, floor):
    """Linear rise to the full rate, constant, half a cosine towards the floor,
    for any lengths of the three parts.
    """
    steps = max(1, warmup + stable + decay)
    config = TrainConfig(steps, warmup, decay, learning_rate=0.01, learning_rate_floor=floor)
    rates = [learning_rate_at(step, config) for step in range(config.steps)]
    stable = config.steps - warmup - decay
    expected = [0.01 * (step + 1) / warmup for step in range(warmup)] + [0.01] * stable
    waves = [(1 + math.cos(math.pi * step / decay)) / 2 for step in range(decay)]
    expected += [0.01 * floor + 0.01 * (1 - floor) * wave for wave in waves]
    assert np.allclose(rates, expected, rtol=1e-12) and min(rates) > 0 and max(rates) <= 0.01


@pytest.mark.parametrize(
    "mistake",
    [dict(steps=0), dict(batch_size=0), dict(warmup=-1), dict(warmup=6, decay=5), dict(loss_on="prompt")],
)
def test_impossible_training_is_refused(mistake):
    """A schedule longer than the run, a size below one or an unknown loss is one line."""
    with pytest.raises(ValueError) as error:
        TrainConfig(**{**dict(steps=10, warmup=0, decay=0), **mistake})
    assert "\n" not in str(error.value)


# --- batches


@settings(deadline=None)
@given(st.lists(st.integers(2, 15), min_size=1, max_size=12), st.integers(1, 20), st.integers(0, 99))
def test_no_padding_beyond_the_longest_row(lengths, batch_size, seed):
    """A batch is exactly as wide as its longest row,
    and its packing lists exactly the inputs that are no padding.
    """
    rows = rows_of(lengths, 15)
    batch, packing = Mixture([rows], [1], CPU).draw(batch_size, np.random.default_rng(seed))
    real = batch != PAD
    assert batch.shape == (batch_size, real.sum(1).max()) and batch.dtype == torch.int64
    given_rows = {tuple(row[row != PAD]) for row in rows}
    assert all(tuple(row[row != PAD].tolist()) in given_rows for row in batch)
    assert torch.equal(packing.places, real[:, 1:].flatten().nonzero()[:, 0])
    assert (packing.batch, packing.length) == (batch_size, batch.shape[1] - 1)


def test_weights_are_shares_of_the_batch():
    """A source's share of the batch is its weight, whatever its size and its width."""
    sources = [
        np.full((rows, width), digit, dtype=np.uint8)
        for digit, (rows, width) in enumerate([(5, 9), (3_000, 4), (70, 6)])
    ]
    batch, _ = Mixture(sources, [1, 1, 2], CPU).draw(20_000, np.random.default_rng(0))
    shares = torch.bincount(batch[:, 0], minlength=3) / 20_000
    assert (abs(shares - torch.tensor([0.25, 0.25, 0.5])) < 0.02).all()


# --- loss


@pytest.mark.parametrize("loss_on", ["all", "answer"])
def test_the_loss_counts_the_right_tokens(loss_on):
    """Mean cross-entropy over real next tokens, or over what follows the equals sign, end mark included,
    by a plain loop.
    """
    tokens = torch.as_tensor(encode(["12=12$", "3=3$", "45+6=15$"])).long()
    batch, packing = Mixture([tokens.numpy().astype(np.uint8)], [1], CPU).draw(50, np.random.default_rng(0))
    logits = torch.randn(50, batch.shape[1] - 1, 14, generator=torch.Generator().manual_seed(0))
    terms = []
    for row, row_logits in zip(batch.tolist(), logits.log_softmax(-1), strict=True):
        for place, following in enumerate(row[1:]):
            counts = following != PAD and (loss_on == "all" or EQUALS in row[: place + 1])
            terms += [-row_logits[place, following].item()] if counts else []
    loss = token_loss(logits.flatten(0, 1)[packing.places], next_tokens(batch, packing, loss_on))
    assert math.isclose(loss.item(), sum(terms) / len(terms), rel_tol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(2, 15), min_size=1, max_size=40), st.integers(1, 60))
def test_parts_hold_every_row_once(lengths, tokens_per_part):
    """Whatever its rows and however small its parts, a batch in parts has the same rows,
    real tokens and targets.
    """
    batch, packing = Mixture([rows_of(lengths, 15)], [1], CPU).draw(30, np.random.default_rng(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(si_nb.model.trainer._TOKENS_PER_PART, "cpu", tokens_per_part)
        parts = si_nb.model.trainer._parts(batch, packing)
    texts = [row[row != PAD].tolist() for part, _ in parts for row in part]
    assert sorted(texts) == sorted(row[row != PAD].tolist() for row in batch)
    for part, own in parts:
        assert torch.equal(own.places, (part != PAD)[:, 1:].flatten().nonzero()[:, 0])
        assert (own.batch, own.length) == (len(part), part.shape[1] - 1) and (part != PAD).any(0).all()


@pytest.mark.parametrize("loss_on", ["all", "answer"])
def test_parts_change_no_step(loss_on, monkeypatch):
    """A step on a batch in many parts moves the weights as one on the whole batch,
    and reports the same loss.
    """
    base, models, losses = (
        make_base_data(TASKS["reverse_addition"], 5, 2_000, np.random.default_rng(0)),
        [],
        [],
    )
    for tokens_per_part in (10**9, 200):
        monkeypatch.setitem(si_nb.model.trainer._TOKENS_PER_PART, "cpu", tokens_per_part)
        models.append(new_model())
        config = TrainConfig(1, 0, 0, 128, 1e-3, epsilon=1e-4, loss_on=loss_on)
        losses.append(train(models[-1], Mixture([base], [1], CPU), config, np.random.default_rng(0)))
    assert math.isclose(*losses, rel_tol=1e-5)
    for whole, parts, start in zip(*(model.parameters() for model in (*models, new_model())), strict=True):
        moved = (whole - start).abs().max()
        assert moved > 0 and (whole - parts).abs().max() < 1e-3 * moved + 1e-6


def test_learning_the_answer_only():
    """With the loss on the answer, prompts leave no trace: only their answers are learned."""
    rows = encode([f"{digit}=7$" for digit in range(10)])
    model = new_model()
    loss = train(
        model,
        Mixture([rows], [1], CPU),
        TrainConfig(80, 5, 10, 32, 5e-3, loss_on="answer"),
        np.random.default_rng(0),
    )
    with torch.no_grad():
        logits = model(torch.as_tensor(rows).long())
    assert loss < 0.1 and (logits[:, 1].argmax(-1) == 7).all()
    start = logits[:, 0].log_softmax(
        -1
    )  # what follows a first digit was never taught: the equals sign is nothing special
    assert (start.argmax(-1) != EQUALS).all()


# --- device and precision


def test_a_cpu_computes_in_fp32():
    """On a CPU, weights, activations and gradients are float32 throughout training."""
    model, seen = new_model(), set()
    for module in model.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    train(model, Mixture([rows_of([9, 5], 9)], [1], CPU), TrainConfig(3, 0, 0, 8), np.random.default_rng(0))
    with autocast(CPU):
        model(torch.zeros(1, 4, dtype=torch.int64))
    assert seen == {torch.float32} == {parameter.dtype for parameter in model.parameters()}
    assert choose_precision(CPU) is torch.float32 and choose_precision(torch.device("mps")) is torch.float16


@pytest.mark.parametrize("name", ["cuda:99", "cpu:1", "abacus", "", "cuda:-1", "cuda:x"])
def test_absent_devices_are_refused(name):
    """A device that is not there is one line that names it and what there is."""
    with pytest.raises(DeviceError, match="this machine has .*cpu") as error:
        choose_device(name)
    assert (
        repr(name) in str(error.value)
        and "\n" not in str(error.value)
        and isinstance(error.value, ValueError)
    )


def test_the_best_device_is_chosen(monkeypatch):
    """Auto takes CUDA before MPS before the CPU."""
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert choose_device("auto").type == choose_device().type == expected


@pytest.mark.parametrize(
    "capability, precision", [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_old_gpus_get_fp16(capability, precision, monkeypatch):
    """bfloat16 from compute capability 8, float16 with a loss scaler below."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(torch.device("cuda")) is precision


@pytest.mark.cuda(reason="trains on a GPU in its own precision")
def test_a_gpu_learns_too():
    """Training on a GPU in reduced precision learns what a CPU learns."""
    device = choose_device("cuda")
    model = new_model().to(device)
    loss = train(
        model,
        Mixture([encode(["12=12$"])], [1], device),
        TrainConfig(100, 5, 20, 32, 5e-3),
        np.random.default_rng(0),
    )
    assert loss < 0.1 and {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# --- the loop


def test_matrices_decay_and_vectors_do_not():
    """Weight decay shrinks matrices by learning rate times weight decay in a step,
    and leaves gains and biases alone.
    """
    model = new_model(bias=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    AdamW(model, TrainConfig(1, 0, 0, learning_rate=0.01, weight_decay=0.1)).step()
    for name, parameter in model.named_parameters():
        assert torch.allclose(
            parameter, before[name] * (1 - 0.001 * (parameter.dim() > 1)), rtol=1e-6, atol=0
        ), name


def test_a_step_is_that_of_the_class_of_torch():
    """The same gradients at changing rates move weights and running means as the class does, bit for bit."""
    config, draw = TrainConfig(1, 0, 0, weight_decay=0.1), torch.Generator().manual_seed(0)
    ours, theirs = new_model(bias=True), new_model(bias=True)
    groups = [
        {"params": [p for p in theirs.parameters() if (p.dim() > 1) == matrices], "weight_decay": decay}
        for matrices, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    usual = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)
    optimizer = AdamW(ours, config)
    for step in range(20):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=draw) * 10 ** (step % 7 - 4)
            other.grad = mine.grad.clone()
        optimizer.learning_rate = 0.01 / (step + 1)
        for group in usual.param_groups:
            group["lr"] = optimizer.learning_rate
        optimizer.step()
        usual.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    own = optimizer.moments()
    for index, moments in usual.state_dict()["state"].items():
        assert all(torch.equal(own[f"optimizer.{index}.{name}"], tensor) for name, tensor in moments.items())


def test_training_imports_no_compiler():
    """Nothing is compiled, so nobody waits for torch's compiler to be imported."""
    code = """
import sys
import numpy as np, torch
from si_nb.model.gpt import GPT, ModelConfig
from si_nb.model.trainer import Mixture, TrainConfig, train
model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=16), torch.Generator().manual_seed(0))
data = Mixture([np.ones((4, 3), dtype=np.uint8)], [1], torch.device("cpu"))
train(model, data, TrainConfig(2, 0, 0, 4), np.random.default_rng(0))
assert "torch._dynamo" not in sys.modules
"""
    run(sys.executable, "-c", code)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_low_precision_learns_on_a_cpu_too(precision, monkeypatch):
    """The paths of newer and of older GPUs, the second with a loss scale, learn what fp32 learns.

    They run here on the CPU; a first scale that is far too large is lowered, and costs steps, not weights.
    """
    monkeypatch.setattr(si_nb.model.trainer, "choose_precision", lambda device: precision)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**30))
    model, states = new_model(), []
    rows = encode([f"{digit}{digit}={digit}{digit}$" for digit in range(4)])
    loss = train(
        model,
        Mixture([rows], [1], CPU),
        TrainConfig(150, 5, 30, 32, 5e-3, loss_on="answer"),
        np.random.default_rng(0),
        after_step=lambda capture: states.append(capture()),
    )
    assert loss < 0.1 and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    scales = [state.facts["scaler"].get("scale") for state in states]
    lost = sum(after < before for before, after in pairwise([2.0**30, *filter(None, scales)]))
    assert (lost > 0) == (precision is torch.float16)
    assert states[-1].tensors["optimizer.0.step"] == 150 - lost


@pytest.mark.parametrize("loss_on", ["all", "answer"])
def test_a_step_stays_on_the_models_device(loss_on):
    """Everything that a step makes lies where the model is: shown by tensors without data,
    whose every mix with the CPU's is an error.
    """
    rows, device = encode(["12=12$", "1=1$"]), torch.device("meta")
    tokens = torch.as_tensor(rows).long().to(device)
    real = torch.as_tensor((rows != PAD)[:, 1:].flatten().nonzero()[0])
    model, scaler = new_model().to(device), torch.amp.GradScaler("cpu", enabled=False)
    config = TrainConfig(1, 0, 0, loss_on=loss_on)
    optimizer, shape = AdamW(model, config), (len(rows), rows.shape[1] - 1)
    for tensor in si_nb.model.trainer._step(
        model, tokens, Packing(real.to(device), *shape), config, optimizer, scaler, 1e-3
    ):
        assert tensor.device == device
    assert {tensor.device for tensor in optimizer.moments().values()} == {device}
    with pytest.raises(RuntimeError, match="device"):
        si_nb.model.trainer._step(model, tokens, Packing(real, *shape), config, optimizer, scaler, 1e-3)


def test_divergence_is_an_error():
    """A loss that is not finite stops the run and names the very step,
    and no state is handed out from then on.
    """
    mixture = Mixture([make_base_data(TASKS["copy"], 3, 500, np.random.default_rng(0))], [1], CPU)
    config = TrainConfig(50, 0, 0, 32, learning_rate=1e30, gradient_clip=1e30)
    steps = []
    with pytest.raises(DivergedError, match="step 2: lower learning_rate"):
        train(
            new_model(),
            mixture,
            config,
            np.random.default_rng(0),
            report_every=10,
            after_step=lambda capture: steps.append(capture().facts["step"]),
        )
    assert steps == [1]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("stop", [1, 6, 10, 19])
def test_a_state_is_everything(stop, dropout):
    """A training taken up from a state, by a model and generators that know nothing of it,
    reports and ends like the one that ran through.
    """
    mixture = Mixture([make_base_data(TASKS["copy"], 4, 2_000, np.random.default_rng(0))], [1], CPU)
    config, states, losses = TrainConfig(20, 3, 6, 32, 3e-3), [], {"whole": [], "again": []}
    torch.manual_seed(7)
    whole, again = new_model(dropout=dropout), new_model(1, dropout=dropout)
    train(
        whole,
        mixture,
        config,
        np.random.default_rng(1),
        lambda *report: losses["whole"].append(report),
        5,
        after_step=lambda capture: states.append(capture()),
    )
    torch.manual_seed(8)
    train(
        again,
        mixture,
        config,
        np.random.default_rng(2),
        lambda *report: losses["again"].append(report),
        5,
        state=states[stop - 1],
    )
    assert losses["again"] == [report for report in losses["whole"] if report[0] > stop]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_reports_add_up():
    """Reports come at equal distances and at the end, each with the mean loss since the one before."""
    mixture = Mixture([make_base_data(TASKS["copy"], 3, 500, np.random.default_rng(0))], [1], CPU)
    config, single, grouped = TrainConfig(10, 0, 0, 16), [], []
    train(
        new_model(),
        mixture,
        config,
        np.random.default_rng(0),
        lambda *report: single.append(report),
        report_every=1,
    )
    last = train(
        new_model(),
        mixture,
        config,
        np.random.default_rng(0),
        lambda *report: grouped.append(report),
        report_every=4,
    )
    assert [step for step, _ in grouped] == [4, 8, 10]
    losses = [loss for _, loss in single]
    expected = [np.mean(losses[:4]), np.mean(losses[4:8]), np.mean(losses[8:])]
    assert np.allclose([loss for _, loss in grouped], expected, rtol=1e-5) and last == grouped[-1][1]


def test_a_seed_decides_every_bit():
    """Same generators, same weights to the last bit,
    whatever else draws random numbers and however often it reports.
    """
    mixture = Mixture([make_base_data(TASKS["copy"], 4, 2_000, np.random.default_rng(0))], [1], CPU)
    config = TrainConfig(30, 3, 6, 32, 3e-3)
    models = [new_model() for _ in range(3)]
    for number, (model, seed, report_every) in enumerate(zip(models, (1, 1, 2), (50, 7, 50), strict=True)):
        torch.manual_seed(number)
        train(model, mixture, config, np.random.default_rng(seed), report_every=report_every)
    first, again, other = (
        torch.cat([parameter.flatten() for parameter in model.parameters()]) for model in models
    )
    assert torch.equal(first, again) and not torch.equal(first, other) and not models[0].training
