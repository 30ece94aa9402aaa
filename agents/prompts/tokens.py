"""CLIP tokens: from text to the rows of 77 numbers a text encoder reads. Nothing here imports torch.

The vocabulary is CLIP's own list of byte pairs (`bpe_simple_vocab_16e6.txt.gz`), kept with the diffusion configs.
Text is taken literally: no weights, no tags.
"""

import gzip
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

VOCABULARY = 49_408
CHUNK = 75
START = 49_406
END = 49_407

_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_MERGES = VOCABULARY - 2 * 256 - len(_SPECIAL)
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def clip_tokenizer(path: str | Path) -> Tokenizer:
    """CLIP's tokenizer (49,408 tokens, no start and end added) from the gzipped list of merges at `path`; ~0.1 s.

    OSError when the file can't be read, ValueError when it is not that list.
    """
    vocabulary, merges = clip_vocabulary(path)
    tokenizer = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, unk_token=_SPECIAL[1], end_of_word_suffix="</w>", fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    return tokenizer


def clip_vocabulary(path: str | Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token to id, and the merges by rank: 256 bytes, the same at a word's end, the merges, start and end of text."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(_MERGES + 1), strict=False)][1:]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    if len(merges) != _MERGES:
        raise ValueError(f"{path} holds {len(merges)} merges instead of CLIP's {_MERGES}; install Darkroom again.")
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges), *_SPECIAL]
    return {token: number for number, token in enumerate(tokens)}, merges


def chunks(tokenizer: Tokenizer, text: str, at_least: int = 1) -> list[list[int]]:
    """Rows of 77 ids: start, 75 tokens of the text, end; what is free is filled with end. Always one row or more.

    A text of at most 75 tokens gives the one row that diffusers makes of it. A longer one goes on in the next row, as
    its users know it from A1111. `at_least` adds empty rows, so that two prompts can be made equally long.
    """
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    count = max(1, at_least, -(-len(ids) // CHUNK))
    ids += [END] * (count * CHUNK - len(ids))
    return [[START, *ids[at : at + CHUNK], END] for at in range(0, len(ids), CHUNK)]


def chunk_count(tokenizer: Tokenizer, text: str) -> int:
    """How many rows `chunks` makes of a text."""
    return max(1, -(-len(tokenizer.encode(text, add_special_tokens=False).ids) // CHUNK))


def _byte_letters() -> list[str]:
    """One printable character per byte, in the order of the vocabulary: printable bytes stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)]
