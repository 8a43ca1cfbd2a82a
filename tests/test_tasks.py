"""Problems: right answers at any length, splits that share nothing, and arrays that stay small."""

import hashlib
import itertools
import re
import tracemalloc

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from si_nb.problems.maze import draw_trees, shortest_paths
from si_nb.problems.tasks import (
    SPLITS,
    TASKS,
    UNSPLIT_DIGITS,
    MazeTask,
    add_reversed,
    is_right,
    make_base_data,
    make_problems,
    maze_by_hops,
    multiply_digit,
    problem_class,
)
from si_nb.problems.tokenizer import PAD, decode, encode

LENGTHS = (1, 2, 3, 5, 9, 18, 19, 20, 33, 64, 100)  # 18 to 20 digits is where 63 and 64 bits end
MAZES = [name for name, task in TASKS.items() if isinstance(task, MazeTask)]
WRITTEN = [name for name in TASKS if name not in MAZES]  # in digits


def lengths_of(name, *wanted):
    """Those of the wanted lengths that a task has; at least its shortest."""
    there = [length for length in wanted if TASKS[name].fits(length, 10**9)]
    return there or [TASKS[name].shortest]


def plain_steps(left, right):
    """Multiplication step by step with Python's integers: what is added, and the product so far."""
    number, steps = int(left[::-1]), []
    for place in range(len(right)):
        width = len(left) + place + 1
        if place:
            steps.append(f"{number * int(right[place]) * 10**place:0{width}d}")
        steps.append(f"{number * int(right[: place + 1][::-1]):0{width}d}")
    return "+".join(step[::-1] for step in steps)


def plain_answer(name, prompt):
    """The answer to a prompt, computed from its text with Python's own strings and integers."""
    operands = prompt.removesuffix("=").split("+")
    if name == "reverse_addition":
        return str(sum(int(operand[::-1]) for operand in operands))[::-1] + "$"
    if name.startswith("forward_addition"):
        digits = 0 if name.endswith("unpadded") else max(map(len, operands)) + 1
        return format(sum(map(int, operands)), f"0{digits}d") + "$"
    if name == "string_reversal_of_pairs":
        return "+".join("".join(reversed(operand)) for operand in operands) + "$"
    if name == "parity":
        return "01"[len(re.findall("[13579]", operands[0])) % 2] + "$"
    if name.startswith("multiplication"):
        return plain_steps(*operands) + "$"
    return {"copy": operands[0], "reverse": operands[0][::-1]}[name] + "$"


def generator(*seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", WRITTEN)
def test_answers_agree_with_plain_python(name):
    """Every task's answers, at every length and in every split, are those of a plain implementation."""
    grows = name.startswith("multiplication")  # with the square of the length
    for length in LENGTHS[:8] if grows else LENGTHS:
        for split in SPLITS:
            problems = make_problems(TASKS[name], length, 100, generator(length), split)
            prompts, answers = map(decode, problems)
            assert answers == [plain_answer(name, prompt) for prompt in prompts]
            assert {tuple(map(len, prompt[:-1].split("+"))) for prompt in prompts} == {
                TASKS[name].operand_lengths(length)
            }
            assert {len(answer) - 1 for answer in answers} <= set(TASKS[name].answer_lengths(length))
            assert (
                problems.prompts.shape == (100, TASKS[name].prompt_width(length))
                and problems.prompts.dtype == np.uint8
            )
            assert problems.prompts.shape[1] + problems.answers.shape[1] == TASKS[name].width(length)


@pytest.mark.parametrize("name", WRITTEN)
def test_base_data_agrees_with_plain_python(name):
    """Base examples of unequal operand lengths are right too, and all lengths occur about equally often."""
    texts = decode(make_base_data(TASKS[name], 6, 3_600, generator(0)))
    prompts = [text[: text.index("=") + 1] for text in texts]
    assert texts == [prompt + plain_answer(name, prompt) for prompt in prompts]
    lengths = [tuple(map(len, prompt[:-1].split("+"))) for prompt in prompts]
    counts = np.array([lengths.count(group) for group in sorted(set(lengths))])
    groups = 6 if TASKS[name].curriculum else 6 ** TASKS[name].operands
    expected = 3_600 / groups
    assert len(counts) == groups and (abs(counts - expected) < 6 * expected**0.5).all()


def test_pairs_of_lengths_go_shell_by_shell():
    """Every pair has one place, mirror images are neighbours, and a shell ends with its square."""
    places = [TASKS["multiplication_by_pairs"].operand_lengths(place) for place in range(1, 401)]
    assert sorted(places) == sorted(itertools.product(range(1, 21), repeat=2))
    for side in range(1, 21):
        shell = places[(side - 1) ** 2 : side**2]
        assert {max(pair) for pair in shell} == {side} and shell[-1] == (side, side)
        assert all(one == other[::-1] for one, other in zip(shell[:-1:2], shell[1:-1:2], strict=True))
        assert [min(pair) for pair in shell] == sorted(min(pair) for pair in shell)


DIGITS = st.text("0123456789", min_size=1, max_size=30)
NUMBERS = st.integers(0, 10**30 - 1).map(str)  # with the leading digit first


def solved(name, *operands):
    """The text of a task's answer to one problem."""
    answers, used = TASKS[name].solve(*(encode([operand]) for operand in operands))
    assert answers.dtype == np.uint8 and used[0] in TASKS[name].possible_lengths(*map(len, operands))
    return decode(answers[:, : used[0]])[0]


@pytest.mark.parametrize("name", TASKS)
def test_the_exponent_of_size_is_how_digits_grow(name):
    """From length 40 to 160 the digits of a prompt grow as the length to the power that the task states."""
    task = TASKS[name]
    if task.longest is None:
        digits = [np.mean([sum(task.operand_lengths(n + i)) for i in range(-9, 10)]) for n in (40, 160)]
        assert abs(np.log(digits[1] / digits[0]) / np.log(4) - task.size_exponent) < 0.05
    else:
        assert task.size_exponent == 1  # hops or nodes


@given(NUMBERS, NUMBERS)
def test_forward_sums_are_those_of_integers(left, right):
    """Any two numbers: both forms are the integer sum, and they differ in the zero in front alone."""
    padded, unpadded = (solved(f"forward_addition{form}", left, right) for form in ("", "_unpadded"))
    assert int(padded) == int(left) + int(right) and len(padded) == max(len(left), len(right)) + 1
    assert unpadded == str(int(left) + int(right)) == padded.removeprefix("0")


@given(NUMBERS, NUMBERS)
def test_forward_and_reversed_sums_mirror_each_other(left, right):
    """The unpadded sum, read backwards, is the reversed sum of the operands read backwards."""
    assert solved("reverse_addition", left[::-1], right[::-1])[::-1] == solved(
        "forward_addition_unpadded", left, right
    )


@given(DIGITS, DIGITS)
def test_pairs_of_strings(left, right):
    """Each string of a pair is reversed in its place; doing it twice gives the pair back."""
    once = solved("string_reversal_of_pairs", left, right)
    assert once == f"{left[::-1]}+{right[::-1]}"
    assert solved("string_reversal_of_pairs", *once.split("+")) == f"{left}+{right}"


@given(DIGITS, DIGITS)
def test_parity_of_digits(left, right):
    """Parity is that of the digit sum, adds up over parts and does not depend on the order."""
    parity = solved("parity", left)
    assert parity == str(sum(map(int, left)) % 2)
    assert int(solved("parity", left + right)) == int(parity) ^ int(solved("parity", right))
    assert solved("parity", left[::-1]) == parity


@given(st.integers(0, 10**12 - 1), st.integers(0, 10**12 - 1))
def test_products_in_steps(left, right):
    """Every second step is a partial product, the others are sums so far; the last is the product."""
    steps = solved("multiplication", str(left)[::-1], str(right)[::-1]).split("+")
    numbers = [int(step[::-1]) for step in steps]
    partial, sums = [numbers[0], *numbers[1::2]], numbers[::2]
    digits = str(right)[::-1]
    assert partial == [left * int(digit) * 10**place for place, digit in enumerate(digits)]
    assert sums == [sum(partial[: count + 1]) for count in range(len(digits))] and sums[-1] == left * right


@given(DIGITS, DIGITS)
def test_products_of_any_digits(left, right):
    """Leading zeros and any lengths: the steps are those of a plain implementation."""
    assert solved("multiplication", left, right) == plain_steps(left, right)


@given(DIGITS, st.sampled_from("0123456789"))
def test_a_number_times_a_digit(number, digit):
    """Carries run through the whole number: 99...9 times 9 as well."""
    product = multiply_digit(encode([number, "9" * len(number)]), encode([digit, "9"])[:, 0])
    expected = int(number[::-1]) * int(digit), int("9" * len(number)) * 9
    assert [int(text[::-1]) for text in decode(product)] == list(expected)


def test_a_sum_of_a_batch_is_the_sum_of_each_row():
    """A row's answer does not depend on the rows beside it, though their lengths differ."""
    problems = make_problems(TASKS["forward_addition_unpadded"], 5, 500, generator(0))
    operands = problems.prompts[:, :5], problems.prompts[:, 6:11]
    together, used = TASKS["forward_addition_unpadded"].solve(*operands)
    assert set(used) == {5, 6}
    for row in range(0, 500, 7):
        alone, length = TASKS["forward_addition_unpadded"].solve(
            *(operand[row : row + 1] for operand in operands)
        )
        assert length[0] == used[row] and (alone[0, : length[0]] == together[row, : length[0]]).all()


@pytest.mark.parametrize("left, right", [(1, 7), (7, 1), (19, 20), (64, 3), (120, 120)])
def test_sums_of_unequal_lengths(left, right):
    """Column addition equals Python's integers for any pair of lengths, leading zeros included."""
    rng = generator(left, right)
    digits = [rng.integers(0, 10, (200, length), dtype=np.uint8) for length in (left, right)]
    total, used = add_reversed(*digits)
    for row, count, *operands in zip(total, used, *digits, strict=True):
        numbers = [int("".join(map(str, operand[::-1]))) for operand in operands]
        assert int("".join(map(str, row[::-1]))) == sum(numbers)
        assert (row[count:] == 0).all() and count in (max(left, right), max(left, right) + 1)


@pytest.mark.parametrize("carry", [True, False])
def test_the_longest_carry(carry):
    """A carry may run through every digit: 99...9 + 1."""
    left = np.full((1, 90), 9, dtype=np.uint8)
    right = np.array([[int(carry)]], dtype=np.uint8)
    total, used = add_reversed(left, right)
    assert used[0] == 90 + carry and decode(total[:, : used[0]])[0] == str(10**90 - 1 + carry)[::-1]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [2, 3, 4, 5, 8, 30])
def test_splits_share_nothing(name, length):
    """No evaluation or selection problem is ever drawn for another split, wherever the split applies."""
    if not TASKS[name].fits(length, 10**9):
        length = TASKS[name].shortest
    count = 4_000 if TASKS[name].width(length) < 500 else 100
    prompts = {
        split: set(decode(make_problems(TASKS[name], length, count, generator(length), split).prompts))
        for split in SPLITS
    }
    if name not in MAZES and sum(TASKS[name].operand_lengths(length)) <= UNSPLIT_DIGITS:
        assert prompts["train"] & prompts["evaluate"]  # too few problems to leave some out
    else:
        assert sum(map(len, prompts.values())) == len(set.union(*prompts.values()))


@pytest.mark.parametrize("name", TASKS)
def test_base_data_holds_no_evaluation_problem(name):
    """Base examples come from the training split in every combination of operand lengths that is split."""
    longest = TASKS[name].shortest + 4
    texts = decode(make_base_data(TASKS[name], longest, 20_000, generator(1)))
    prompts = {text[: text.index("=") + 1] for text in texts}
    split = [prompt for prompt in prompts if sum(symbol.isalnum() for symbol in prompt) > UNSPLIT_DIGITS]
    by_width = {width: [prompt for prompt in split if len(prompt) == width] for width in set(map(len, split))}
    assert len(split) > 1_000
    for same_width in by_width.values():
        assert (problem_class(encode(same_width, TASKS[name].vocab_size)) >= SPLITS["train"][0]).all()


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_decides_the_problems(name):
    """The same generator state gives the same problems, another one gives others."""
    length = lengths_of(name, 11)[0]
    first, again, other = (make_problems(TASKS[name], length, 50, generator(seed)) for seed in (1, 1, 2))
    assert (
        all((a == b).all() for a, b in zip(first, again, strict=True))
        and (first.prompts != other.prompts).any()
    )
    longest = TASKS[name].shortest + 3
    base, base_again = (make_base_data(TASKS[name], longest, 500, generator(3)) for _ in range(2))
    assert (base == base_again).all()


@pytest.mark.parametrize("name", ["copy", "reverse_addition"])
def test_two_million_base_examples_fit(name):
    """The full-size base data are made in less than 150 MB, temporary arrays included."""
    tracemalloc.start()
    try:
        tokens = make_base_data(TASKS[name], 10, 2_000_000, generator(0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(tokens) == 2_000_000 and tokens.nbytes < peak < 150e6


def test_a_label_is_right_only_as_a_whole():
    """One wrong digit, a missing or an early end, or anything after the end makes a label wrong."""
    answers = encode(["123$", "123$", "123$", "123$", "12$", "123$"])
    labels = encode(["123$", "124$", "1234$", "12$", "123$", "123$4"])
    assert is_right(labels, answers).tolist() == [True, False, False, False, False, False]
    assert is_right(answers, np.pad(answers, ((0, 0), (0, 3)), constant_values=PAD)).all()


@pytest.mark.parametrize("name", TASKS)
def test_few_base_examples(name):
    """With fewer examples than there are combinations of lengths, some combinations get none."""
    for count in (1, 3):
        assert make_base_data(TASKS[name], 11, count, np.random.default_rng(0)).shape == (
            count,
            TASKS[name].widest(11),
        )


FROZEN = {  # SHA-256 of many problems and of base data; measured tables rest on them
    "copy": "6132b14c98fef3d41aad3a1912dc81722d70b515380fbc1672f6161879616e89",
    "reverse": "000fc9f5a23c7844066ce1d099cf105f2637e6babb585ef03e89b9aad7a191c9",
    "reverse_addition": "bed9f86e9f2d793c4d4270b0f9b9a8344242b5c10f5d0d45fcae84d491f399bc",
}


@pytest.mark.parametrize("name", FROZEN)
def test_a_seed_gives_the_same_bytes_as_ever(name):
    """Problems and base data of the measured tasks are those that the committed tables were made with."""
    digest = hashlib.sha256()

    def take(array):
        digest.update(repr(array.shape).encode() + array.tobytes())

    for seed in (0, 1, 2):
        for length in (1, 2, 3, 4, 7, 20):
            for split in SPLITS:
                for part in make_problems(TASKS[name], length, 60, generator(seed, length), split):
                    take(part)
        take(make_base_data(TASKS[name], 6, 3_000, np.random.default_rng(seed)))
    assert digest.hexdigest() == FROZEN[name]


def graph_of(prompt):
    """Start, goal and the graph of a maze, read from its text; the graph by another library."""
    question, *told = prompt.removesuffix("=").split("+")
    return *question, nx.Graph({node: list(others) for node, *others in told}), told


@pytest.mark.parametrize("name", MAZES)
def test_mazes_are_trees_with_one_shortest_path(name):
    """At every length and in every split, the answer is the one shortest path that networkx finds."""
    task = TASKS[name]
    for length in lengths_of(name, 1, 2, 4, 5, 9, 10, 11, 26, 29, 40, 52):
        hops, nodes = task.hops or length, task.nodes or length
        for split in SPLITS:
            problems = make_problems(task, length, 40, generator(length), split)
            for prompt, answer in zip(*map(decode, problems), strict=True):
                start, goal, graph, told = graph_of(prompt)
                assert nx.is_tree(graph) and len(graph) == nodes == len(told)
                assert all(set(others) == set(graph[node]) for node, *others in told)
                assert sum(map(len, told)) == nodes + 2 * (nodes - 1)  # each edge from both ends, once
                (path,) = nx.all_shortest_paths(graph, start, goal)
                assert "".join(path) + "$" == answer and len(path) == hops + 1
            assert problems.prompts.shape[1] + problems.answers.shape[1] == task.width(length)
            assert set(task.answer_lengths(length)) == {hops + 1}


@pytest.mark.parametrize("name", MAZES)
def test_base_mazes_have_all_lengths_equally_often(name):
    """Base examples are right, from the shortest maze to the longest, and no length is rarer than others."""
    task = TASKS[name]
    texts = decode(make_base_data(task, task.shortest + 3, 2_000, generator(0)))
    lengths = []
    for text in texts:
        prompt, answer = text.split("=")
        start, goal, graph, _ = graph_of(prompt)
        assert "".join(nx.shortest_path(graph, start, goal)) + "$" == answer
        lengths.append(len(graph) if task.hops else len(answer) - 2)
    counts = np.bincount(lengths)[task.shortest :]
    assert len(counts) == 4 and (abs(counts - 500) < 6 * 500**0.5).all()


GRAPH = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda edge: edge[0] != edge[1]),
                 min_size=1, max_size=12, unique_by=frozenset)  # fmt: skip


@given(GRAPH, st.integers(0, 6), st.integers(0, 6))
def test_the_search_agrees_with_networkx_on_any_graph(edges, start, goal):
    """Circles, several pieces, several shortest paths: a path is found where there is exactly one."""
    graph = nx.Graph(edges)
    graph.add_nodes_from(range(7))
    there = nx.has_path(graph, start, goal)
    paths = list(nx.all_shortest_paths(graph, start, goal)) if there else []
    pairs = np.array([[(start, goal), *edges]], dtype=np.uint8) + 14
    found, used = shortest_paths(pairs)
    assert used[0] == (len(paths[0]) if len(paths) == 1 else 0)
    assert found[0, : used[0]].tolist() == [node + 14 for node in paths[0]][: used[0]] if paths else True


def test_dead_ends_begin_anywhere():
    """Every node off the path is joined to each earlier node about equally often, and the path is whole."""
    trees = draw_trees(2, 6, 6_000, generator(0))
    assert (trees[:, :2] == [[0, 1], [1, 2]]).all() and (trees[:, :, 1] == np.arange(1, 6)).all()
    for edge in range(2, 5):
        counts = np.bincount(trees[:, edge, 0], minlength=edge + 1)
        expected = 6_000 / (edge + 1)
        assert len(counts) == edge + 1 and (abs(counts - expected) < 6 * expected**0.5).all()


def test_places_and_letters_tell_nothing():
    """Letters and order are fair: any letter is start, goal, first node or its first neighbour."""
    problems = make_problems(maze_by_hops("small", nodes=5, names=8), 3, 8_000, generator(0))
    for column in (0, 1, 3, 4):
        counts = np.bincount(problems.prompts[:, column], minlength=22)[14:]
        assert (abs(counts - 1_000) < 6 * 1_000**0.5).all()
    first = (problems.prompts[:, 3] == problems.prompts[:, 0]).mean()
    assert abs(first - 1 / 5) < 6 * (0.16 / 8_000) ** 0.5  # the start is told first as often as any node
    told = [graph_of(prompt)[3] for prompt in decode(problems.prompts)]
    pairs = [node[1:] for nodes in told for node in nodes if len(node) == 3]
    ascending = sum(one < other for one, other in pairs) / len(pairs)
    assert abs(ascending - 1 / 2) < 6 * (0.25 / len(pairs)) ** 0.5  # two neighbours in either order


def test_vocabularies_of_digits_stay_as_they_were():
    """Models of strings and numbers know fourteen symbols, and mazes as many letters as they need."""
    assert {TASKS[name].vocab_size for name in WRITTEN} == {14}
    assert {TASKS[name].symbols for name in WRITTEN} == {range(10)}
    assert {name: TASKS[name].vocab_size for name in MAZES} == {
        "maze_by_hops": 40, "maze_by_nodes": 40, "large_maze_by_hops": 66, "large_maze_by_nodes": 66,
    }  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_a_problem_in_writing_is_the_problem(name):
    """Reading the text of a drawn problem gives its tokens and its answer back."""
    task = TASKS[name]
    for length in lengths_of(name, 1, 4, 7):
        problems = make_problems(task, length, 5, generator(length))
        for prompt, answer in zip(*map(decode, problems), strict=True):
            read = task.read(prompt)
            assert [decode(part)[0] for part in read] == [prompt, answer] and read.prompts.dtype == np.uint8


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ab",
        "ab=",
        "ab+ab+ba=x",
        "ab+b=",
        "a1+ab+ba=",
        "AB+AB+BA=",
        "ab+ab+ab+ba=",
        "ab+cd+dc=",
        "ab+ab=",
        "ab+aab+ba=",
    ],
)
def test_what_is_no_maze_is_refused(text):
    """One line with an example, whatever was typed."""
    with pytest.raises(ValueError, match="maze_by_hops is asked") as error:
        TASKS["maze_by_hops"].read(text)
    assert "\n" not in str(error.value)
