"""A CLIP folder from a stranger: nothing of it runs, and what it asks for beyond a plain CLIP is refused in one line (exit 3)."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from fourdfy_cli.errors import ENVIRONMENT, FourdfyError
from fourdfy_cli.evaluate.clip import load_clip
from fourdfy_cli.nano.train_clip import CONFIG, export_clip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    export_clip(open_clip.CLIP(**CONFIG), tmp_path)
    return tmp_path


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(FourdfyError) as caught:
        load_clip(f"local-dir:{folder}")
    assert caught.value.code == ENVIRONMENT and "\n" not in caught.value.message and caught.value.hint.startswith("fourdfy clip-score")
    assert all(word in caught.value.message for word in words), caught.value.message


def change(folder: Path, part: str, values: dict[str, Any]) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    at = config["model_cfg"]
    (at[part] if part else at).update(values)
    path.write_text(json.dumps(config))


HOSTILE = [
    ("text_cfg", {"hf_tokenizer_name": "HERE", "tokenizer_kwargs": {"trust_remote_code": True}}),
    ("text_cfg", {"hf_model_name": "HERE", "hf_model_pretrained": True}),
    ("text_cfg", {"tokenizer_mode": "clips"}),
    ("vision_cfg", {"timm_model_name": "hf-hub:somebody/something", "timm_model_pretrained": True}),
    ("vision_cfg", {"act_kwargs": {"x": 1}}),
    ("", {"custom_text": True}),
    ("", {"auto_map": {"AutoModel": "evil.Model"}}),
]


@pytest.mark.parametrize("part, values", HOSTILE)
def test_nothing_of_a_folder_runs(folder: Path, part: str, values: dict[str, Any]):
    """Files that transformers would run if it were asked to load this folder leave a mark when they are run."""
    canary = folder / "ran"
    for name in ("tokenizer_mine.py", "evil.py", "modeling_mine.py", "configuration_mine.py"):
        (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\n")
    auto = {"AutoTokenizer": ["tokenizer_mine.Mine", None], "AutoConfig": "configuration_mine.Mine", "AutoModel": "modeling_mine.Mine"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Mine"}))
    (folder / "config.json").write_text(json.dumps({"auto_map": auto, "model_type": "mine"}))
    change(folder, part, json.loads(json.dumps(values).replace("HERE", str(folder))))
    refused(folder, next(iter(values)), "not allowed")
    assert not canary.exists()


def test_files_beside_a_plain_clip_are_not_looked_at(folder: Path):
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    assert load_clip(f"local-dir:{folder}").texts(["a red dog"]).shape == (1, 64)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "part, values",
    [
        ("vision_cfg", {"layers": 10**6}),
        ("vision_cfg", {"width": 10**9}),
        ("vision_cfg", {"image_size": "64"}),
        ("vision_cfg", {"patch_size": 0}),
        ("vision_cfg", {"width": 127}),
        ("text_cfg", {"vocab_size": 10**9}),
        ("text_cfg", {"vocab_size": 10}),
        ("text_cfg", {"layers": True}),
        ("text_cfg", {"context_length": float("nan")}),
        ("", {"embed_dim": -1}),
        ("", {"vision_cfg": None}),
        ("", {"vision_cfg": {"layers": 96, "width": 8192, "head_width": 64}}),
    ],
)
def test_sizes_that_make_no_sense(folder: Path, part: str, values: dict[str, Any]):
    change(folder, part, values)
    refused(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"model_cfg": 3}', '{"model_cfg": {}}', "[" * 100_000, "\xff\xfe"])
def test_a_config_that_is_none(folder: Path, text: str):
    (folder / "open_clip_config.json").write_bytes(text.encode("latin-1"))
    refused(folder)


@pytest.mark.parametrize("values", [{"mean": [0.5]}, {"std": [0, 1, 1]}, {"mean": "aaa"}, {"interpolation": "nearest"}, {"std": [1e9] * 3}])
def test_statistics_that_make_no_sense(folder: Path, values: dict[str, Any]):
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"].update(values)
    path.write_text(json.dumps(config))
    refused(folder)


def test_weights_that_do_not_fit(folder: Path):
    weights = folder / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:7], whole[: len(whole) // 2], whole + b"x", struct.pack("<Q", 2**60) + whole[8:]):
        weights.write_bytes(damaged)
        refused(folder, "damaged")
    weights.write_bytes(whole)
    change(folder, "text_cfg", {"layers": 3})
    refused(folder, "lacks transformer.resblocks.2")
    weights.unlink()
    torch.save({"visual.proj": torch.zeros(3)}, folder / "open_clip_pytorch_model.bin")
    refused(folder)


def test_no_folder_at_all(tmp_path: Path):
    for place in (tmp_path / "none", tmp_path, Path(os.devnull)):
        refused(place)
