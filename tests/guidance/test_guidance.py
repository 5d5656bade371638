"""The guidances on tiny real networks, each against its equation written out once more with diffusers' own scheduler and autograd."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import reference_guidance as reference
import torch
import torch.nn.functional as F
from reference_guidance import DOUBLE, Exact, World, close, direct, drawn, exact_scheduler, pictures, seeded, shot, to_x0, velocity
from torch import Tensor

from fourdfy_cli.config import Branch
from fourdfy_cli.diffusion import lora, models, priors, text
from fourdfy_cli.diffusion.encoders import Pictures
from fourdfy_cli.diffusion.multiview import fold_views
from fourdfy_cli.diffusion.text import Texts
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.guidance import base, build
from fourdfy_cli.guidance.multiview import MultiviewGuidance
from fourdfy_cli.guidance.variational import VariationalGuidance
from fourdfy_cli.guidance.video import VideoGuidance
from fourdfy_cli.presets import preset
from fourdfy_cli.scene.cameras import Shot
from fourdfy_cli.schedule import Ramp, constant

PROMPT = "a red dog"
BRANCH = Branch((64, 64), 3.0, 0.7, constant(0.3), constant(0.4), model_size=(64, 64), form="reconstruction", rescale=0.5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    specs = reference.save_models(tmp_path_factory.mktemp("models"))
    loaded = {role: (priors if role == "video" else models).load(spec, "cpu", DOUBLE) for role, spec in specs.items()}
    names = [PROMPT, *(text.worded(PROMPT, words) for words in text.VIEW_WORDS), ""]
    table = dict(zip(names, text.encode(specs["image"], names, "cpu").double(), strict=True))
    return World(specs, loaded, Texts(PROMPT, table))


def variational(world: World, drop: float = 0.0) -> VariationalGuidance:
    unet = lora.lora_unet(world.specs["image"], 4, "cpu", DOUBLE, seeded())
    return VariationalGuidance(world.models["image"], replace(world.models["image"], unet=unet), world.texts, drop)


def told_cameras_alone(diffusion: models.Diffusion) -> models.Diffusion:
    """A multi-view model that is told no moments, as MVDream."""
    torch.manual_seed(0)
    unet = type(diffusion.unet)(**diffusion.unet.config | {"projection_class_embeddings_input_dim": 16}).double().eval()
    fold_views(unet)
    return replace(diffusion, unet=unet)


@pytest.mark.parametrize("views, timed", [(4, False), (8, False), (4, True)])
@pytest.mark.parametrize("form", ["reconstruction", "sds"])
def test_multiview_is_equation_3(world: World, views: int, timed: bool, form: str) -> None:
    rgb, at = pictures(views), shot([10.0 + 90 * k for k in range(views)])
    at = replace(at, time=torch.full_like(at.time, 0.3))
    diffusion = world.models["multiview"]
    guidance = MultiviewGuidance(diffusion if timed else told_cameras_alone(diffusion), world.texts)
    ours = guidance(rgb, at, replace(BRANCH, form=form), 0.5, seeded())
    z, eps, t, scheduler = drawn(world, rgb)
    z_t = scheduler.add_noise(z, eps, torch.tensor([t]))
    camera = at.c2w.clone()
    camera[:, :3, 3] /= camera[:, :3, 3].norm(dim=1, keepdim=True)
    angle = 2 * torch.pi * at.time
    told = torch.cat([camera.reshape(-1, 16), *([angle.cos()[:, None], angle.sin()[:, None]] if timed else [])], 1)
    cond, uncond = (velocity(guidance.diffusion.unet, z_t, t, world.texts[w], told) for w in (PROMPT, ""))
    mixed = uncond + 3.0 * (cond - uncond)
    if form == "reconstruction":
        g = len(z) * reference.reconstruction(z, to_x0(scheduler, cond, z_t, t), to_x0(scheduler, mixed, z_t, t), 0.5, views // 4)
    else:
        abar = scheduler.alphas_cumprod[t]
        g = (1 - abar) * ((1 - abar).sqrt() * z_t + abar.sqrt() * mixed - eps)
    close(ours.grad, 0.7 * direct(world.models["image"].vae, rgb, 64, z - g))
    assert ours.loss == pytest.approx(0.7 * 0.5 * g.square().sum().item() / views, rel=1e-9)
    assert ours.logs["t"] == t


def test_multiview_looks_at_the_cameras_and_at_other_views(world: World) -> None:
    guidance, rgb = MultiviewGuidance(world.models["multiview"], world.texts), pictures(4)
    here = guidance(rgb, shot([0.0, 90, 180, 270]), BRANCH, 0.5, seeded()).grad
    assert (guidance(rgb, shot([45.0, 135, 225, 315]), BRANCH, 0.5, seeded()).grad - here).abs().max() > 1e-6
    changed = rgb.clone()
    changed[0] = 0
    plain = replace(BRANCH, rescale=0.0)  # rescaling mixes views too
    other = guidance(changed, shot([0.0, 90, 180, 270]), plain, 0.5, seeded()).grad
    assert (other - guidance(rgb, shot([0.0, 90, 180, 270]), plain, 0.5, seeded()).grad)[1:].abs().max() > 1e-8


@pytest.mark.parametrize(
    "azimuth, words, form", [(0.0, "front view", "sds"), (100.0, "side view", "sds"), (170.0, "back view", "reconstruction")]
)
def test_video_is_equation_6(world: World, azimuth: float, words: str, form: str) -> None:
    frames = 4
    rgb, at = pictures(frames), shot([azimuth] * frames, moving=True)
    branch = replace(BRANCH, form=form, view_words=(45.0, 45.0))
    ours = VideoGuidance(world.models["video"], world.texts)(rgb, at, branch, 0.5, seeded())
    generator = seeded()
    t = int(torch.randint(300, 401, (), generator=generator))
    vae = world.models["video"].vae
    with torch.no_grad():
        clip = torch.stack([vae.encode(2 * rgb[f : f + 1].permute(0, 3, 1, 2) - 1).latent[0] for f in range(frames)], 1)[None]
    eps = torch.randn(clip.shape, generator=generator).double()
    scheduler = exact_scheduler(world)
    z_t, abar = scheduler.add_noise(clip, eps, torch.tensor([t])), scheduler.alphas_cumprod[t]
    cond = velocity(world.models["video"].unet, z_t, t, world.texts[f"{PROMPT}, {words}"])
    mixed = velocity(world.models["video"].unet, z_t, t, world.texts[""])
    mixed = mixed + 3.0 * (cond - mixed)
    if form == "sds":
        g = (1 - abar) * ((1 - abar).sqrt() * z_t + abar.sqrt() * mixed - eps)
    else:
        g = reference.reconstruction(clip, to_x0(scheduler, cond, z_t, t), to_x0(scheduler, mixed, z_t, t), 0.5, 1)
    by_frame = g[0].transpose(0, 1) * frames  # `direct` divides by the pictures; the loss of one clip is a sum over frames
    close(ours.grad, 0.7 * direct(vae, rgb, 64, clip[0].transpose(0, 1) - by_frame))
    assert ours.loss == pytest.approx(0.7 * 0.5 * g.square().sum().item(), rel=1e-9)


@pytest.mark.parametrize("azimuth, words", [(10.0, "front view"), (-90.0, "side view"), (-170.0, "back view")])
def test_variational_is_equation_4_and_5(world: World, azimuth: float, words: str) -> None:
    guidance, rgb, at = variational(world), pictures(1), shot([azimuth])
    with torch.no_grad():
        for _, parameter in lora.trainable(guidance.lora_unet):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(7)))
    ours = guidance(rgb, at, replace(BRANCH, view_words=(45.0, 45.0)), 0.5, seeded())
    z, eps, t, scheduler = drawn(world, rgb)
    z_t, abar = scheduler.add_noise(z, eps, torch.tensor([t])), scheduler.alphas_cumprod[t]
    raw = at.c2w.reshape(-1, 16)
    cond, uncond = (velocity(world.models["image"].unet, z_t, t, world.texts[w]) for w in (f"{PROMPT}, {words}", ""))
    lora_network = velocity(guidance.lora_unet, z_t, t, world.texts[PROMPT], raw)
    g = (1 - abar) * abar.sqrt() * (uncond + 3.0 * (cond - uncond) - lora_network)  # eps = sigma z_t + alpha v, and z_t cancels
    close(ours.grad, 0.7 * direct(world.models["image"].vae, rgb, 64, z - g))
    assert ours.loss == pytest.approx(0.7 * 0.5 * g.square().sum().item(), rel=1e-9)

    generator = seeded()
    torch.randint(300, 401, (), generator=generator)
    torch.randn(z.shape, generator=generator)
    level = torch.randint(0, 1000, (), generator=generator)
    noise = torch.randn(z.shape, generator=generator).double()
    target = scheduler.get_velocity(z, noise, level[None])
    seen = guidance.lora_unet(scheduler.add_noise(z, noise, level[None]), level, world.texts[PROMPT], class_labels=raw).sample
    loss = F.mse_loss(seen, target)
    assert ours.logs["lora_loss"] == pytest.approx(loss.item(), rel=1e-9)
    parameters = dict(lora.trainable(guidance.lora_unet))
    for parameter, gradient in zip(parameters.values(), torch.autograd.grad(loss, list(parameters.values())), strict=True):
        close(parameter.grad, gradient)


def test_variational_vanishes_while_the_twin_is_the_prior(world: World) -> None:
    guidance, rgb, at = variational(world), pictures(1), shot([30.0])
    alike = replace(BRANCH, scale=1.0, view_words=None)
    assert guidance(rgb, at, alike, 0.5, seeded()).grad.abs().max() < 1e-12
    assert guidance(rgb, at, replace(alike, scale=3.0), 0.5, seeded()).grad.abs().max() > 1e-6
    before = lora.lora_state(guidance.lora_unet)
    torch.optim.AdamW([p for _, p in lora.trainable(guidance.lora_unet)], 1e-2).step()
    after = lora.lora_state(guidance.lora_unet)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if "lora_B" in name} | {"class_embedding.linear_2.weight"} <= moved
    assert guidance(rgb, at, alike, 0.5, seeded()).grad.abs().max() > 1e-6


def test_twin_learns_the_rendering(world: World) -> None:
    guidance, z, camera = variational(world), torch.randn(1, 12, 8, 8, dtype=DOUBLE), torch.randn(1, 16, dtype=DOUBLE)
    parameters = [p for _, p in lora.trainable(guidance.lora_unet)]
    optimizer = torch.optim.AdamW(parameters, 1e-2)
    losses = []
    for _ in range(12):
        losses.append(guidance.learn(z, camera, seeded(3)))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def test_camera_is_dropped_with_its_chance(world: World) -> None:
    z, camera = torch.randn(1, 12, 8, 8, dtype=DOUBLE), torch.ones(1, 16, dtype=DOUBLE)
    for drop, expected in ((0.0, 0), (1.0, 6), (0.5, 3)):
        guidance, dropped = variational(world, drop), 0
        weight = guidance.lora_unet.class_embedding.linear_1.weight
        torch.nn.init.normal_(guidance.lora_unet.class_embedding.linear_2.weight)
        for seed in range(6):
            guidance.learn(z, camera, seeded(seed))
            dropped += not weight.grad.any()
            weight.grad = None
        assert abs(dropped - expected) <= (2 if drop == 0.5 else 0)


def all_three(world: World) -> list[tuple[base.Guidance, Tensor, Shot]]:
    return [
        (MultiviewGuidance(world.models["multiview"], world.texts), pictures(4), shot([0.0, 90, 180, 270])),
        (variational(world), pictures(1), shot([20.0])),
        (VideoGuidance(world.models["video"], world.texts), pictures(4), shot([20.0] * 4, moving=True)),
    ]


def test_repeats_from_its_generator_and_scales_with_weight(world: World) -> None:
    for guidance, rgb, at in all_three(world):
        torch.manual_seed(1)
        one = guidance(rgb, at, BRANCH, 0.5, seeded(4))
        torch.manual_seed(2)
        other = guidance(rgb, at, BRANCH, 0.5, seeded(4))
        assert torch.equal(one.grad, other.grad)
        assert not torch.equal(one.grad, guidance(rgb, at, BRANCH, 0.5, seeded(5)).grad)
        double = guidance(rgb, at, replace(BRANCH, weight=1.4), 0.5, seeded(4))
        close(double.grad, 2 * one.grad)
        assert double.loss == pytest.approx(2 * one.loss)


def test_level_follows_progress(world: World) -> None:
    falling = replace(BRANCH, low=Ramp(0.98, 0.02, 0.0, 0.8), high=Ramp(0.98, 0.5, 0.0, 0.8))
    for guidance, rgb, at in all_three(world):
        assert guidance(rgb, at, falling, 0.0, seeded()).logs["t"] == 980
    for guidance, rgb, at in all_three(world)[:1]:
        assert 500 <= guidance(rgb, at, falling, 0.4, seeded()).logs["t"] <= 740
        assert 20 <= guidance(rgb, at, falling, 1.0, seeded()).logs["t"] <= 500


def test_graph_of_the_pictures_is_left_alone(world: World) -> None:
    for guidance, rgb, at in all_three(world):
        leaf = rgb.clone().requires_grad_(True)
        pulled = guidance(leaf * 1.0, at, BRANCH, 0.5, seeded())
        assert leaf.grad is None
        assert not pulled.grad.requires_grad
        assert pulled.grad.shape == rgb.shape


@pytest.mark.parametrize("size", [32, 64, 80])
@pytest.mark.parametrize("pixels", [0.0, 3.0])
def test_pull_through_resize_and_encoder(world: World, size: int, pixels: float) -> None:
    rgb, vae = pictures(2, size), world.models["image"].vae
    g, branch = torch.randn(2, 12, 8, 8, dtype=DOUBLE, generator=seeded(3)), replace(BRANCH, pixel_weight=pixels)
    ours = base.through_encoder(Pictures(vae), rgb, branch, 2, lambda z: g / 2, seeded())
    leaf = rgb.clone().requires_grad_(True)
    picture = F.interpolate(leaf.permute(0, 3, 1, 2), (64, 64), mode="bilinear")
    with torch.no_grad():
        wanted = vae.encode(2 * picture - 1).latent - g
        clean = (vae.decode(wanted).sample + 1) / 2
    (0.5 * pixels * (picture - clean).square().sum() / 2).backward()
    close(ours.grad, 0.7 * (direct(vae, rgb, 64, wanted) + leaf.grad))
    assert (leaf.grad.norm() > 0) == (pixels > 0)
    assert ours.loss == pytest.approx(0.7 * 0.5 * g.square().sum().item() / 2)
    assert ours.logs["grad_norm"] == pytest.approx(ours.grad.norm().item())
    for chunk in (1, 2):
        close(base.through_encoder(Pictures(vae), rgb, branch, 2, lambda z: g / 2, seeded(), chunk).grad, ours.grad)


@pytest.mark.parametrize("kind, pixels", [("multiview", 0.0), ("multiview", 5.0), ("video", 0.0)])
def test_exact_denoiser_pulls_pictures_to_its_mean(world: World, kind: str, pixels: float) -> None:
    """Plain gradient descent on pixels alone, through the real encoder: latents go to mu."""
    vae, schedule = world.models["image"].vae, world.models["image"].schedule
    with torch.no_grad():
        mu, _ = models.encode(vae, pictures(4, seed=8).permute(0, 3, 1, 2))
    rgb, at, branch = (
        torch.full((4, 64, 64, 3), 0.5, dtype=DOUBLE),
        shot([0.0, 90, 180, 270]),
        replace(BRANCH, scale=1.0, weight=1.0, pixel_weight=pixels),
    )
    center = mu.transpose(0, 1)[None] if kind == "video" else mu
    diffusion = replace(world.models["video" if kind == "video" else "image"], unet=Exact(schedule, center, 0.05))
    guidance = (VideoGuidance if kind == "video" else MultiviewGuidance)(diffusion, world.texts)

    def distance() -> float:
        with torch.no_grad():
            return (models.encode(vae, rgb.permute(0, 3, 1, 2))[0] - mu).square().mean().item()

    start, optimizer = distance(), torch.optim.Adam([rgb.requires_grad_(True)], 0.03)
    for step in range(25):
        rgb.grad = guidance(rgb, at, branch, step / 25, seeded(step)).grad
        optimizer.step()
    assert distance() < 0.2 * start


def test_build_loads_what_is_drawn(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world.specs["image"].source, tmp_path / "models")
    shutil.rmtree(tmp_path / "models" / "video_unet")
    specs = {role: replace(spec, source=str(tmp_path / "models")) for role, spec in world.specs.items()}
    asked = []
    encode = text.encode
    monkeypatch.setattr(text, "encode", lambda spec, prompts, device: asked.append(prompts) or encode(spec, prompts, device))
    recipe = preset("nano")
    made = build.build(recipe, PROMPT, specs, "cpu", torch.float32, ["multiview", "image"])
    assert list(made) == ["multiview", "image"]
    assert made["multiview"].diffusion.vae is made["image"].diffusion.vae is made["image"].lora.vae
    assert len(asked) == 1
    assert len(asked[0]) == len(set(asked[0]))
    with pytest.raises(FourdfyError) as caught:
        build.build(recipe, PROMPT, specs, "cpu", torch.float32, ["video"])
    assert caught.value.code == 3


def test_built_guidances_run_the_nano_recipe(world: World) -> None:
    recipe = preset("nano")
    made = build.build(recipe, PROMPT, world.specs, "cpu", torch.float32, ["multiview", "image", "video"], seed=3)
    for name, views in (("multiview", 4), ("image", 1), ("video", recipe.frames)):
        at = shot([20.0] * views, 32)
        at = Shot(at.c2w.float(), at.fovy.float(), at.time.float(), at.size)
        for stage in (recipe.stage1, recipe.stage2, recipe.stage3):
            pulled = made[name](pictures(views, 32).float(), at, getattr(stage, name), 0.3, seeded())
            assert pulled.grad.shape == (views, 32, 32, 3)
            assert pulled.grad.dtype == torch.float32
            assert pulled.grad.isfinite().all()
            assert pulled.grad.abs().max() > 0
    again = build.build(recipe, PROMPT, world.specs, "cpu", torch.float32, ["image"], seed=3)["image"]
    other = build.build(recipe, PROMPT, world.specs, "cpu", torch.float32, ["image"], seed=4)["image"]
    key = next(name for name, _ in lora.trainable(again.lora_unet) if "lora_A" in name)
    first = lora.lora_state(again.lora_unet)[key]
    assert torch.equal(first, lora.lora_state(made["image"].lora_unet)[key])
    assert not torch.equal(first, lora.lora_state(other.lora_unet)[key])


def test_what_text_encoders_cannot_read_is_told_before_the_first_step(world: World):
    recipe, branches = preset("paper"), ("multiview", "image", "video")
    fitting = replace(recipe, **{f"stage{n}": plain_negatives(recipe.stage(n)) for n in (1, 2, 3)})
    assert build.cut_texts(fitting, PROMPT, world.specs, branches) == []
    lines = build.cut_texts(fitting, "a red dog jumping " * 10 + "slowly", world.specs, branches)
    assert lines and all("46 tokens" in line and "left out" in line and line.endswith("slowly") for line in lines)
    assert "for multiview" in lines[0] and "view words" in lines[0] and {line.count("prompt") for line in lines} == {1}
    negative = build.cut_texts(recipe, PROMPT, world.specs, branches)
    assert negative and all(line.startswith("the negative prompt has ") for line in negative)


def plain_negatives(stage):
    return replace(stage, **{name: replace(getattr(stage, name), negative="") for name in ("multiview", "image", "video")})
