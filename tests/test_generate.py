"""Decoding: the cache and the one-pass accuracy give exactly what plain decoding gives, on models that have learned something."""
import numpy as np
import pytest
import torch

import si_nb.generate
from si_nb.generate import exact_match, generate
from si_nb.model import GPT, ModelConfig
from si_nb.tasks import TASKS, is_right, make_base_data, make_problems
from si_nb.tokenizer import END, PAD
from si_nb.trainer import Mixture, TrainConfig, train

CPU = torch.device("cpu")
ITEMS, LENGTHS = 700, (1, 2, 3, 4, 5)


@pytest.fixture(scope="module", params=TASKS)
def trained(request):
    """A task and a model that is good at its short problems and bad at longer ones."""
    task = TASKS[request.param]
    longest, steps = (3, 400) if task.operands == 1 else (2, 800)  # adding is harder than moving digits
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=64), torch.Generator().manual_seed(0))
    base = make_base_data(task, longest, 10_000, np.random.default_rng(0))
    config = TrainConfig(steps, 20, steps // 5, 64, 3e-3, loss_on="answer")
    train(model, Mixture([base], [1], CPU), config, np.random.default_rng(0))
    return task, model


def problems_of(task, length, items=ITEMS):
    return make_problems(task, length, items, np.random.default_rng(length), "evaluate")


@torch.inference_mode()
def generate_plainly(model, prompts, max_new_tokens):
    """Greedy decoding that reads everything anew for each token."""
    tokens, ended = torch.as_tensor(prompts).long(), torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(max_new_tokens):
        following = model(tokens)[:, -1].argmax(-1).masked_fill(ended, PAD)
        ended |= following == END
        tokens = torch.cat([tokens, following[:, None]], dim=1)
    return tokens[:, prompts.shape[1] :].numpy().astype(np.uint8)


def test_the_models_have_learned(trained):
    """The comparisons below mean something: right and wrong answers both occur."""
    task, model = trained
    accuracy = [exact_match(model, problems_of(task, length))[0].mean() for length in LENGTHS]
    assert max(accuracy) > 0.5 and min(accuracy) < 0.2 and any(0.02 < share < 0.98 for share in accuracy), accuracy


@pytest.mark.parametrize("batch_size", [1024, 256, 97])
def test_cache_changes_nothing(trained, batch_size):
    """Decoding with a cache, in batches that divide the items evenly or not, gives the tokens of plain decoding."""
    task, model = trained
    for length in LENGTHS:
        problems = problems_of(task, length)
        room = problems.answers.shape[1] + 2
        assert (generate(model, problems.prompts, room, batch_size) == generate_plainly(model, problems.prompts, room)).all()


def test_nothing_follows_the_end(trained):
    """Behind the end mark stands padding alone, also when the whole batch has ended before its room is used up."""
    task, model = trained
    answers = generate(model, problems_of(task, 2).prompts, 20)
    behind = (answers == END).cumsum(axis=1) - (answers == END) > 0
    assert (answers[behind] == PAD).all() and (answers[~behind] != PAD).any()
    assert answers.shape == (ITEMS, 20)


@pytest.mark.parametrize("batch_size", [1024, 97])
def test_exact_match_is_decoding(trained, batch_size):
    """One pass over prompt and truth tells of every single item whether decoding answers it right."""
    task, model = trained
    decoded_items = 0
    for length in LENGTHS:
        problems = problems_of(task, length, 2 * ITEMS)
        right, again = exact_match(model, problems, batch_size)
        answers = generate_plainly(model, problems.prompts, problems.answers.shape[1])
        assert (right == is_right(answers, problems.answers)).all()
        decoded_items += again
    assert decoded_items < 0.05 * 2 * ITEMS * len(LENGTHS)  # the point of it is not to decode


def test_exact_match_is_decoding_in_low_precision(trained):
    """The same in bfloat16, where rounding is coarse and many more items have to be decoded."""
    task, model = trained
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for length in (2, 4):
            problems = problems_of(task, length, 200)
            right, _ = exact_match(model, problems)
            answers = generate(model, problems.prompts, problems.answers.shape[1])
            assert (right == is_right(answers, problems.answers)).all()


def test_near_ties_are_decoded(trained, monkeypatch):
    """With a tolerance that makes everything a near-tie, every item is decoded, and what counts is the decoded answer."""
    task, model = trained
    problems = problems_of(task, 3)
    usual, _ = exact_match(model, problems)
    monkeypatch.setattr(si_nb.generate, "NEAR_TIE", 1e9)
    right, again = exact_match(model, problems, batch_size=300)
    assert again == ITEMS and (right == usual).all() and right.any()
    monkeypatch.setattr(si_nb.generate, "generate", lambda model, prompts, room, batch_size: np.full((len(prompts), room), PAD, dtype=np.uint8))
    assert not exact_match(model, problems)[0].any()


def test_clear_errors_are_not_decoded(trained, monkeypatch):
    """An item with a clear error is wrong whatever its near-ties would give, and costs no decoding."""
    task, model = trained
    problems = problems_of(task, 5)
    monkeypatch.setattr(si_nb.generate, "NEAR_TIE", 0.5)
    right, again = exact_match(model, problems)
    answers = generate(model, problems.prompts, problems.answers.shape[1])
    assert (right == is_right(answers, problems.answers)).all() and 0 < again < ITEMS


def test_no_items_no_answers(trained):
    """An empty batch is answered with an empty array."""
    task, model = trained
    prompts = problems_of(task, 2).prompts[:0]
    assert generate(model, prompts, 5).shape == (0, 5)
