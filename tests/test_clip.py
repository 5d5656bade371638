import json
import math

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate.clip import cosines, find_runs, load_clip
from fourdfy_cli.nano.train_clip import CONFIG, MEAN, STD, export_clip, said, true_of
from fourdfy_cli.scene.cameras import mav3d


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP with random weights, in open_clip's own layout."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("clip")
    export_clip(open_clip.CLIP(**CONFIG), place)
    return place


def test_score_equals_a_hand_computation(folder):
    clip = load_clip(f"local-dir:{folder}")
    frames = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = open_clip.CLIP(**CONFIG)
    from safetensors.torch import load_file

    model.load_state_dict({k: v.float() for k, v in load_file(folder / "open_clip_model.safetensors").items()})
    model.eval()
    tokens = open_clip.SimpleTokenizer(context_length=24)(["a red dog jumping"])
    with torch.no_grad():
        words = model.encode_text(tokens)[0]
        expected = []
        for frame in frames:
            picture = model.encode_image(((frame - 0.5) / 0.5)[None])[0]
            expected.append(100 * float(picture @ words) / float(picture.norm() * words.norm()))
    assert torch.allclose(cosines(clip, "a red dog jumping", frames), torch.tensor(expected), atol=1e-4)


def test_pictures_of_another_size_are_resized_to_the_models(folder):
    clip = load_clip(f"local-dir:{folder}")
    plain = torch.full((1, 3, 64, 64), 0.3)
    assert torch.allclose(clip.pictures(plain), clip.pictures(torch.full((1, 3, 100, 100), 0.3)), atol=1e-5)
    assert MEAN == STD == (0.5, 0.5, 0.5) and clip.size == 64


def test_real_vit_b_32_has_its_size():
    with torch.device("meta"):
        model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 151_277_313


@pytest.mark.parametrize("name, code", [("no-such-clip", 2), ("local-dir:/does/not/exist", 3)])
def test_unknown_and_missing_models(name, code):
    with pytest.raises(FourdfyError) as error:
        load_clip(name)
    assert error.value.code == code and error.value.hint.startswith("fourdfy clip-score")


def test_a_damaged_model_is_one_line(folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_model.safetensors").write_bytes((folder / "open_clip_model.safetensors").read_bytes()[:1000])
    with pytest.raises(FourdfyError) as error:
        load_clip(f"local-dir:{tmp_path}")
    assert error.value.code == 3 and "\n" not in error.value.message
    save_file({"x": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(FourdfyError):
        load_clip(f"local-dir:{tmp_path}")


def test_runs_are_found_at_and_below_a_path(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({}))
    assert find_runs([tmp_path]) == [tmp_path / "a", tmp_path / "b"]
    assert find_runs([tmp_path / "b"]) == [tmp_path / "b"]
    (tmp_path / "c").mkdir()
    with pytest.raises(FourdfyError) as error:
        find_runs([tmp_path / "c"])
    assert error.value.code == 2


def test_the_mav3d_path():
    shot = mav3d(256)
    azimuth, time = torch.rad2deg(shot.azimuth()) % 360, shot.time
    assert len(shot) == 124 and shot.size == (256, 256)
    for block, start in enumerate((0.0, 270.0, 180.0, 90.0)):
        first = 31 * block
        assert torch.allclose((azimuth[first : first + 16] - start + 180) % 360 - 180, torch.zeros(16), atol=1e-3)
        turned = (start - azimuth[first + 16 : first + 31]) % 360
        assert torch.allclose(turned, 6.0 * torch.arange(1, 16), atol=1e-3)
    assert torch.allclose(time[:62], torch.arange(62) / 63) and torch.equal(time[:62], time[62:])
    assert torch.allclose(shot.c2w[:, :3, 3].norm(dim=1), torch.tensor(3.0)) and torch.allclose(shot.fovy, torch.tensor(math.radians(40)))
    assert torch.allclose(torch.rad2deg(shot.elevation()), torch.tensor(15.0), atol=1e-3)


def test_a_caption_matches_where_every_word_is_true():
    from numpy.random import default_rng

    from fourdfy_cli.nano.prompts import Subject

    label = (Subject("dog", "red", None), "front view")
    assert true_of(("dog", None, None, None), label) and true_of(("dog", "red", None, "front view"), label)
    assert not true_of(("dog", "red", "jumping", None), label) and not true_of(("dog", "blue", None, None), label)
    rng = default_rng(0)
    assert all(true_of(said(label, rng), label) for _ in range(50))
