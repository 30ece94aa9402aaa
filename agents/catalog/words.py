"""Words: what people type into a search, as an FTS5 expression in which nothing they type means anything special."""

from agents.catalog.errors import Impossible
from agents.catalog.index_words import is_of_a_word, searchable

WORDS = 32
"""In one search at most."""


def expression(text: str) -> str | None:
    """Every word of `text`, as the beginning of a word, has to be there; None for no text at all. Raises Impossible
    (bad-query) for too many words.

    Whatever is no letter, digit or symbol only separates words, as it does in what is searched: text of nothing else
    finds nothing. So do ASCII's own symbols, which stand between the words of file names.
    """
    words = text.replace("\0", " ").split()
    if len(words) > WORDS:
        raise Impossible("bad-query", f"A search has {WORDS} words at most.")
    if not words:
        return None
    # A phrase without a word in it would be ignored between others, as it should be, but find nothing by itself.
    phrases = [phrase for phrase in map(searchable, words) if any(map(is_of_a_word, phrase))]
    return " ".join('"' + phrase.replace('"', '""') + '"*' for phrase in phrases) or '""'
