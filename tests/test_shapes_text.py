"""Tokenizer and text encoder of the built-in model."""

import pytest
import torch
from transformers import CLIPTokenizer

from fastdiff.shapes.networks import PROMPT_LENGTH, TEXT_WIDTH, build_text_encoder
from fastdiff.shapes.scenes import COLOURS, SHAPES, parse, two_object_scenes
from fastdiff.shapes.text import (
    PLACES,
    WORDS,
    build_tokenizer,
    codes,
    place_labels,
    save_tokenizer,
    tokenize,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_every_word_is_one_token(tokenizer):
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word  # start, word, end
    numbers = {tokenizer(word).input_ids[1] for word in WORDS}
    assert len(numbers) == len(set(WORDS))


def test_every_prompt_fits_and_is_told_apart(tokenizer):
    prompts = [s.prompt for s in two_object_scenes()]
    ids = tokenize(tokenizer, prompts)
    assert ids.shape == (len(prompts), PROMPT_LENGTH)
    assert len(ids.unique(dim=0)) == len(prompts)
    # room for start, words, end and a token for each place
    assert int((ids != tokenizer.pad_token_id).sum(1).max()) + len(PLACES) < PROMPT_LENGTH


@pytest.mark.parametrize("text", ["", "zebra über café", "🙂 \x00", "a red circle " * 20])
def test_any_text_is_tokens(tokenizer, text):
    ids = tokenize(tokenizer, [text])
    assert ids.shape == (1, PROMPT_LENGTH)
    assert int(ids.max()) < len(tokenizer)


def test_saved_tokenizer_reads_the_same(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    prompts = ["a red circle left of a blue square", "unseen words", ""]
    assert tokenize(again, prompts).equal(tokenize(tokenizer, prompts))
    assert again.model_max_length == PROMPT_LENGTH
    assert (tmp_path / "vocab.json").exists()
    assert (tmp_path / "merges.txt").exists()


def test_labels_say_what_stands_where():
    scene = parse("a red circle above a blue square")
    colours, shapes = place_labels(scene)
    names = [*COLOURS, "nothing"]
    assert [names[c] for c in colours] == ["nothing", "nothing", "nothing", "red", "blue"]
    assert [[*SHAPES, "nothing"][s] for s in shapes][3:] == ["circle", "square"]
    # the same layout told from the other object has the same labels
    assert place_labels(scene.mirrored()) == (colours, shapes)
    code = codes(torch.tensor([place_labels(scene), place_labels(None)]))
    assert code.shape == (2, 50)
    assert code[0].nonzero().flatten().tolist() == [30, 36, 42, 47]
    assert code[1].count_nonzero() == 0


def test_encoder_is_causal(tokenizer):
    torch.manual_seed(0)
    encoder = build_text_encoder(len(tokenizer), tokenizer.eos_token_id).eval()
    ids = tokenize(tokenizer, ["a red circle above a blue square", "a red circle"])
    with torch.no_grad():
        out = encoder(ids)
    tokens = out.last_hidden_state
    assert tokens.shape == (2, PROMPT_LENGTH, TEXT_WIDTH)
    torch.testing.assert_close(tokens[0, :4], tokens[1, :4])  # start, a, red, circle
    assert not torch.allclose(tokens[0, 4:], tokens[1, 4:])
    # the pooled output is that of the first end token
    torch.testing.assert_close(out.pooler_output[1], tokens[1, 4])
