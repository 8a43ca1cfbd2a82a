"""Symbols and tokens: what goes in comes out, and nothing else gets in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from si_nb.problems.tokenizer import END, EQUALS, PAD, PLUS, SYMBOLS, VOCAB_SIZE, decode, encode

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
    for text, row in zip(batch, encode(batch)):
        assert [SYMBOLS[token] for token in row[: len(text)]] == list(text)
        assert (row[len(text) :] == PAD).all()


@settings(deadline=None)
@given(texts, st.characters(exclude_characters=SYMBOLS[:PAD]), st.integers(0, 20))
def test_foreign_symbols_are_refused(batch, foreign, place):
    """A character that is no symbol, the padding mark included, is an error that shows it, never a wrong token."""
    batch.insert(min(place, len(batch)), f"12{foreign}")
    with pytest.raises(ValueError) as error:
        encode(batch)
    assert repr(foreign) in str(error.value) and "\n" not in str(error.value)


def test_the_vocabulary_is_fixed():
    """Weights on disk mean these numbers: the order of the symbols never changes."""
    assert SYMBOLS == "0123456789+=$_" and VOCAB_SIZE == 14
    assert (PLUS, EQUALS, END, PAD) == (10, 11, 12, 13)
