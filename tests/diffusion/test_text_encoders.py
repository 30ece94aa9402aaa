import gzip
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from agents.diffusion.families.table import VOCABULARY_FILE
from agents.prompts.tokens import END, START, chunk_count, chunks, clip_tokenizer, clip_vocabulary
from tests.later import Later

torch, transformers, text_encoders = Later("torch"), Later("transformers"), Later("agents.diffusion.text_encoders")

TEXTS = [
    "",
    "a photo of a cat",
    "Émile's  ÜBER \n naïve\t日本語 🐈‍⬛ 123 it'll",
    "(a:1.2) [b] masterpiece!!! <lora:x:1>",
    "\x00\x01 a​b ﬁ ſ İ",
    "<|startoftext|> and <|endoftext|>",
    "antidisestablishmentarianism " * 30,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return clip_tokenizer(VOCABULARY_FILE)


@pytest.fixture(scope="module")
def reference() -> Any:
    vocabulary, merges = clip_vocabulary(VOCABULARY_FILE)
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


@pytest.fixture(scope="module")
def encoder() -> Any:
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.CLIPTextModel(config).eval()


def test_a_photo_of_a_cat_has_the_tokens_everybody_knows(tokenizer: Tokenizer) -> None:
    assert chunks(tokenizer, "a photo of a cat")[0][:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.get_vocab_size() == 49_408


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_equal_those_of_transformers(text: str, tokenizer: Tokenizer, reference: Any) -> None:
    padded = reference(text, padding="max_length", max_length=77, truncation=True).input_ids
    assert chunks(tokenizer, text)[0] == padded


@pytest.mark.parametrize(("words", "rows"), [(0, 1), (74, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_long_prompts_go_on_in_further_rows_and_lose_nothing(words: int, rows: int, tokenizer: Tokenizer) -> None:
    text = "cat " * words
    made = chunks(tokenizer, text)
    assert len(made) == chunk_count(tokenizer, text) == rows
    assert all(len(row) == 77 and row[0] == START and row[-1] == END for row in made)
    assert sum(row.count(2368) for row in made) == words


def test_prompts_of_unequal_length_are_made_equally_long(tokenizer: Tokenizer, encoder: Any) -> None:
    prompts = text_encoders.PromptEncoder(tokenizer, encoder)
    long, short = prompts.pair("cat " * 100, "a dog")
    assert long.shape == short.shape == (1, 154, 16)
    assert torch.equal(short[:, :77], prompts.one("a dog"))
    assert torch.equal(short[:, 77:], prompts.one(""))


def test_a_known_prompt_is_not_encoded_again_and_old_ones_are_forgotten(tokenizer: Tokenizer, encoder: Any) -> None:
    calls: list[int] = []
    hook = encoder.register_forward_hook(lambda *_: calls.append(1))
    prompts = text_encoders.PromptEncoder(tokenizer, encoder)
    first = prompts.one("a")
    assert prompts.one("a") is first
    assert len(calls) == 1
    for number in range(text_encoders.CACHED):
        prompts.one(f"number {number}")
    assert prompts.one("a") is not first
    hook.remove()


def test_rows_are_encoded_as_the_encoder_does_one_by_one(tokenizer: Tokenizer, encoder: Any) -> None:
    rows = chunks(tokenizer, "cat " * 80)
    with torch.no_grad():
        expected = [encoder(torch.tensor([row])).last_hidden_state for row in rows]
    assert torch.equal(text_encoders.encode_rows(encoder, rows), torch.cat(expected, dim=1))


def test_a_vocabulary_that_is_not_clips_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "short.txt.gz"
    path.write_bytes(gzip.compress(b"#version\ni n\n"))
    with pytest.raises(ValueError, match="48894"):
        clip_tokenizer(path)
