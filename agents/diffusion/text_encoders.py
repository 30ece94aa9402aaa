"""CLIP prompt encoding: rows of tokens through the text encoder, one after the other, joined along the sequence.

Rows are encoded singly, not as a batch: a prompt's embedding then never depends on what it was encoded with.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from agents.prompts.tokens import chunk_count, chunks

CACHED = 64


class PromptEncoder:
    """A tokenizer and a text encoder with the last 64 embeddings kept, on the encoder's device.

    `encoder` is a CLIPTextModel: called with ids of shape (1, 77) it returns hidden states of (1, 77, width).
    """

    def __init__(self, tokenizer: Tokenizer, encoder: Any) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._cache: OrderedDict[tuple[str, int], torch.Tensor] = OrderedDict()

    def one(self, text: str) -> torch.Tensor:
        """The embedding of one prompt: (1, 77 × rows, width)."""
        return self._embedding(text, 1)

    def pair(self, prompt: str, negative: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Both embeddings, made equally long with empty rows: twice (1, 77 × rows, width)."""
        rows = max(chunk_count(self._tokenizer, prompt), chunk_count(self._tokenizer, negative))
        return self._embedding(prompt, rows), self._embedding(negative, rows)

    def _embedding(self, text: str, at_least: int) -> torch.Tensor:
        key = (text, at_least)
        if key not in self._cache:
            self._cache[key] = encode_rows(self._encoder, chunks(self._tokenizer, text, at_least))
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


@torch.inference_mode()
def encode_rows(encoder: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of 77 ids as last hidden states, joined: (1, 77 × rows, width) in the encoder's type."""
    device = next(encoder.parameters()).device
    states = [encoder(torch.tensor([row], device=device))[0] for row in rows]
    return torch.cat(states, dim=1)
