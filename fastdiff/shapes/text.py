"""Words: a CLIP tokenizer with a small vocabulary, and stage 2, the text encoder.

CLIP's attention is causal: the token 'red' cannot know that 'above a blue square' follows.  What
comes after the prompt can, so prompts are padded to 16 tokens, and the text encoder is taught first
what the denoising network will need.  For each place p of a picture (centre, left, right, top,
bottom), with a colour and a shape there or nothing:

    mean over tokens, channels 10 p .. 10 p + 9  =  one-hot colour (6), one-hot shape (4);
                      the other channels         =  0
    token 11 + p                                ->  colour and shape, by two linear heads

The first makes sense even of an attention that looks at all tokens alike, as it does before it is
trained (tried without: after 1,100 steps attention was still even, and colours unbound); the second
gives it something to look for.  The heads are thrown away afterwards.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from fastdiff.shapes import checkpoint
from fastdiff.shapes.networks import PROMPT_LENGTH, build_text_encoder
from fastdiff.shapes.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    Scene,
    held_out,
    one_object_scenes,
    two_object_scenes,
)

PLACES = ("centre", "left", "right", "top", "bottom")
FIRST_PLACE = PROMPT_LENGTH - len(PLACES)
WORDS = ("a", *" ".join(RELATIONS).split(), *COLOURS, *SHAPES)


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token numbers and byte-pair merges: all bytes, then one token for each of our words."""
    letters = list(bytes_to_unicode().values())
    tokens = letters + [f"{c}</w>" for c in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:  # what the merges so far make of this word
            parts = _merge(parts, pair)
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            merges.append(pair)
            tokens.append("".join(pair))
            parts = _merge(parts, pair)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def build_tokenizer() -> CLIPTokenizer:
    """A real CLIPTokenizer: our words are one token each, any other text is spelled in bytes."""
    vocab, merges = vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=PROMPT_LENGTH)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """tokenizer.json, and vocab.json with merges.txt for readers that want those."""
    tokenizer.save_pretrained(folder)
    vocab, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Prompts to (B, 16) token numbers, as StableDiffusionPipeline does it."""
    out = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=PROMPT_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = out.input_ids
    return ids


def place_labels(scene: Scene | None) -> tuple[list[int], list[int]]:
    """For each place: index of the colour and of the shape there; one past the last means
    nothing."""
    colours, shapes = [len(COLOURS)] * len(PLACES), [len(SHAPES)] * len(PLACES)
    if scene is not None:
        where = [PLACES.index("centre")]
        if scene.relation is not None:
            k = RELATIONS.index(scene.relation)  # left of, right of, above, below
            where = [1 + k, 1 + (k ^ 1)]
        for place, thing in zip(where, scene.things, strict=True):
            colours[place] = list(COLOURS).index(thing.colour)
            shapes[place] = SHAPES.index(thing.shape)
    return colours, shapes


class PlaceHeads(nn.Module):
    """Read colour and shape linearly off the last five tokens; only used in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.shape = nn.Linear(width, len(SHAPES) + 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 16, width) to logits (B, 5, 7) of colour and (B, 5, 5) of shape."""
        last = tokens[:, FIRST_PLACE:]
        return self.colour(last), self.shape(last)


def codes(labels: Tensor) -> Tensor:
    """Labels (B, 2, 5) to what the mean token has to be in its first 50 channels, (B, 50)."""
    colour = F.one_hot(labels[:, 0], len(COLOURS) + 1)[..., :-1]
    shape = F.one_hot(labels[:, 1], len(SHAPES) + 1)[..., :-1]
    return torch.cat([colour, shape], -1).flatten(1).float()


@torch.no_grad()
def _accuracy(encoder: CLIPTextModel, ids: Tensor, labels: Tensor) -> float:
    """Share of prompts whose mean token says in every place what stands there."""
    code = codes(labels)
    mean = encoder(ids).last_hidden_state.mean(1)[:, : code.shape[1]]
    return float(((mean - code).abs() < 0.5).all(1).float().mean())


def train(folder: Path, *, steps: int = 700, seed: int = 0, batch: int = 128) -> CLIPTextModel:
    """Teach the last five tokens what stands where; the held-back scenes stay unseen."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(len(tokenizer), tokenizer.eos_token_id)
    heads = PlaceHeads(encoder.config.hidden_size)
    nn.init.constant_(encoder.final_layer_norm.weight, 3.0)  # room for a mean that says something
    two = two_object_scenes()
    scenes: list[Scene | None] = [None, *one_object_scenes(), *(s for s in two if not held_out(s))]
    unseen = [s for s in two if held_out(s)]
    prompts = ["" if s is None else s.prompt for s in scenes]
    short = [p.replace("a ", "") for p in prompts]  # people leave articles out
    ids = torch.stack([tokenize(tokenizer, prompts), tokenize(tokenizer, short)])
    labels = torch.tensor([place_labels(s) for s in scenes])
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    code = F.pad(codes(labels), (0, encoder.config.hidden_size - 10 * len(PLACES)))
    started = time.time()
    for _ in tqdm(range(steps), desc="text"):
        row = torch.from_numpy(rng.integers(0, len(scenes), batch))
        row[: batch // 16] = torch.from_numpy(rng.integers(0, 25, batch // 16))
        form = torch.from_numpy((rng.random(batch) < 0.2).astype(np.int64))
        tokens = encoder(ids[form, row]).last_hidden_state
        colour, shape = heads(tokens)
        error = tokens.mean(1) - code[row]
        loss = (
            F.cross_entropy(colour.flatten(0, 1), labels[row, 0].flatten())
            + F.cross_entropy(shape.flatten(0, 1), labels[row, 1].flatten())
            + error.square().sum(1).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    encoder.eval()
    checkpoint.log(
        folder,
        "text",
        steps=steps,
        seed=seed,
        minutes=round((time.time() - started) / 60, 2),
        loss=loss.item(),
        right_seen=_accuracy(encoder, ids[0], labels),
        right_unseen=_accuracy(
            encoder,
            tokenize(tokenizer, [s.prompt for s in unseen]),
            torch.tensor([place_labels(s) for s in unseen]),
        ),
    )
    checkpoint.save(folder / "text.pt", encoder.state_dict())
    return encoder
