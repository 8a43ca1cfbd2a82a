"""The plain way and the fast paths agree on trained models: loss, gradients, answers and labels."""

import random

import numpy as np
import pytest
import torch

from si_nb.benchmarks.plain import (
    PLAIN_ANSWERS,
    PLAIN_KEEP_RULES,
    plain_base_data,
    plain_encode,
    plain_generate,
    plain_labels,
    plain_line,
    plain_loss,
    plain_mixture,
    plain_optimizer,
    plain_right,
    plain_round,
    plain_train,
    plain_vote,
)
from si_nb.loop.voting import KEEP_RULES, propose
from si_nb.model.generate import exact_match, generate
from si_nb.model.gpt import GPT, ModelConfig
from si_nb.model.positions import POSITIONAL_ENCODINGS
from si_nb.model.trainer import Mixture, TrainConfig, train
from si_nb.problems.tasks import TASKS, MazeTask, make_base_data, make_problems
from si_nb.problems.tokenizer import PAD, decode, encode

CPU = torch.device("cpu")
ITEMS, LENGTHS = 150, (1, 2, 3, 4, 5)


# answers of one length and of several; decoding depends on nothing else in a task, and on positions
LEARNED = [("copy", "none"), ("reverse", "none"), ("reverse_addition", "none")]
LEARNED += [("reverse_addition", "rotary"), ("copy", "learned")]


def new_model(seed=0, **sizes):
    sizes = {"block_size": 40, **sizes}
    return GPT(ModelConfig(n_layer=2, n_head=2, n_embd=64, **sizes), torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=LEARNED, ids="-".join)
def trained(request, learned):
    """A task, its base data, and two voters that are good at short problems and bad at longer ones."""
    (base, one), (_, other) = learned(*request.param), learned(*request.param)
    config = TrainConfig(40, 0, 0, 64, 3e-3, loss_on="answer")
    train(other, Mixture([base], [1], CPU), config, np.random.default_rng(1))
    return TASKS[request.param[0]], base, [one, other]


def texts_of(task, length, items=ITEMS):
    problems = make_problems(task, length, items, np.random.default_rng(length), "evaluate")
    return problems, decode(problems.prompts), decode(problems.answers)


def one_step(tokens, config, **sizes):
    """A model after one fast and after one plain step on the same rows."""
    fast, plain = new_model(**sizes), new_model(**sizes)
    lost = train(fast, Mixture([tokens], [1], CPU), config, np.random.default_rng(0))
    rows = _drawn(tokens, config)
    return fast, plain, lost, plain_train(plain, rows, config, _InOrder())


class _InOrder(random.Random):
    """A source that hands out all lines in order."""

    def choices(self, population, k):
        return population[:k]


def _drawn(tokens, config):
    """The lines that the fast step draws; it draws with the same generator."""
    drawn, _ = Mixture([tokens], [1], CPU).draw(config.batch_size, np.random.default_rng(0))
    return decode(drawn.numpy())


@pytest.mark.parametrize("encoding", POSITIONAL_ENCODINGS)
@pytest.mark.parametrize("loss_on", ["all", "answer"])
@pytest.mark.parametrize("name", TASKS)
def test_one_step_is_the_same(name, loss_on, encoding):
    """A step without padding changes the weights as one on rows padded to the block size; losses agree."""
    task = TASKS[name]
    longest = 3 if name.startswith("multiplication") else task.shortest + 3  # what the block holds
    base = make_base_data(task, longest, 2_000, np.random.default_rng(0))
    sizes = dict(vocab_size=task.vocab_size, block_size=max(40, base.shape[1]), positional_encoding=encoding)
    training = TrainConfig(1, 0, 0, 128, 1e-3, epsilon=1e-4, loss_on=loss_on)
    fast, plain, fast_loss, loss = one_step(base, training, **sizes)
    assert abs(fast_loss - loss) < 1e-5
    for (name, one), two, start in zip(
        fast.named_parameters(), plain.parameters(), new_model(**sizes).parameters(), strict=True
    ):
        moved = (two - start).abs().max()
        assert moved > 0 and (one - two).abs().max() < 1e-3 * moved + 1e-6, name


@pytest.mark.parametrize("loss_on", ["all", "answer"])
def test_padding_changes_neither_loss_nor_gradients(trained, loss_on):
    """A batch padded to the block size has the loss and the gradients of the same rows one by one."""
    _, base, (model, _) = trained
    rows = decode(base[:: len(base) // 40])

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    counted = [len(row) - 1 if loss_on == "all" else len(row.split("=")[1]) for row in rows]
    singly = [plain_loss(model, plain_encode([row], len(row), CPU), loss_on) for row in rows]
    alone = sum(loss * count for loss, count in zip(singly, counted, strict=True)) / sum(counted)
    together = plain_loss(model, plain_encode(rows, 40, CPU), loss_on)
    assert torch.isclose(alone, together, atol=1e-6)
    one, two = gradients(alone), gradients(together)
    assert one.norm() > 0 and (one - two).norm() < 1e-4 * one.norm()


def test_the_models_have_learned(trained):
    """The comparisons below mean something: right and wrong answers both occur."""
    task, _, models = trained
    accuracy = [np.mean(plain_right(models[0], *texts_of(task, length)[1:], 8)) for length in LENGTHS]
    assert max(accuracy) > 0.5 and min(accuracy) < 0.3, accuracy
    assert any(0.02 < share < 0.98 for share in accuracy), accuracy


def test_answers_are_the_same(trained):
    """Decoding without a cache to a fixed number of tokens gives the fast path's answers, however batched."""
    task, _, (model, _) = trained
    for length in LENGTHS:
        problems, prompts, _ = texts_of(task, length)
        for room in (length + 1, length + 4):
            fast = generate(model, problems.prompts, room)
            plain = plain_encode(plain_generate(model, prompts, room, batch_size=97), room, CPU)
            assert (plain.numpy() == fast).all()


def test_accuracy_is_the_same(trained):
    """Decoding and comparing strings finds right the very problems that one pass finds right."""
    task, _, (model, _) = trained
    for length in LENGTHS:
        problems, prompts, truths = texts_of(task, length)
        assert plain_right(model, prompts, truths, length + 3) == exact_match(model, problems)[0].tolist()


def test_labels_are_the_same(trained):
    """Under every rule both ways keep the same lines; two of three voters are the same, so they agree."""
    task, _, (one, two) = trained
    kept = dict.fromkeys(PLAIN_KEEP_RULES, 0)
    for length in LENGTHS[1:4]:
        problems, prompts, _ = texts_of(task, length)
        voters, lengths, threshold = [one, two, one], task.answer_lengths(length), 1.0
        proposal = propose(np.stack([generate(voter, problems.prompts, length + 3) for voter in voters]))
        for rule in PLAIN_KEEP_RULES:
            keep = KEEP_RULES[rule].keep(proposal, lengths, threshold)
            rows = np.concatenate([problems.prompts, proposal.labels], axis=1)[keep]
            assert plain_labels(voters, prompts, length + 3, rule, lengths, threshold) == decode(rows)
            kept[rule] += keep.sum()
    assert 0 < kept["mv_length"] <= kept["mv"] < kept["none"] == 3 * ITEMS


@pytest.mark.parametrize("voters", [1, 2, 3, 5])
def test_votes_are_the_same(voters):
    """Counted one by one or all at once: the same winner with the same votes, ties included."""
    answers = np.random.default_rng(voters).integers(0, 3, (voters, 2_000, 1), dtype=np.uint8)
    proposal = propose(answers)
    plain = plain_vote([decode(answer) for answer in answers])
    assert [label for label, _ in plain] == decode(proposal.labels)
    assert [votes for _, votes in plain] == proposal.votes.tolist()


@pytest.mark.parametrize("name", [name for name in TASKS if not name.startswith("large_")])  # slow to write
def test_lines_are_right_and_of_the_same_distribution(name):
    """Every line is right; lengths and digits are as frequent as in the fast base data."""
    task = TASKS[name]
    count, near = (3_000, 0.06) if isinstance(task, MazeTask) else (20_000, 0.02)
    longest = task.shortest + 3
    lines = plain_base_data(task, longest, count, random.Random(0))
    rows = make_base_data(task, longest, count, np.random.default_rng(0))
    for line in lines:
        prompt, answer = line.split("=")
        operands = prompt.split("+")
        assert PLAIN_ANSWERS[name](*operands) + "$" == answer
        assert isinstance(task, MazeTask) or 1 <= len(operands[-1]) <= longest
        assert task.leading is None or all(
            len(operand) == 1 or operand[task.leading] != "0" for operand in operands
        )
    tokens = [encode(part, task.vocab_size) for part in (lines, decode(rows))]
    symbols = [np.bincount(part[part != PAD], minlength=66) / count for part in tokens]
    assert (
        np.abs(symbols[0] - symbols[1]).max() < 0.03 * symbols[0].max()
    )  # a digit occurs about once a line: standard error 0.007
    lengths = [
        np.bincount([len(line) for line in part], minlength=100) / count for part in (lines, decode(rows))
    ]
    assert np.abs(lengths[0] - lengths[1]).max() < near and (lengths[0] > 0).sum() == (lengths[1] > 0).sum()


@pytest.mark.parametrize("digits", [20, 60])
def test_sums_agree_with_the_arrays(digits):
    """Python's integers and column addition agree far beyond 64 bits."""
    problems = make_problems(TASKS["reverse_addition"], digits, 200, np.random.default_rng(digits))
    for prompt, answer in zip(decode(problems.prompts), decode(problems.answers), strict=True):
        assert PLAIN_ANSWERS["reverse_addition"](*prompt[:-1].split("+")) + "$" == answer


def test_an_eighth_is_held_out():
    """Seven of eight prompts may be trained on; the others never are."""
    task, source = TASKS["copy"], random.Random(0)
    seen = {plain_line(task, [4], source)[:4] for _ in range(100_000)}  # ten times as many as there are
    assert 0.86 < len(seen) / 10_000 < 0.89
    assert (
        len({plain_line(task, [3], source)[:3] for _ in range(20_000)}) == 1_000
    )  # short prompts are shared


def test_mixture_has_the_same_shares():
    """Repeating lines comes to the shares that the fast way samples with."""
    base, rounds, lengths = ["b"] * 8_000, [["r"] * 150, ["s"] * 200, ["n"] * 100], 8
    lines = plain_mixture(base, rounds, lengths)
    shares = {line: lines.count(line) / len(lines) for line in set(lines)}
    total = lengths + 2
    wanted = {"b": lengths / total / 2, "r": 1 / total / 2, "s": 1 / total / 2, "n": 0.5}
    assert {line: pytest.approx(share, abs=0.01) for line, share in wanted.items()} == shares


def test_optimizer_has_the_same_settings():
    """Only matrices are decayed; the moments are those of the configuration."""
    config = TrainConfig(10, 1, 2, 4, 1e-3)
    matrices, vectors = plain_optimizer(new_model(), config).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (config.weight_decay, 0.0)
    assert all(
        group["betas"] == (config.beta1, config.beta2) and group["eps"] == config.epsilon
        for group in (matrices, vectors)
    )


def test_a_round_with_nothing_kept_goes_on(trained):
    """A rule that keeps nothing leaves the base data; the voters are trained and measured all the same."""
    task, base, (model, _) = trained
    voter, rounds = GPT(model.config, torch.Generator()), []
    voter.load_state_dict(model.state_dict())
    _, prompts, truths = texts_of(task, 2, 50)
    training, tests, source = TrainConfig(2, 0, 2, 16, 1e-3), {2: (prompts, truths)}, random.Random(0)
    settings = (task, 12, 3, 20, "mv_length", 1.0, training)
    counts = plain_round([voter], decode(base[::10]), rounds, *settings, tests, 4, source)
    assert all(len(line) >= 12 for line in rounds[0]) and set(counts[0]) == {2} and 0 <= counts[0][2] <= 50
