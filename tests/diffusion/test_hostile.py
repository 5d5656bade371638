"""Model folders that mean harm: nothing of them runs, and none takes more than a moment and a little memory to refuse."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fourdfy_cli.diffusion import models, sets, text
from fourdfy_cli.diffusion.models import ModelSpec
from fourdfy_cli.errors import ENVIRONMENT, FourdfyError

CONFIGS = {
    "unet": "unet/config.json", "vae": "vae/config.json", "text": "text_encoder/config.json", "schedule": "scheduler/scheduler_config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
}  # fmt: skip
CANARY = "open('canary', 'w').write('ran')\n"


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    folder = shutil.copytree(sets.random_set("tiny")["image"].source, tmp_path / "model")
    return ModelSpec("image", str(folder))


def read(spec: ModelSpec) -> None:
    models.load(spec, "cpu", torch.float32)
    text.encode(spec, ["a dog"], "cpu")


def change(spec: ModelSpec, part: str, **values: Any) -> None:
    path = Path(spec.source) / CONFIGS[part]
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(spec: ModelSpec) -> str:
    with pytest.raises(FourdfyError) as caught:
        read(spec)
    assert caught.value.code == ENVIRONMENT and "\n" not in caught.value.message and len(caught.value.message) < 600
    return caught.value.message


@pytest.mark.parametrize(
    "part, key, value",
    [
        ("unet", "layers_per_block", 1_000_000),
        ("unet", "layers_per_block", [100] * 60),
        ("unet", "transformer_layers_per_block", 1e9),
        ("unet", "block_out_channels", [8] * 100_000),
        ("unet", "block_out_channels", [2**40, 2**40]),
        ("unet", "cross_attention_dim", float("inf")),
        ("unet", "down_block_types", ["CrossAttnDownBlock2D"] * 1000),
        ("unet", "sample_size", 10**12),
        ("vae", "layers_per_block", 10**7),
        ("vae", "latent_channels", -1),
        ("vae", "block_out_channels", [[[[[[4]]]]]]),
        ("text", "num_hidden_layers", 10**6),
        ("text", "vocab_size", 10**12),
        ("text", "max_position_embeddings", 10**10),
        ("schedule", "num_train_timesteps", 10**10),
        ("tokenizer", "model_max_length", 10**9),
    ],
)
def test_bombs(spec: ModelSpec, part: str, key: str, value: Any):
    change(spec, part, **{key: value})
    refused(spec)


@pytest.mark.parametrize("part", CONFIGS)
def test_a_config_of_megabytes_or_depth(spec: ModelSpec, part: str):
    path = Path(spec.source) / CONFIGS[part]
    whole = path.read_text()
    path.write_text("[" * 100_000)
    refused(spec)
    if part != "tokenizer":
        path.write_text(whole.rstrip("}\n ") + ', "a": "' + "x" * 17_000_000 + '"}')
        refused(spec)


def test_code_beside_the_weights_is_never_run(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every way by which a library could be asked to run a folder's code: the answer is a refusal, or as if it had not been asked."""
    monkeypatch.chdir(tmp_path)
    folder = Path(spec.source)
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for name in ("evil.py", "tokenization_evil.py", "modeling_evil.py", "pipeline.py", "conftest.py", "sitecustomize.py"):
            (place / name).write_text(CANARY)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "EvilPipeline", "unet": ["evil", "Evil"]}))
    asked = {
        "auto_map": {"AutoModel": "evil.Evil", "AutoTokenizer": ["tokenization_evil.Evil", None]},
        "custom_pipeline": "pipeline", "trust_remote_code": True, "tokenizer_class": "Evil", "_attn_implementation_internal": "me/kernel",
        "_class_name": "evil.Evil", "architectures": ["Evil"], "chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    }  # fmt: skip
    for part, path in CONFIGS.items():
        kept = (folder / path).read_text()
        for key, value in asked.items():
            change(spec, part, **{key: value})
            try:
                read(spec)
            except FourdfyError as error:
                assert error.code == ENVIRONMENT
            (folder / path).write_text(kept)
    assert not (tmp_path / "canary").exists() and not list(tmp_path.rglob("canary"))


def test_weights_many_times_larger_than_their_config(spec: ModelSpec):
    """A file of a terabyte that takes no room on the disk is refused by its header."""
    path = next((Path(spec.source) / "unet").glob("*.safetensors"))
    header = json.dumps({"conv_in.weight": {"dtype": "F16", "shape": [2**39], "data_offsets": [0, 2**40]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**40)
    assert "does not fit its config.json" in refused(spec)


def test_any_change_of_a_value_is_read_or_refused(spec: ModelSpec):
    """150 configs with one value replaced by something else."""
    draw = random.Random(0)
    values = [None, True, -1, 0, 1, 3, 77, 10**9, 1e308, -0.5, "", "x", "silu" * 500, [], [1], [[2]], {}, {"a": 1}, float("nan")]
    for _ in range(150):
        part = draw.choice(list(CONFIGS))
        path = Path(spec.source) / CONFIGS[part]
        kept = path.read_text()
        change(spec, part, **{draw.choice(list(json.loads(kept))): draw.choice(values)})
        try:
            read(spec)
        except FourdfyError as error:
            assert error.code == ENVIRONMENT and "\n" not in error.message
        path.write_text(kept)
