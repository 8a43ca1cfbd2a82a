"""Symbols and tokens: what goes in comes out, and nothing else gets in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from si_nb.problems.tokenizer import END, EQUALS, NODES, PAD, PLUS, SYMBOLS, VOCAB_SIZE, decode, encode

texts = st.lists(st.text(alphabet=SYMBOLS[:PAD], max_size=40), max_size=20)


@settings(deadline=None)
@given(texts)
def test_decode_undoes_encode(batch):
    """Every batch of texts comes back, empty texts and empty batches included."""
    tokens = encode(batch)
    assert tokens.dtype == np.uint8 and tokens.shape == (len(batch), max(map(len, batch), default=0))
    assert decode(tokens) == batch


@settings(deadline=None)
@given(texts)
def test_padding_fills_the_right(batch):
    """A row holds its text's symbols, then padding only."""
    for text, row in zip(batch, encode(batch), strict=True):
        assert [SYMBOLS[token] for token in row[: len(text)]] == list(text)
        assert (row[len(text) :] == PAD).all()


@settings(deadline=None)
@given(texts, st.characters(exclude_characters=SYMBOLS[:PAD]), st.integers(0, 20))
def test_foreign_symbols_are_refused(batch, foreign, place):
    """A character that is no symbol, the padding mark included, is an error that shows it,
    never a wrong token.
    """
    batch.insert(min(place, len(batch)), f"12{foreign}")
    with pytest.raises(ValueError) as error:
        encode(batch)
    assert repr(foreign) in str(error.value) and "\n" not in str(error.value)


graphs = st.lists(st.text(alphabet=SYMBOLS[:PAD] + NODES, max_size=40), max_size=20)


@settings(deadline=None)
@given(graphs, st.integers(VOCAB_SIZE, VOCAB_SIZE + len(NODES)))
def test_letters_come_back_where_the_vocabulary_has_them(batch, vocab_size):
    """Letters of the vocabulary come back; one beyond it is an error that shows it."""
    foreign = {letter for text in batch for letter in text if letter in NODES[vocab_size - VOCAB_SIZE :]}
    if foreign:
        with pytest.raises(ValueError) as error:
            encode(batch, vocab_size)
        assert all(repr(letter) in str(error.value) for letter in foreign)
    else:
        assert decode(encode(batch, vocab_size)) == batch


def test_the_vocabulary_is_fixed():
    """Weights on disk mean these numbers: the order of the symbols never changes."""
    assert SYMBOLS == "0123456789+=$_" and VOCAB_SIZE == 14
    letters = encode([NODES], VOCAB_SIZE + len(NODES))[0].tolist()
    assert letters == list(range(14, 66)) and NODES[0] + NODES[-1] == "aZ"
    assert (PLUS, EQUALS, END, PAD) == (10, 11, 12, 13)
