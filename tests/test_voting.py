"""Voting, held against a plain count of whole answers, and the damage that is done to labels on purpose."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from si_nb.loop.voting import KEEP_RULES, LENGTH_RULES, label_quality, propose, wrong_agreement
from si_nb.problems.noise import NOISE_KINDS, damage_labels
from si_nb.problems.tasks import label_length
from si_nb.problems.tokenizer import END, PAD, decode, encode


@st.composite
def ballots(draw):
    """Answers (K, N, width) of few different kinds, so that voters agree often:
    digits, some of them ended and padded.
    """
    voters, items, width = draw(st.integers(1, 6)), draw(st.integers(0, 12)), draw(st.integers(1, 5))
    answers = draw(arrays(np.uint8, (voters, items, width), elements=st.sampled_from([0, 1])))
    ends = draw(arrays(np.int64, (voters, items), elements=st.integers(0, width)))[..., None]
    columns = np.arange(width)
    return np.where(columns < ends, answers, np.where(columns == ends, END, PAD)).astype(np.uint8)


@settings(deadline=None)
@given(ballots())
def test_the_plurality_is_proposed(answers):
    """The label is the most frequent whole answer, the lowest-numbered voter's among equals,
    with its number of votes.
    """
    proposal = propose(answers)
    assert proposal.answers is answers and proposal.labels.dtype == np.uint8
    for item, (label, votes) in enumerate(zip(proposal.labels, proposal.votes, strict=True)):
        given_answers = [tuple(answer) for answer in answers[:, item]]
        most = max(Counter(given_answers).values())
        first = next(answer for answer in given_answers if given_answers.count(answer) == most)
        assert tuple(label) == first and votes == most


@settings(deadline=None)
@given(
    ballots(),
    st.sampled_from([0.2, 1 / 3, 0.5, 0.6, 2 / 3, 0.8, 1.0]),
    st.sets(st.integers(0, 5), max_size=3),
)
def test_keep_rules(answers, threshold, lengths):
    """Each rule keeps exactly what its definition says:
    everything, possible lengths, enough votes, or both of these.
    """
    proposal, lengths = propose(answers), tuple(lengths)
    kept = {name: rule.keep(proposal, lengths, threshold).tolist() for name, rule in KEEP_RULES.items()}
    texts = decode(proposal.labels)
    possible = ["$" in text and text.index("$") in lengths for text in texts]
    agreed = [
        round(1000 * votes / len(proposal.answers)) >= round(1000 * threshold) for votes in proposal.votes
    ]
    assert kept["none"] == kept["oracle"] == kept["truth"] == [True] * len(texts)
    assert kept["length_filter"] == possible and kept["mv"] == agreed
    assert kept["mv_length"] == [both and also for both, also in zip(possible, agreed, strict=True)]


@settings(deadline=None)
@given(ballots(), st.sets(st.integers(0, 5), max_size=3))
def test_length_rules(answers, lengths):
    """A label passes when it ends and the task knows its length, or when it ends and is at most one shorter
    than the longest of all that end.
    """
    labels, lengths = propose(answers).labels, tuple(lengths)
    assert LENGTH_RULES["possible"](labels, lengths) == lengths
    texts = decode(labels)
    longest = max((text.index("$") for text in texts if "$" in text), default=0)
    near = np.isin(label_length(labels), LENGTH_RULES["near_longest"](labels, lengths)).tolist()
    assert near == ["$" in text and text.index("$") >= longest - 1 for text in texts]


@settings(deadline=None)
@given(ballots(), st.data())
def test_the_truth_is_written_whatever_was_answered(answers, data):
    """All problems are kept with their true answers, also where these are narrower than what was answered."""
    width = data.draw(st.integers(1, answers.shape[2]))
    truth = data.draw(arrays(np.uint8, (answers.shape[1], width), elements=st.sampled_from([2, 3])))
    rule, proposal = KEEP_RULES["truth"], propose(answers)
    written = rule.write(proposal, truth)
    assert decode(written.labels) == decode(truth) and written.labels.shape == proposal.labels.shape
    assert rule.choose(written, (), 1.0, truth).all() and written.answers is answers
    assert all(KEEP_RULES[name].write(proposal, truth) is proposal for name in ("none", "mv", "oracle"))


@pytest.mark.parametrize(
    "voters, threshold, needed",
    [(5, 0.6, 3), (5, 0.8, 4), (5, 1.0, 5), (3, 2 / 3, 2), (3, 1.0, 3), (4, 0.5, 2), (3, 0.6, 2)],
)
def test_thresholds_are_not_lost_to_rounding(voters, threshold, needed):
    """3 of 5 is 0.6 although 0.6 * 5 is not 3 in binary: exactly the votes from `needed` on are kept."""
    for votes in range(1, voters + 1):
        answers = encode([f"{0 if voter < votes else voter}$" for voter in range(voters)])[:, None]
        assert KEEP_RULES["mv"].keep(propose(answers), (1,), threshold)[0] == (votes >= needed)


@settings(deadline=None)
@given(ballots(), st.data())
def test_counts_against_the_truth(answers, data):
    """phi, psi, label accuracy and agreement among wrong voters equal counts made one by one."""
    voters, items, _ = answers.shape
    truth = answers[data.draw(st.integers(0, voters - 1))]
    right = (answers == truth).all(axis=2)
    proposal = propose(answers)
    proposed_right = (proposal.labels == truth).all(axis=1)
    kept = data.draw(arrays(bool, items))
    pairs = list(zip(proposed_right.tolist(), kept.tolist(), strict=True))
    assert label_quality(proposal, proposed_right, kept) == {
        "label_kept": (pairs.count((True, True)), sum(kept)),
        "kept_right": (pairs.count((True, True)), sum(proposed_right)),
        "kept_wrong": (pairs.count((False, True)), items - sum(proposed_right)),
    }
    both_wrong = [
        (tuple(answers[a, item]), tuple(answers[b, item]))
        for a, b in combinations(range(voters), 2)
        for item in range(items)
        if not right[a, item] and not right[b, item]
    ]
    assert wrong_agreement(answers, right) == (sum(a == b for a, b in both_wrong), len(both_wrong))


def is_part(short, whole):
    """Whether one text is another with symbols left out."""
    rest = iter(whole)
    return all(symbol in rest for symbol in short)


@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="0123456789", min_size=1, max_size=8), min_size=1, max_size=8), st.booleans()
)
def test_damage_does_what_its_name_says(texts, ended):
    """Moved raises the last three digits by one, fixed makes zeros of them, dropped leaves them out, thinned
    some of them, perturbed moves some by one at most; uniform changes digits only; unended labels stay whole.
    """
    labels = encode([text + "$" * ended for text in texts])
    damaged = {
        kind: decode(damage_labels(labels, 1.0, kind, np.random.default_rng(0))) for kind in NOISE_KINDS
    }
    for position, text in enumerate(texts):
        raised = text[:-3] + "".join(str((int(digit) + 1) % 10) for digit in text[-3:])
        shorter = text[:-3] if len(text) > 3 else text[:1]
        assert damaged["moved"][position] == (raised + "$" if ended else text)
        assert damaged["dropped"][position] == (shorter + "$" if ended else text)
        both = shorter[:-3] + "".join(str((int(digit) + 1) % 10) for digit in shorter[-3:])
        assert damaged["dropped_and_moved"][position] == (both + "$" if ended else text)
        zeros = text[:-3] + "0" * len(text[-3:])
        assert damaged["fixed"][position] == (zeros + "$" if ended else text)
        thinned, perturbed = damaged["thinned"][position], damaged["perturbed"][position]
        assert thinned[: max(1, len(text) - 3)] == text[: max(1, len(text) - 3)]
        assert is_part(thinned, text + "$" * ended) and thinned.endswith("$") == ended
        assert perturbed[:-4] == (text + "$" * ended)[:-4] and len(perturbed) == len(text) + ended
        assert all(abs(ord(a) - ord(b)) <= 1 for a, b in zip(perturbed, text, strict=False))
        assert ended or thinned == perturbed == text
        uniform = damaged["uniform"][position]
        assert (
            len(uniform) == len(text) + ended
            and uniform.endswith("$") == ended
            and uniform[: len(text)].isdigit()
        )


@pytest.mark.parametrize("kind", NOISE_KINDS)
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_the_damaged_fraction(kind, fraction):
    """About the given fraction of labels is changed, the others not in one token, and a seed decides which.

    Perturbed digits move by -1, 0 or 1 and not beyond 0 or 9, so each stays with chance 0.4: of labels with
    one, two or three of them, equally often, 0.208 stay as they were.
    """
    rng = np.random.default_rng(0)
    labels = np.concatenate(
        [rng.integers(0, 10, (5_000, 12), dtype=np.uint8), np.full((5_000, 1), END, dtype=np.uint8)], axis=1
    )
    damaged, again = (damage_labels(labels, fraction, kind, np.random.default_rng(1)) for _ in range(2))
    changed = (damaged != labels).any(axis=1).mean()
    expected = fraction * (1 - (0.4 + 0.4**2 + 0.4**3) / 3 if kind == "perturbed" else 1)
    assert abs(changed - expected) < 0.03 and (damaged == again).all() and damaged.dtype == np.uint8
    assert changed == fraction or 0 < fraction < 1 or kind in ("perturbed", "fixed")


def test_the_length_of_a_label():
    """Digits before the first end mark; -1 where there is none."""
    assert label_length(encode(["", "$", "1$", "12", "1$2$"])).tolist() == [-1, 0, 1, -1, 1]
