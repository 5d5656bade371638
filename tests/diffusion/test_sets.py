"""The model sets: what each role loads, the random set in its two sizes, and how big the paper's networks are."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from fourdfy_cli.config import Models, Vsd
from fourdfy_cli.diffusion import hub, models, network, sets, sizes, text
from fourdfy_cli.diffusion.models import NANO, ModelSpec
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.guidance import build
from fourdfy_cli.presets import preset
from fourdfy_cli.scene.cameras import Shot, orbit_camera

TINY = Models(set="random", size="tiny")
ROLES = ("multiview", "image", "lora", "video")


@pytest.fixture(scope="module")
def tiny() -> dict[str, ModelSpec]:
    return sets.specs(TINY, ROLES)


@pytest.mark.parametrize(
    "role, unet",
    [("multiview", 867_572_164), ("image", 865_910_724), ("lora", 865_910_724), ("video", 1_411_233_860)],
)
def test_full_size(role: str, unet: int) -> None:
    """The parameter counts of the published weights."""
    expected = {"unet": unet} | ({} if role == "lora" else {"vae": 83_653_863})
    for chosen in (Models(set="random"), Models(set="paper")):
        assert sets.counts(chosen, role) == expected


def test_text_encoder_at_full_size() -> None:
    spec = sets.specs(Models(set="random"), ["image"])["image"]
    assert sum(parameter.numel() for parameter in text.empty_encoder(spec.folder("text_encoder")).parameters()) == 340_387_840
    assert not list(Path(spec.source).rglob("*.safetensors"))


def test_counting_reads_the_folder_meant(tiny: dict[str, ModelSpec]) -> None:
    size = sum(p.numel() for p in models.load_unet(tiny["image"], "cpu", torch.float32).parameters())
    assert sets.counts(TINY, "image")["unet"] == size
    assert sets.counts(Models(set="paper", image=tiny["image"].source), "image")["unet"] == size
    nano = models.load(NANO["video"], "cpu", torch.float32)
    assert sets.counts(Models(set="nano"), "video") == {
        "unet": sum(p.numel() for p in nano.unet.parameters()),
        "vae": sum(p.numel() for p in nano.vae.parameters()),
    }


def test_tiny_set_is_laid_out_as_published(tiny: dict[str, ModelSpec]) -> None:
    assert "input_blocks.0.0.weight" in load_file(tiny["multiview"].folder("unet") / "diffusion_pytorch_model.safetensors")
    assert "encoder.mid_block.attentions.0.query.weight" in load_file(
        tiny["image"].folder("vae") / "diffusion_pytorch_model.fp16.safetensors"
    )
    state = load_file(tiny["video"].folder("text_encoder") / "model.fp16.safetensors")
    assert "text_model.embeddings.position_ids" in state
    assert state["text_model.final_layer_norm.weight"].dtype == torch.float16
    for role, spec in tiny.items():
        assert hub.files(role, Path(spec.source))
    assert sum(path.stat().st_size for spec in tiny.values() for path in Path(spec.source).rglob("*.safetensors")) < 40e6


def test_tiny_set_has_the_structure_of_the_full_one() -> None:
    for role in ROLES:
        small, full = (network.described(sizes.unet(role, size), network.UNETS, "here") for size in ("tiny", "full"))
        assert small.attn_processors.keys() == full.attn_processors.keys()
        assert small.config["down_block_types"] == full.config["down_block_types"]
        assert set(small.state_dict()) <= set(full.state_dict())
        assert all("conv_shortcut" in key for key in set(full.state_dict()) - set(small.state_dict()))


def test_tiny_set_loads_as_any_folder_does(tiny: dict[str, ModelSpec]) -> None:
    predictions = {"multiview": "epsilon", "image": "epsilon", "lora": "v_prediction", "video": "epsilon"}
    for role, spec in tiny.items():
        assert spec.seed is None
        assert models.schedule(spec).prediction == predictions[role]
        unet = models.load_unet(spec, "cpu", torch.float32)
        assert all(parameter.isfinite().all() for parameter in unet.parameters())
    image, twin = (models.load_unet(tiny[role], "cpu", torch.float32) for role in ("image", "lora"))
    assert isinstance(image, UNet2DConditionModel)
    assert not torch.equal(image.conv_in.weight, twin.conv_in.weight)


def test_random_weights_are_the_same_in_every_process(tiny: dict[str, ModelSpec]) -> None:
    again = sets._made.__wrapped__("tiny")
    for path in Path(again.name).rglob("*.safetensors"):
        assert path.read_bytes() == (Path(tiny["image"].source).parent / path.relative_to(again.name)).read_bytes()
    again.cleanup()


@pytest.mark.parametrize("prompt", ["a panda dancing", "An emoji of a baby panda, side view", "", "naïve 3D café 42 <|x|>", "it's"])
def test_tokens_are_those_of_clip(tiny: dict[str, ModelSpec], prompt: str) -> None:
    ours = CLIPTokenizer.from_pretrained(tiny["image"].folder("tokenizer"), local_files_only=True)
    ids = ours(prompt, padding="max_length", max_length=ours.model_max_length, truncation=True).input_ids
    theirs = SimpleTokenizer()(prompt)[0].tolist()  # padded with 0 too, "!" in Stable Diffusion 2
    assert ids == theirs
    assert len(ids) == 77


@pytest.mark.long
def test_half_precision_networks_pull_single_precision_pictures(tiny: dict[str, ModelSpec]) -> None:
    """Every guidance, from the set through `build`: bfloat16 weights, float32 pictures, gradients and trained parameters; nearly the
    gradient that float32 weights give."""
    recipe, branches = preset("nano"), ["multiview", "image", "video"]
    given = {role: tiny[role] for role in sets.roles(branches, recipe.vsd)}
    made, exact = (build.build(recipe, "a panda", given, "cpu", dtype, branches) for dtype in (torch.bfloat16, torch.float32))
    for name, guidance in made.items():
        views = {"multiview": 4, "image": 1, "video": 2}[name]
        turn = torch.arange(views) * (torch.pi / 2 if name == "multiview" else 0.0)
        c2w = orbit_camera(turn, torch.full((views,), 0.3), torch.full((views,), 2.7))
        at = Shot(c2w, torch.full((views,), 0.7), torch.arange(views) / 8, (64, 64))
        rgb = torch.rand(views, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        settings = replace(getattr(recipe.stage3, name), model_size=(64, 64))
        pulled, wanted = (which[name](rgb, at, settings, 0.5, torch.Generator().manual_seed(1)) for which in (made, exact))
        assert pulled.grad.dtype == torch.float32
        assert pulled.grad.isfinite().all()
        assert torch.cosine_similarity(pulled.grad.flatten(), wanted.grad.flatten(), 0) > 0.9
        assert {parameter.dtype for parameter in guidance.diffusion.unet.parameters()} == {torch.bfloat16}
    trained = [parameter for parameter in made["image"].lora_unet.parameters() if parameter.requires_grad]
    assert {parameter.grad.dtype for parameter in trained} == {torch.float32}
    assert any(parameter.grad.abs().max() > 0 for parameter in trained)


@pytest.mark.parametrize("share", [False, True])
def test_lora_is_on_its_own_network_or_of_the_image_model(tiny: dict[str, ModelSpec], share: bool) -> None:
    recipe = replace(preset("nano"), vsd=Vsd(share_base=share))
    guidance = build.build(recipe, "a panda", tiny, "cpu", torch.float32, ["image"])["image"]
    assert guidance.lora.schedule.prediction == ("epsilon" if share else "v_prediction")
    assert (guidance.lora.unet.conv_in.weight is guidance.diffusion.unet.conv_in.weight) == share
    assert guidance.lora.vae is guidance.diffusion.vae


def test_nano_lora_shares_the_image_model() -> None:
    recipe = preset("nano")
    given = sets.specs(recipe.models, sets.roles(["image"], recipe.vsd))
    guidance = build.build(recipe, "a red dog", given, "cpu", torch.float32, ["image"])["image"]
    assert guidance.lora.unet.conv_in.weight is guidance.diffusion.unet.conv_in.weight
    assert guidance.lora.schedule == guidance.diffusion.schedule


def test_lora_on_another_kind_of_model(tiny: dict[str, ModelSpec]) -> None:
    given = {"image": NANO["image"], "lora": tiny["lora"]}
    with pytest.raises(FourdfyError, match="cannot carry the LoRA.*in_channels 4, not 12") as caught:
        build.build(preset("nano"), "a red dog", given, "cpu", torch.float32, ["image"])
    assert (caught.value.code, caught.value.hint) == (2, "--set vsd.share_base=true")


def test_roles() -> None:
    assert sets.roles(["multiview"], Vsd()) == ("multiview",)
    assert sets.roles(["multiview", "image", "video"], Vsd()) == ("multiview", "image", "video", "lora")
    assert sets.roles(["image"], Vsd(share_base=True)) == ("image",)


@pytest.mark.parametrize("set", ["paper", "nano", "random"])
def test_a_folder_wins_in_every_set(tiny: dict[str, ModelSpec], set: str, tmp_path: Path) -> None:
    shutil.copytree(tiny["video"].source, tmp_path / "mine")
    spec = sets.specs(Models(set=set, video=str(tmp_path / "mine"), size="tiny"), ["video"])["video"]
    assert (spec.role, spec.source, spec.seed, spec.prediction) == ("video", str(tmp_path / "mine"), None, None)
    weights = next((tmp_path / "mine" / "text_encoder").glob("*.safetensors"))
    before = spec.revision
    assert weights.name in before
    os.utime(weights, (1, 1))
    assert sets.specs(Models(set=set, video=str(tmp_path / "mine"), size="tiny"), ["video"])["video"].revision != before


def test_revision_of_a_snapshot_is_its_commit(tmp_path: Path) -> None:
    assert sets.revision(tmp_path / "models--a--b" / "snapshots" / "0123abc") == "0123abc"


def test_sets_without_files_are_not_cached(tiny: dict[str, ModelSpec]) -> None:
    nano = sets.specs(Models(set="nano"), ROLES)
    assert {spec.revision for spec in (*tiny.values(), *nano.values(), *sets.specs(Models(set="random"), ROLES).values())} == {""}
    assert nano["lora"] == replace(NANO["image"], role="lora")


def test_size_that_does_not_exist() -> None:
    with pytest.raises(FourdfyError, match="huge") as caught:
        sets.random_set("huge")
    assert caught.value.code == 2
    assert caught.value.hint
