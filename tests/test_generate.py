"""Decoding: the cache and the one-pass accuracy give exactly what plain decoding gives,
on models that have learned something.
"""

import numpy as np
import pytest
import torch

import si_nb.model.generate
from si_nb.model.generate import exact_match, generate
from si_nb.model.gpt import GPT, ModelConfig
from si_nb.model.positions import POSITIONAL_ENCODINGS
from si_nb.problems.tasks import TASKS, is_right, make_problems
from si_nb.problems.tokenizer import END, PAD

CPU = torch.device("cpu")
ITEMS, LENGTHS = 700, (1, 2, 3, 4, 5)


# answers of one length and of several; decoding depends on nothing else in a task, and on positions
LEARNED = [("copy", "none"), ("reverse", "none"), ("reverse_addition", "none")]
LEARNED += [("reverse_addition", "rotary"), ("copy", "learned")]


@pytest.fixture(scope="module", params=LEARNED, ids="-".join)
def trained(request, learned):
    """A task and a model that is good at its short problems and bad at longer ones."""
    return TASKS[request.param[0]], learned(*request.param)[1]


def test_every_encoding_is_tried():
    """Whatever the package can tell a model of positions is held against plain decoding below."""
    assert {encoding for _, encoding in LEARNED} == set(POSITIONAL_ENCODINGS)


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
    assert max(accuracy) > 0.5 and min(accuracy) < 0.2 and any(0.02 < share < 0.98 for share in accuracy), (
        accuracy
    )


@pytest.mark.parametrize("batch_size", [1024, 256, 97])
def test_cache_changes_nothing(trained, batch_size):
    """Decoding with a cache, in batches that divide the items evenly or not,
    gives the tokens of plain decoding.
    """
    task, model = trained
    for length in LENGTHS:
        problems = problems_of(task, length)
        room = problems.answers.shape[1] + 2
        assert (
            generate(model, problems.prompts, room, batch_size)
            == generate_plainly(model, problems.prompts, room)
        ).all()


def test_nothing_follows_the_end(trained):
    """Behind the end mark stands padding alone, also when the whole batch has ended before its room is used
    up.
    """
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


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_low_precision_decides_as_plain_decoding_does(trained, precision):
    """Accuracy in one pass and drafted answers are those of decoding in the precisions of GPUs too,
    where rounding is coarse and many more near-ties have to be decoded.
    """
    task, model = trained
    with torch.autocast("cpu", dtype=precision):
        for length in (2, 4):
            problems = problems_of(task, length, 200)
            right, _ = exact_match(model, problems)
            answers = generate(model, problems.prompts, problems.answers.shape[1])
            drafted = generate(model, problems.prompts, problems.answers.shape[1], drafts=problems.answers)
            assert (right == is_right(answers, problems.answers)).all() and (drafted == answers).all()


def test_reading_stays_on_the_models_device(monkeypatch):
    """A model that is not on the CPU makes its cache, choices and stops where it is: shown by tensors
    without data, whose every mix with the CPU's is an error.
    """
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # there is none for such tensors
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16), torch.Generator()).to("meta")
    prompts, answers = np.ones((3, 4), dtype=np.uint8), np.ones((3, 5), dtype=np.uint8)
    cache = si_nb.model.generate._make_cache(model, 3, 9)
    chosen, close = si_nb.model.generate._read(model, prompts, answers, cache)
    stop = si_nb.model.generate._follow(torch.ones_like(chosen), chosen)
    assert {chosen.device.type, close.device.type, stop.device.type} == {"meta"}
    assert chosen.shape == (3, 6) and stop.shape == (3,)
    with pytest.raises(RuntimeError, match="device"):
        si_nb.model.generate._follow(torch.ones(chosen.shape, dtype=torch.int64), chosen)


def test_near_ties_are_decoded(trained, monkeypatch):
    """With a tolerance that makes everything a near-tie, every item is decoded,
    and what counts is the decoded answer.
    """
    task, model = trained
    problems = problems_of(task, 2)
    usual, _ = exact_match(model, problems)
    monkeypatch.setattr(si_nb.model.generate, "NEAR_TIE", 1e9)
    right, again = exact_match(model, problems, batch_size=300)
    assert again == ITEMS and (right == usual).all() and right.any()
    monkeypatch.setattr(
        si_nb.model.generate,
        "generate",
        lambda model, prompts, room, batch_size: np.full((len(prompts), room), PAD, dtype=np.uint8),
    )
    assert not exact_match(model, problems)[0].any()


def test_clear_errors_are_not_decoded(trained, monkeypatch):
    """An item with a clear error is wrong whatever its near-ties would give, and costs no decoding."""
    task, model = trained
    problems = problems_of(task, 3)
    monkeypatch.setattr(si_nb.model.generate, "NEAR_TIE", 1.5)
    right, again = exact_match(model, problems)
    answers = generate(model, problems.prompts, problems.answers.shape[1])
    assert (right == is_right(answers, problems.answers)).all() and 0 < again < ITEMS


def test_no_items_no_answers(trained):
    """An empty batch is answered with an empty array."""
    task, model = trained
    prompts = problems_of(task, 2).prompts[:0]
    assert generate(model, prompts, 5).shape == (0, 5)
    assert generate(model, prompts, 5, drafts=prompts).shape == (0, 5)


def make_drafts(kind, task, answers, room):
    """Guesses of many kinds."""
    rng = np.random.default_rng(0)
    false = np.where((rng.random(answers.shape) < 0.1) & (answers < 10), (answers + 1) % 10, answers)
    ended = np.where(np.arange(answers.shape[1]) == 1, END, answers)
    return {
        "true": answers, "partly false": false.astype(np.uint8), "of another problem": answers[::-1],
        "too short": answers[:, :1],
        "empty": answers[:, :0], "ended early": ended.astype(np.uint8),
        "without an end": np.where(answers == END, 7, answers).astype(np.uint8),
        "random": rng.integers(0, 14, (len(answers), room + 3), dtype=np.uint8),
    }[kind]  # fmt: skip


KINDS = (
    "true",
    "partly false",
    "of another problem",
    "too short",
    "empty",
    "ended early",
    "without an end",
    "random",
)


@pytest.mark.parametrize("length", [2, 4])
def test_drafts_change_nothing(trained, length, monkeypatch):
    """Whatever the drafts and however many of their tokens are used,
    the answers are those of plain decoding.
    """
    task, model = trained
    monkeypatch.setattr(si_nb.model.generate, "_WORTHWHILE", 0)  # draft to the end, though it costs time
    problems = problems_of(task, length)
    for room in (problems.answers.shape[1] + 2, 1):
        plain = generate_plainly(model, problems.prompts, room)
        for kind in KINDS:
            drafted = generate(
                model, problems.prompts, room, 97, make_drafts(kind, task, problems.answers, room)
            )
            assert (drafted == plain).all(), (kind, room)


def test_true_drafts_settle_right_answers(trained, monkeypatch):
    """The point of drafts: no answer that is right is decoded, unless it is a near-tie."""
    task, model = trained
    problems, decoded = problems_of(task, 2), []
    decode_on = si_nb.model.generate._decode_on
    monkeypatch.setattr(
        si_nb.model.generate,
        "_decode_on",
        lambda model, prompts, *rest: decoded.append(len(prompts)) or decode_on(model, prompts, *rest),
    )
    answers = generate(model, problems.prompts, problems.answers.shape[1] + 1, 1024, problems.answers)
    right = int(is_right(answers, problems.answers).sum())
    assert right > 0 and sum(decoded) <= ITEMS - right


def test_near_ties_of_drafts_are_decoded_plainly(trained, monkeypatch):
    """With a tolerance that makes everything a near-tie, every answer comes from plain decoding."""
    task, model = trained
    problems, decoded = problems_of(task, 4), []
    room = problems.answers.shape[1] + 1
    plain = generate(model, problems.prompts, room)
    decode = si_nb.model.generate._decode
    monkeypatch.setattr(si_nb.model.generate, "NEAR_TIE", 1e9)
    monkeypatch.setattr(
        si_nb.model.generate,
        "_decode",
        lambda model, prompts, room: decoded.append(len(prompts)) or decode(model, prompts, room),
    )
    assert (generate(model, problems.prompts, room, drafts=problems.answers) == plain).all() and sum(
        decoded
    ) == ITEMS


def test_useless_drafts_are_given_up(trained, monkeypatch):
    """After a batch of drafts that settled little, the rest is decoded plainly."""
    task, model = trained
    problems, drafted = problems_of(task, 3), []
    settle = si_nb.model.generate._settle
    monkeypatch.setattr(
        si_nb.model.generate,
        "_settle",
        lambda model, prompts, *rest: drafted.append(len(prompts)) or settle(model, prompts, *rest),
    )
    useless = np.zeros_like(problems.answers)
    answers = generate(model, problems.prompts, 6, 100, useless)
    assert drafted == [100] and (answers == generate(model, problems.prompts, 6)).all()


@pytest.mark.slow(reason="decodes 100,000 problems of each task plainly, which takes minutes")
def test_fast_ways_are_decoding_on_many_items(trained, monkeypatch):
    """100,000 problems per task: the one-pass accuracy and drafted answers equal plain decoding without a
    cache, item by item.
    """
    task, model = trained
    monkeypatch.setattr(si_nb.model.generate, "_WORTHWHILE", 0)
    decoded = 0
    for length in LENGTHS:
        problems = problems_of(task, length, 20_000)
        room = problems.answers.shape[1] + 1
        plain = np.concatenate(
            [generate_plainly(model, prompts, room) for prompts in np.array_split(problems.prompts, 100)]
        )
        right, again = exact_match(model, problems)
        decoded += again
        assert (right == is_right(plain, problems.answers)).all()
        assert (generate(model, problems.prompts, room, drafts=problems.answers) == plain).all()
    print(f"{task.name}: {decoded} of {len(LENGTHS) * 20_000} items had to be decoded")
    assert decoded < 0.01 * len(LENGTHS) * 20_000
