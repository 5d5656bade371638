import dataclasses
import json
import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from reference_guidance import unet3d
from safetensors.torch import load_file

from fourdfy_cli.config import Models
from fourdfy_cli.diffusion import models, sets, text
from fourdfy_cli.diffusion.convolutions import PointwiseConvolution, TemporalConvolution, flatten_convolutions
from fourdfy_cli.diffusion.models import NANO, WEIGHTS
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import truth as judge
from fourdfy_cli.evaluate.clip import load_clip
from fourdfy_cli.evaluate.truth import camera_shot, change, compare, views
from fourdfy_cli.nano import data, networks, train, train_multiview
from fourdfy_cli.nano.fit import Fit, Plan, ahead
from fourdfy_cli.nano.latents import SHARP, Captions
from fourdfy_cli.nano.objects import COLOURS, OBJECTS
from fourdfy_cli.nano.prompts import MOTIONS, Subject
from fourdfy_cli.nano.sample import draw, load, sample
from fourdfy_cli.nano.show import sheet, truth, video
from fourdfy_cli.nano.snapshot import snapshot
from fourdfy_cli.nano.spots import mean, spots
from fourdfy_cli.nano.train_video import BLIND, LATE, attentive, draw_clip, draw_levels, inflate
from fourdfy_cli.scene.cameras import moment
from fourdfy_cli.scene.scene import Frames, Scene


def files(folder: str) -> list[Path]:
    return [p for p in Path(folder).rglob("*") if p.is_file()]


def test_weights_are_small_safetensors_in_half_precision():
    shipped = files(WEIGHTS)
    assert sum(p.stat().st_size for p in shipped) <= 48e6
    assert {p.suffix for p in shipped} <= {".safetensors", ".json", ".txt"}
    for path in shipped:
        if path.name == "config.json":
            assert "/" not in json.loads(path.read_text()).get("_name_or_path", "")  # no path of the machine it was trained on
        if path.suffix == ".safetensors":
            assert {v.dtype for v in load_file(path).values() if v.is_floating_point()} == {torch.float16}, path


@pytest.mark.parametrize("role", ["multiview", "image", "video"])
def test_the_real_loader_loads_each_nano_model(role):
    model = models.load(NANO[role], "cpu", torch.float32)
    z = torch.randn(4, 12, 8, 8) if role != "video" else torch.randn(1, 12, 8, 8, 8)
    words = text.encode(NANO[role], ["a red dog", ""], "cpu")
    camera = torch.zeros(4, networks.VIEW) if role == "multiview" else None
    cond, uncond = model.predict(z, 500, words[:1], words[1:], camera)
    assert cond.shape == z.shape and not torch.equal(cond, uncond)
    assert model.schedule.prediction == "v_prediction"


def test_every_word_of_the_world_is_one_token(tmp_path):
    tokens = networks.tokenizer(tmp_path)
    for word in (*OBJECTS, *COLOURS, *MOTIONS, "front", "left", "view"):
        assert len(tokens(word).input_ids) == 3, word  # start, word, end
    shipped = text._tokenizer(Path(WEIGHTS) / "tokenizer")
    assert len(shipped("a red dog jumping, side view").input_ids) == len(tokens("a red dog jumping, side view").input_ids) == 9


def test_the_image_unet_is_the_multiview_unet_with_a_zero_camera_and_moment():
    torch.manual_seed(0)
    unet = networks.unet2d(camera=True).eval()
    image = train_multiview.image_half(unet).eval()
    x, t, c = torch.randn(3, 12, 8, 8), torch.tensor([1, 400, 999]), torch.randn(3, networks.TEXT_LENGTH, networks.TEXT_WIDTH)
    with torch.no_grad():
        a = unet(x, t, c, class_labels=torch.zeros(3, 18)).sample
        assert (image(x, t, c).sample - a).abs().max() < 1e-5
        assert (unet(x, t, c, class_labels=torch.ones(3, 18)).sample - a).abs().max() > 1e-4


def test_inflation_changes_nothing():
    torch.manual_seed(0)
    image = networks.unet2d(camera=False).eval()
    unet = inflate(image).eval()
    x, t, c = torch.randn(2, 12, 8, 8, 8), torch.tensor([5, 700]), torch.randn(2, 4, networks.TEXT_WIDTH)
    with torch.no_grad():
        frames = image(x.transpose(1, 2).flatten(0, 1), t.repeat_interleave(8), c.repeat_interleave(8, 0)).sample
        inflated = unet(x, t, c.repeat_interleave(8, 0)).sample
        assert (inflated - frames.unflatten(0, (2, 8)).transpose(1, 2)).abs().max() < 1e-4
        assert torch.allclose(models.predict(unet, x[:1], 5, c[:1]), inflated[:1], atol=1e-4)  # a text is repeated for each frame


def test_the_video_unet_knows_which_frame_is_which():
    """A clip that stands still comes back in frames that all differ, and not as it would backwards."""
    torch.manual_seed(0)
    unet = networks.video_unet().eval()
    still = torch.randn(1, 12, 1, 8, 8).expand(-1, -1, 8, -1, -1)
    with torch.no_grad():
        out = models.predict(unet, still, 500, torch.randn(1, 12, networks.TEXT_WIDTH))
    frames = out[0].transpose(0, 1).flatten(1)
    assert (torch.cdist(frames, frames) + torch.eye(8)).min() > 1e-3
    assert (out - out.flip(2)).norm() > 0.5 * (out - out.mean(2, keepdim=True)).norm()


def test_flat_convolutions_change_nothing():
    torch.manual_seed(0)
    unet = unet3d().eval()
    x, t, c = torch.randn(2, 12, 3, 8, 8), torch.tensor([5, 700]), torch.randn(2, 4, networks.TEXT_WIDTH)
    for m in unet.modules():
        if isinstance(m, torch.nn.Conv3d):
            torch.nn.init.normal_(m.weight, std=0.02)
    with torch.no_grad():
        stock, names = unet(x, t, c).sample, list(unet.state_dict())
        flatten_convolutions(unet)
        assert list(unet.state_dict()) == names
        for twin in (TemporalConvolution, PointwiseConvolution):
            assert any(isinstance(m, twin) for m in unet.modules())
        assert (unet(x, t, c).sample - stock).abs().max() < 1e-4


def test_groups_are_told_their_moment_and_what_is_shown_may_lack_motion_or_be_smudged(tmp_path, monkeypatch):
    plan, captions = Plan(steps=1, batch=64, rate=1.0, pool=64), Captions(None)
    monkeypatch.setattr(Captions, "__call__", lambda self, texts: texts)
    monkeypatch.setattr(train_multiview, "noised", lambda shown, z, right, abar, generator: (shown, z, right))
    draw = train_multiview.multiview_draw(tmp_path, Path(WEIGHTS) / "vae", plan, 0, captions, report=lambda text: None)
    posed, rest = (load_file(tmp_path / f"{kind}.safetensors") for kind in ("posed", "still"))
    assert torch.equal(posed["cameras"], rest["cameras"]) and (rest["time"] == 0).all() and posed["time"].unique().numel() == 64
    seen = Counter()
    for step in range(60):
        views, shown, z, right, t, camera, texts = draw(np.random.default_rng(step), torch.Generator().manual_seed(step))
        if views == 1:
            same = torch.isclose(z, shown, atol=1e-6).flatten(1).all(1)
            named = torch.tensor([text != "" for text in texts])
            assert not camera.any() and torch.equal(same, right) and not (~right & ((t < SHARP) | ~named)).any()
            seen["single", "smudged"] += int((~right).sum())
            continue
        z, shown, camera, right = (x.unflatten(0, (-1, 4)) for x in (z, shown, camera, right))
        assert (camera[..., 16:] == camera[:, :1, 16:]).all() and (right == right[:, :1]).all()
        for k, caption in enumerate(texts):
            row = int((posed["cameras"] - camera[k, :, :16]).abs().amax((1, 2)).argmin())
            still, moved = (pool["latents"][row].float() for pool in (rest, posed))
            if torch.equal(still, moved):  # a ball that spins
                continue
            asked, level, wrong = camera[k, 0, 16:], int(t[4 * k]), not right[k, 0]
            moves = torch.allclose(asked, moment(posed["time"][row, :1])[0], atol=1e-4)
            assert torch.equal(z[k], moved if moves else still)
            if caption and not moves:
                assert torch.equal(asked, torch.tensor([1.0, 0.0])) == (caption.split()[-1] in MOTIONS)
            basis = [still, moved, *(pool["smudged"][row].float() for pool in (rest, posed))]
            found = torch.linalg.lstsq(torch.stack([x.flatten() for x in basis], 1).double(), shown[k].flatten().double()[:, None])
            share = found.solution[:, 0]
            reach, blur = (share[1] + share[3]).item(), (share[2] + share[3]).item()
            damped, dull = abs(reach - moves) > 1e-3, blur > 1e-3
            assert share.sum().item() == pytest.approx(1, abs=1e-3) and share[3].item() == pytest.approx(reach * blur, abs=1e-3)
            assert -1e-3 < reach < 1 + 1e-3 and -1e-3 < blur < 1 + 1e-3 and asked.norm().item() == pytest.approx(1)
            assert wrong or not (damped or dull)
            assert not damped or (level >= LATE and caption)
            assert not dull or (level >= SHARP and caption)
            seen[moves, damped, dull] += 1
    assert all(seen[moves, damped, dull] > 20 for moves in (False, True) for damped in (False, True) for dull in (False, True))
    assert seen["single", "smudged"] > 300


def clip_pools() -> dict[str, dict[str, torch.Tensor]]:
    """One red dog jumping, frame k all k; before it moves, all -5; in another motion, all 40. Smudged, one corner is 1000 more."""
    clip = torch.arange(8.0).reshape(1, 8, 1, 1, 1).expand(1, 8, 12, 2, 2)
    corner = torch.zeros(12, 2, 2)
    corner[:, 1, 1] = 1000
    looks = {"clips": clip, "frozen": 0 * clip[:, :1] - 5, "other": 0 * clip + 40}
    pools = {name: {"latents": z, "smudged": z + corner} for name, z in looks.items()}
    pools["clips"] |= {"subjects": torch.tensor([[0, 0, 2]]), "azimuth": torch.full((1, 8), 90.0)}
    return pools


def smudge(z: torch.Tensor) -> torch.Tensor:
    """How far a clip [C F h w] of `clip_pools` is smudged, in each frame."""
    return (z[0, :, 1, 1] - z[0, :, 0, 0]) / 1000


def test_training_clips_show_something_else_than_they_ask_for():
    """Under much noise; the caption alone decides what is asked for, and names the camera's sector."""
    drawn = [draw_clip(clip_pools(), 800, np.random.default_rng(k)) for k in range(600)]
    named = [c for c in drawn if "jumping" in c.caption]
    still = [c for c in drawn if c.caption and "jumping" not in c.caption]
    assert all(c.caption.endswith(", left view") for c in (*named, *still)) and 0.06 < len(still) / 600 < 0.16
    assert all((c.target == -5).all() for c in still) and any(not c.right for c in still)
    assert all(torch.equal(c.target[0, :, 0, 0], torch.arange(8.0)) for c in named) and all(c.right for c in drawn if not c.caption)
    assert all(torch.equal(c.target, c.shown) == c.right for c in drawn)
    sharp = [c for c in named if not smudge(c.shown).any()]
    assert 0.4 < len(sharp) / len(named) < 0.6 and 0.15 < np.mean([c.right for c in sharp]) < 0.27
    assert 0.25 < np.mean([(c.shown[0, :, 0, 0] == -5).all() for c in named]) < 0.36
    frames = {tuple(c.shown[0, :, 0, 0].sort().values.tolist()) for c in named}
    assert tuple(map(float, range(8))) in frames and any(max(f) > 20 for f in frames) and len(frames) > 100


def test_training_clips_are_right_where_they_show_but_may_be_smudged():
    for level, least in ((SHARP - 1, 0.0), (300, 0.35)):
        drawn = [draw_clip(clip_pools(), level, np.random.default_rng(k)) for k in range(200)]
        assert {float(c.target[0, 3, 0, 0]) for c in drawn} == {3.0, -5.0} and not any(smudge(c.target).any() for c in drawn)
        assert all(torch.equal(c.shown[..., 0, :], c.target[..., 0, :]) and c.right == (not smudge(c.shown).any()) for c in drawn)
        assert all(c.caption for c in drawn if not c.right) and least <= np.mean([not c.right for c in drawn]) <= 1.5 * least
        assert all(0 <= smudge(c.shown).min() == smudge(c.shown).max() <= 1 for c in drawn)


def test_renders_of_scenes_are_shown_too():
    pools = clip_pools()
    pools["renders"] = pools["clips"] | {"shown": pools["clips"]["latents"] + 100}
    drawn = [draw_clip(pools, 800, np.random.default_rng(k)) for k in range(200)]
    assert 0.15 < np.mean([float(c.shown.min()) >= 100 and float(c.target.max()) == 7 for c in drawn]) < 0.35


def test_noise_levels_are_mostly_where_the_clip_does_not_show():
    levels = np.array(draw_levels(4000, np.random.default_rng(0)))
    assert levels.min() < 20 and levels.max() == 999 and abs((levels >= BLIND).mean() - 0.3) < 0.04
    abar = networks.scheduler(to_noise=True).alphas_cumprod
    assert abar[-1] == 0 and abar[BLIND].sqrt() < 0.5 * networks.scheduler().alphas_cumprod[BLIND].sqrt()


def test_another_motion_of_the_same_draw():
    clip, other = (data.draw(np.random.default_rng(4), 30, 8, kind, size=16) for kind in ("clip", "other"))
    assert torch.equal(clip.c2w, other.c2w) and torch.equal(clip.azimuth, other.azimuth)
    assert torch.equal(clip.rgb[..., 0, 0], other.rgb[..., 0, 0])  # the same grey
    assert all(
        (a.object, a.colour) == (b.object, b.colour) and a.motion != b.motion for a, b in zip(clip.subjects, other.subjects, strict=True)
    )


def words(encoder, *texts: str) -> torch.Tensor:
    """The encoder's states [N L C] of texts."""
    tokens = text._tokenizer(Path(WEIGHTS) / "tokenizer")
    with torch.no_grad():
        return encoder(networks.token_ids(tokens, list(texts))).last_hidden_state


def test_the_video_models_text_encoder_starts_to_hear_motion_words():
    torch.manual_seed(0)
    own, shared = attentive(Path(WEIGHTS)), text.load_encoder(Path(WEIGHTS) / "text_encoder", "cpu")
    assert torch.equal(words(own, "a red dog, side view"), words(shared, "a red dog, side view"))
    for one, other in zip(MOTIONS, [*MOTIONS[1:], MOTIONS[0]], strict=True):
        a, b = words(own, f"a red dog {one}", f"a red dog {other}")[:, 4]
        assert (a - b).norm() > 1.2, one
    assert all(p.requires_grad for p in own.parameters())


@pytest.mark.parametrize("thing", ["red dog", "purple cube"])
@pytest.mark.long
def test_the_video_model_listens_to_motion_words(thing: str):
    """What it makes of a clip that stands still, under noise: hardly a change from frame to frame unless the prompt names a motion."""
    model = models.load(NANO["video"], "cpu", torch.float32)
    shot = camera_shot(torch.full((1,), 0.6), torch.zeros(1))
    picture = torch.from_numpy(truth(Subject(thing.split()[1], thing.split()[0]), shot).over(0.6)).permute(0, 3, 1, 2)
    clip = models.encode(model.vae, picture)[0].transpose(0, 1)[None].expand(1, -1, networks.FRAMES, -1, -1).detach()
    states = text.encode(NANO["video"], [f"a {thing}", f"a {thing} jumping", ""], "cpu")
    moves = []
    for prompt in states[:2]:
        made = []
        for seed in range(4):
            z_t = model.schedule.add(clip, torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed)), 700)
            made.append(model.schedule.x0(model.predict(z_t, 700, prompt[None], states[2:])[0], z_t, 700))
        mean = torch.stack(made).mean(0)
        moves.append((mean - mean.mean(2, keepdim=True)).square().mean().sqrt())
    assert moves[1] > 2 * moves[0]


def test_inflating_a_foreign_unet_fails():
    stranger = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    with pytest.raises(ValueError, match="lacks"):
        inflate(stranger)


def regression(folder: Path, steps: int, stop: int | None = None) -> Fit:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    fit = Fit("line", {"model": model}, Plan(steps, 8, 0.05, pool=8), folder, report=lambda text: None)
    fit.resume()
    target = torch.tensor([[1.0], [-2.0], [0.5]])

    def draw(rng: np.random.Generator, generator: torch.Generator):
        if fit.step == stop:
            fit.save()
            raise KeyboardInterrupt
        return (torch.randn(8, 3, generator=generator),)

    fit.run(draw, lambda x: (model(x) - x @ target).square().mean())
    return fit


def test_training_resumes_bitwise_and_learns(tmp_path):
    whole = regression(tmp_path / "whole", 300)
    with pytest.raises(KeyboardInterrupt):
        regression(tmp_path / "cut", 300, stop=120)
    again = regression(tmp_path / "cut", 300)
    assert torch.equal(again.modules["model"].weight, whole.modules["model"].weight)
    assert (whole.modules["model"].weight - torch.tensor([[1.0, -2.0, 0.5]])).abs().max() < 0.05
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.01 * rows[0]["loss"] or rows[-1]["loss"] < 1e-3


def test_steps_are_drawn_ahead_in_order_by_processes(monkeypatch):
    """As for a GPU: other processes, the same draws."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pinned memory needs an accelerator
        drawn = list(ahead(lambda step: (step, os.getpid(), torch.full((2,), step)), 3, 9, "cuda"))
    assert [step for step, _, _ in drawn] == [*range(3, 9)] and all(bool((x == step).all()) for step, _, x in drawn)
    assert os.getpid() not in {pid for _, pid, _ in drawn} and len({pid for _, pid, _ in drawn}) == 2
    assert {pid for _, pid in ahead(lambda step: (step, os.getpid()), 0, 3, "cpu")} == {os.getpid()}


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("step"),
        lambda s: s.update(step="5"),
        lambda s: s.update(average=[]),
        lambda s: s["modules"].pop("model"),
        lambda s: s["modules"]["model"].update(weight=torch.zeros(3, 1)),
        lambda s: s["average"]["model"].update(weight=torch.zeros(1, 3, dtype=torch.float64)),
        lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)),
        lambda s: s["optimizer"]["state"].update({9: {}}),
        lambda s: s["optimizer"].pop("state"),
    ],
)
def test_a_training_of_a_stranger(tmp_path, change):
    """Moments of another shape would be written beyond their end."""
    with pytest.raises(KeyboardInterrupt):
        regression(tmp_path, 9, stop=3)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(FourdfyError) as error:
        regression(tmp_path, 9)
    assert error.value.code == 6 and error.value.hint
    for content in (b"", b"x" * 100, (tmp_path / "state.pt").read_bytes()[:-50]):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(FourdfyError, match="is damaged") as error:
            regression(tmp_path, 9)
        assert error.value.code == 6


def test_parts_are_trained_in_order_and_never_over_a_started_one(tmp_path):
    for part, message in (("lens", "no part"), ("video", "after")):
        with pytest.raises(FourdfyError, match=message) as error:
            train.train(part, tmp_path, False, 0)
        assert error.value.code == 2
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "state.pt").touch()
    with pytest.raises(FourdfyError, match="started") as error:
        train.train("vae", tmp_path, False, 0)
    assert "--resume" in error.value.hint
    with pytest.raises(FourdfyError, match="multiview is trained after vae, which has not ended") as error:
        train.train("multiview", tmp_path, False, 0)
    assert "--part vae --resume" in error.value.hint


@pytest.mark.long
def test_every_part_is_trained_and_the_loaders_take_them(tmp_path, monkeypatch):
    """The whole of `fourdfy nano train`, two steps a part; a second go finds everything done and makes the same weights."""
    for part, plan in train.PLANS.items():
        monkeypatch.setitem(train.PLANS, part, dataclasses.replace(plan, steps=2, batch=8, pool=64))
    monkeypatch.setattr(train, "draw", lambda model, prompts, kind, seed, steps, scale: draw(model, prompts[:2], kind, seed, 2, scale))
    said: list[str] = []
    (weights,) = train.train(None, tmp_path, False, 3, report=said.append)
    assert all(any(line.startswith(f"{part} 2/2") for line in said) for part in train.PLANS)
    assert {p.relative_to(weights) for p in weights.rglob("*.safetensors")} == {
        p.relative_to(WEIGHTS) for p in Path(WEIGHTS).rglob("*.safetensors")
    }
    assert all((tmp_path / part / "samples.png").is_file() for part in ("vae", "multiview", "video"))
    for role, spec in NANO.items():
        models.load(dataclasses.replace(spec, source=str(weights)), "cpu", torch.float32)
        assert text.encode(dataclasses.replace(spec, source=str(weights)), ["a red dog"], "cpu").isfinite().all(), role
    for part in ("multiview", "video"):
        assert snapshot(tmp_path, part, tmp_path / "shot" / part) == 2
        theirs, ours = models.load(dataclasses.replace(NANO[part], source=str(weights)), "cpu", torch.float32), located(part, tmp_path)
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(theirs.unet.parameters(), ours.unet.parameters(), strict=True))
        assert (ours.schedule.alphas_cumprod[-1] == 0) == (part == "video")
    with pytest.raises(FourdfyError, match="no snapshot of 'clip'"):
        snapshot(tmp_path, "clip", tmp_path / "shot")
    before = {p: p.read_bytes() for p in weights.rglob("*.safetensors")}
    train.train(None, tmp_path, True, 3, report=said.append)
    assert all(p.read_bytes() == content for p, content in before.items())


def located(part: str, folder: Path) -> models.Diffusion:
    """The model that a snapshot wrote, found as --set models.<part>=FOLDER finds it."""
    spec = sets.specs(Models("nano", **{part: str(folder / "shot" / part)}), (part,))[part]
    return models.load(spec, "cpu", torch.float32)


@pytest.mark.long
def test_the_decoder_learns_alone(tmp_path, monkeypatch):
    """The latents stay as they are to the last bit, and pictures come back better."""
    monkeypatch.setitem(train.PLANS, "decoder", Plan(steps=30, batch=8, rate=2e-3, pool=64))
    torch.manual_seed(0)
    model, pool = networks.vae(), train.pictures(0, 64)
    with torch.no_grad():
        z = model.encode(pool).latent
        before = train.image_psnr(model.decode(z).sample, pool)
    train.train_decoder(tmp_path, model, pool, 0, report=lambda text: None)
    with torch.no_grad():
        assert torch.equal(model.encode(pool).latent, z)
        assert train.image_psnr(model.decode(z).sample, pool) > before + 3


def test_the_autoencoder_keeps_what_matters():
    model = models.load(NANO["image"], "cpu", torch.float32)
    shot = views(1)
    rgb = torch.from_numpy(np.concatenate([truth(Subject(o, "blue"), shot).over(0.6) for o in ("dog", "car", "donut")])).permute(0, 3, 1, 2)
    with torch.no_grad():
        back = models.decode(model.vae, models.encode(model.vae, rgb)[0])
    assert -10 * torch.log10((back - rgb).square().mean()) > 28


@pytest.mark.long
def test_samples_are_named_right():
    """A fast look at what `README.md` reports in full: three things seen in training, one held out."""
    judge, model = load_clip("nano"), load("multiview")
    subjects = [Subject("dog", "red"), Subject("car", "green"), Subject("fish", "yellow"), Subject("rocket", "yellow")]
    rgb = draw(model, [s.text() for s in subjects], "multiview", 0, 15, 3.0)
    pictures = judge.pictures(rgb.flatten(0, 1))
    objects = (pictures @ judge.texts([f"a {o}" for o in OBJECTS]).T).argmax(1).unflatten(0, (4, 4))
    right = [(row == list(OBJECTS).index(s.object)).float().mean() for row, s in zip(objects, subjects, strict=True)]
    assert np.mean(right) >= 0.75, right


def test_clip_names_ground_truth():
    judge = load_clip("nano")
    shot = camera_shot(torch.arange(4) * 1.5, torch.zeros(4))
    for name in OBJECTS:
        rgb = torch.from_numpy(truth(Subject(name, "blue"), shot).over(0.6)).permute(0, 3, 1, 2)
        picture = judge.pictures(rgb)
        assert (
            (picture @ judge.texts([f"a blue {o}" for o in OBJECTS]).T).argmax(1) == list(OBJECTS).index(name)
        ).float().mean() >= 0.75, name
        assert (
            (picture @ judge.texts([f"a {c} {name}" for c in COLOURS]).T).argmax(1) == list(COLOURS).index("blue")
        ).float().mean() >= 0.75, name


def test_scores_of_the_ground_truth_itself_are_perfect():
    shot, subject = views(4), Subject("cat", "pink", "swaying")
    picture = truth(subject, shot)
    alpha = torch.from_numpy(picture.rgba[..., 3])
    frames = Frames(torch.from_numpy(picture.over(0.6)), alpha, torch.from_numpy(picture.depth) * alpha)
    measured = compare(frames, shot, subject)
    assert measured["iou"].min() == 1 and measured["psnr"].min() > 60 and np.nanmax(measured["depth_error"]) < 1e-4
    shifted = compare(frames, shot, Subject("car", "blue"))
    assert shifted["iou"].max() < 0.9 and shifted["psnr"].mean() < 20


def test_spots_are_eyes_and_noses():
    """All of them in the truth, none where the thing has one colour, a half in half of each; of a ball nothing can be told."""
    shot, subject = views(1), Subject("dog", "red")
    picture = truth(subject, shot)
    true, solid = picture.over(0.6), picture.rgba[..., 3] > 0.5
    plain = np.where(solid[..., None], np.float32([0.8, 0.1, 0.1]), true)
    whole, none, half = (spots(rgb, true, solid) for rgb in (true, plain, (true + plain) / 2))
    seen = ~np.isnan(whole)
    assert seen.tolist() == [True, True, False, False, False, False, True, True]  # from the front
    assert (
        whole[0] > 2 * whole[1] > 0
        and none[seen] == pytest.approx(0, abs=1e-4)
        and half[seen] == pytest.approx(0.5 * whole[seen], abs=1e-4)
    )
    assert (mean(whole), mean(half)) == pytest.approx((1, 0.5), abs=1e-4)
    green = truth(Subject("cat", "green"), shot)
    true, solid = green.over(0.6), green.rgba[..., 3] > 0.5
    brighter = np.where((np.ptp(true, -1) > 0.15)[..., None], np.minimum(1.5 * true, 1), true)
    assert np.isnan(spots(true, true, solid)).tolist() == (~seen).tolist()  # its shady side is no eye
    assert mean(spots(brighter, true, solid)) > 1  # and eyes stand out more if all else is brighter
    ball = truth(Subject("ball", "orange"), shot)
    assert mean(spots(true, ball.over(0.6), ball.rgba[..., 3] > 0.5)) is None and mean(np.array([np.nan, 1.0, 2.0])) == 1.5


def test_change_counts_the_step_from_the_last_frame_to_the_first():
    clip = np.zeros((4, 2, 2, 3), np.float32)
    clip[1] = 1
    assert change(clip) == pytest.approx(0.5)


def test_pictures_and_videos_of_the_world(tmp_path):
    assert sheet("a red dog jumping", tmp_path / "gt.png", size=32).stat().st_size > 1000
    assert video("a red dog jumping", tmp_path / "gt.mp4", size=32, periods=1).stat().st_size > 1000
    assert sample("a red dog", "multiview", tmp_path / "s.png", steps=2).is_file()


@pytest.mark.parametrize("thing, wanted, shown, low, high", [
    ("dog", "jumping", "jumping", 1, 1),
    ("ball", None, "jumping", 0.9, 1.1),  # beside bouncing and walking; its spinning and swaying are nothing to be seen
    ("ball", "spinning", "walking", 0.9, 1),
    ("ball", "spinning", "swaying", 0, 0),
])  # fmt: skip
def test_motion_over_what_is_to_be_seen(thing, wanted, shown, low, high, monkeypatch):
    def seen(_, shot):
        return Frames(torch.from_numpy(truth(Subject(thing, "red", shown), shot).over(judge.BACKDROP)), torch.ones(1), torch.ones(1))

    monkeypatch.setattr(judge, "render_views", seen)
    assert low <= round(judge.motion_ratio(Scene.__new__(Scene), Subject(thing, "red", wanted)), 6) <= high
