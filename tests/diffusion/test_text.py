"""Text encoding from a folder, and which words a camera is shown."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourdfy_cli.diffusion import text
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.diffusion.text import VIEW_WORDS, Texts, sayings, sector, view_word
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.nano import networks

CPU = torch.device("cpu")


def test_text_is_the_last_hidden_state(specs: dict[str, ModelSpec]) -> None:
    folder = Path(specs["image"].source)
    prompts = ["a red dog jumping", "", "a red dog jumping, front view"]
    ours = text.encode(specs["image"], prompts, CPU)
    assert ours.shape == (3, networks.TEXT_LENGTH, networks.TEXT_WIDTH)
    tokens = networks.tokenizer(folder.parent / "again")
    torch.manual_seed(0)
    encoder = networks.text_encoder(tokens)
    encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"))
    with torch.no_grad():
        theirs = encoder.eval()(networks.token_ids(tokens, prompts)).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours[0], ours[2], atol=1e-2)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_weights_of_older_and_newer_files(copied: ModelSpec, prefix: str) -> None:
    before = text.encode(copied, ["a red dog"], CPU)
    path = Path(copied.source) / "text_encoder" / "model.safetensors"
    state = {prefix + key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    state[prefix + "embeddings.position_ids"] = torch.arange(networks.TEXT_LENGTH)[None]
    save_file(state, path)
    assert torch.equal(text.encode(copied, ["a red dog"], CPU), before)


@pytest.mark.parametrize("name", ["tokenizer", "text_encoder/model.safetensors", "text_encoder/config.json"])
def test_text_without_a_file(copied: ModelSpec, name: str) -> None:
    path = Path(copied.source) / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FourdfyError) as caught:
        text.encode(copied, ["a red dog"], CPU)
    assert caught.value.code == 3


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"num_attention_heads": 7}, {"architectures": ["Mine"]}, {"hidden_size": 32}])
def test_text_encoder_that_is_wrong(copied: ModelSpec, change: dict) -> None:
    path = Path(copied.source) / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FourdfyError, match="does not describe|does not fit|Mine") as caught:
        text.encode(copied, ["a red dog"], CPU)
    assert caught.value.code == 3


def test_tokenizer_of_another_model(copied: ModelSpec) -> None:
    path = Path(copied.source) / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 8}))
    with pytest.raises(FourdfyError, match="is not the tokenizer of"):
        text.encode(replace(copied, seed=0), ["a red dog"], CPU)


def test_drawn_encoder_is_the_same_each_time(copied: ModelSpec) -> None:
    (Path(copied.source) / "text_encoder" / "model.safetensors").unlink()
    one, again, other = (text.encode(replace(copied, seed=seed), ["a red dog", "a cube"], CPU) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.allclose(one[0], one[1], atol=1e-2)
    assert not torch.allclose(one[0, 0], one[0, -1], atol=1e-2)  # positions count


@pytest.mark.parametrize(
    "azimuth, words",
    [
        *((azimuth, "front") for azimuth in (0, 44.9, -44.9, 359, 720)),
        *((azimuth, "side") for azimuth in (45, 90, 150, -45, -150)),
        *((azimuth, "back") for azimuth in (150.1, -179, 180)),
    ],
)
def test_view_words(azimuth: float, words: str) -> None:
    assert view_word(float(azimuth), 45.0, 30.0) == f"{words} view"


@pytest.mark.parametrize(
    "azimuth, words",
    [
        *((azimuth, "front") for azimuth in (0, 22, -22, 359, 720)),
        *((azimuth, "front left") for azimuth in (23, 45, 67)),
        *((azimuth, "left") for azimuth in (68, 90, -270)),
        (135, "back left"),
        *((azimuth, "back") for azimuth in (180, -180, 160)),
        *((azimuth, side) for azimuth, side in ((225, "back right"), (-90, "right"), (270, "right"), (300, "front right"))),
    ],
)
def test_sectors(azimuth: float, words: str) -> None:
    assert sector(float(azimuth)) == f"{words} view"


def test_what_a_rule_can_say() -> None:
    assert sayings(None) == () and sayings((45.0, 45.0)) == VIEW_WORDS
    assert set(sayings("sectors")) == {sector(float(azimuth)) for azimuth in range(360)} and len(sayings("sectors")) == 8


def test_texts_by_sector() -> None:
    names = ["a cube", *(f"a cube, {words}" for words in sayings("sectors"))]
    texts = Texts("a cube", {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)})
    azimuth = torch.deg2rad(torch.tensor([1.0, 44.0, 91.0, 180.0, -91.0]))
    assert texts.facing(azimuth, "sectors")[:, 0, 0].tolist() == [1, 2, 3, 5, 7]


def test_texts_by_camera() -> None:
    names = ["a cube", "a cube, front view", "a cube, side view", "a cube, back view", ""]
    texts = Texts("a cube", {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)})
    azimuth = torch.tensor([0.1, torch.pi / 2, torch.pi, -torch.pi / 2])
    assert texts.facing(azimuth, (45.0, 45.0))[:, 0, 0].tolist() == [1, 2, 3, 2]
    assert texts.facing(azimuth, None)[:, 0, 0].tolist() == [0, 0, 0, 0]
    assert texts[""].shape == (1, 2, 3)


def words(text: str) -> int:
    """Tokens of a tokenizer that gives every word, and every comma, one, and two around a text."""
    return len(re.findall(r"[^\s,]+|,", text)) + 2


@pytest.mark.parametrize(
    "whole, kept, tokens, lost",
    [
        ("a b c", "a b c", 3, ""),
        ("a b c d e f g h", "a b c d e f g h", 8, ""),
        ("a b c d e f g h i j", "a b c d e f g h", 10, "i j"),
        ("a b c d e, front view", "a b c d e, front view", 8, ""),
        ("a b c d e f g, front view", "a b c d e, front view", 10, "f g"),
        ("a b c d,  e f g, back view", "a b c d, back view", 11, "e f g"),
        ("front view a b c d e f g h, side view i", "front view a b c d e f", 14, "g h, side view i"),
    ],
)
def test_what_is_too_long_loses_whole_words_before_the_view_words(whole: str, kept: str, tokens: int, lost: str) -> None:
    found = text.fit(whole, 10, words)
    assert (found.text, found.tokens, found.room, found.lost) == (kept, tokens, 8, lost)
    assert words(found.text) <= 10


def test_a_word_that_is_too_long_loses_characters() -> None:
    found = text.fit("x" * 30 + ", back view", 10, lambda one: len(one.removesuffix(", back view")) + 2 + 3 * one.endswith(", back view"))
    assert (found.text, found.lost) == ("xxxxx, back view", "x" * 25)


def test_views_of_a_long_prompt_stay_apart(specs: dict[str, ModelSpec]) -> None:
    prompt = "a red dog jumping " * 60
    views = [text.worded(prompt, word) for word in text.VIEW_WORDS]
    front, side, back, plain = text.encode(specs["image"], [*views, prompt], CPU)
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in ((front, side), (side, back), (front, back), (front, plain)))
    first, last = text.fitted(specs["image"], [views[0], "a red dog"])
    assert first.tokens == 240 + 3 and first.room == networks.TEXT_LENGTH - 2 and first.text.endswith("dog, front view") and not last.lost
    same = text.encode(specs["image"], [first.text], CPU)
    assert torch.equal(same[0], front)


@pytest.mark.parametrize("length", [10**9, 5000, 1, 0])
def test_a_tokenizer_that_claims_another_window(copied: ModelSpec, length: int) -> None:
    path = Path(copied.source) / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    for call in (lambda: text.encode(copied, ["a red dog"], CPU), lambda: text.fitted(copied, ["a red dog"])):
        with pytest.raises(FourdfyError, match="is not the tokenizer of") as caught:
            call()
        assert caught.value.code == 3


def test_a_tokenizer_that_tells_no_window_has_the_encoders(copied: ModelSpec) -> None:
    before = text.encode(copied, ["a red dog"], CPU)
    path = Path(copied.source) / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "model_max_length"}))
    assert torch.equal(text.encode(copied, ["a red dog"], CPU), before)


def test_a_tokenizer_as_transformers_5_writes_it(copied: ModelSpec) -> None:
    before = text.encode(copied, ["a red dog"], CPU)
    for name in ("vocab.json", "merges.txt"):
        (Path(copied.source) / "tokenizer" / name).unlink()
    assert torch.equal(text.encode(copied, ["a red dog"], CPU), before)
    (Path(copied.source) / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(FourdfyError, match="neither"):
        text.encode(copied, ["a red dog"], CPU)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model": {"type": "BPE"}}', '{"model": 3, "version": "1.0"}', "[" * 10_000])
def test_a_tokenizer_that_is_none(copied: ModelSpec, content: str) -> None:
    (Path(copied.source) / "tokenizer" / "tokenizer.json").write_text(content)
    for name in ("vocab.json", "merges.txt"):
        (Path(copied.source) / "tokenizer" / name).unlink()
    with pytest.raises(FourdfyError) as caught:
        text.encode(copied, ["a red dog"], CPU)
    assert caught.value.code == 3
