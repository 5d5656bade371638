"""Latents of drawn groups: kept, and not drawn twice."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from fourdfy_cli.nano import latents


class Encoder:
    """Every second pixel, in place of a VAE's latents."""

    def to(self, device):
        assert device == "cpu"

    def encode(self, pictures):
        return SimpleNamespace(latent=pictures[..., ::4, ::4])


def test_drawing_that_was_interrupted_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SECONDS", 0)
    whole = latents.cache(tmp_path / "whole.safetensors", 3, 192, "still", Encoder())

    def stop(message):
        if message.endswith("128/192"):
            raise KeyboardInterrupt

    path, told = tmp_path / "late" / "cut.safetensors", []
    with pytest.raises(KeyboardInterrupt):
        latents.cache(path, 3, 192, "still", Encoder(), report=stop)
    assert not path.exists()
    cut = latents.cache(path, 3, 192, "still", Encoder(), report=told.append)
    assert told == ["drawing cut: 128/192"]
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    kept = latents.cache(path, 3, 192, "still", None)
    assert all(torch.equal(whole[name], kept[name]) for name in whole) and len(list(path.parent.iterdir())) == 1


def test_smudged_pictures_keep_what_is_large_and_lose_what_is_small():
    rgb = torch.zeros(1, 3, 64, 64)
    rgb[:, :, 16:48, 16:48] = 0.8
    assert (latents.smudged(rgb)[:, :, 24:40, 24:40] - 0.8).abs().max() < 1e-6 and latents.smudged(rgb).mean() == pytest.approx(rgb.mean())
    rgb[:, :, 29:32, 29:32] = 0.0  # an eye, three pixels wide
    assert 0.3 < latents.smudged(rgb)[:, :, 29:32, 29:32].mean() < 0.6


@pytest.mark.parametrize("shape", [(3, 12, 8, 8), (3, 12, 4, 8, 8)], ids=["pictures", "clips"])
def test_noise_over_what_is_shown_asks_for_what_is_right(shape):
    shown, z = (torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    z[0], abar, right = shown[0], torch.tensor([0.9, 0.5, 0.1]), torch.tensor([True, False, False])
    z_t, v, weight = latents.noised(shown, z, right, abar, torch.Generator().manual_seed(2))
    signal = abar.reshape(3, *[1] * (len(shape) - 1))
    eps = (z_t - signal.sqrt() * shown) / (1 - signal).sqrt()
    assert torch.allclose(eps, torch.randn(shape, generator=torch.Generator().manual_seed(2)), atol=1e-4)
    assert torch.allclose(signal.sqrt() * z_t - (1 - signal).sqrt() * v, z, atol=1e-5)
    assert torch.allclose(v[0], (signal.sqrt() * eps - (1 - signal).sqrt() * z)[0], atol=1e-4)  # v as Salimans and Ho define it
    assert weight.flatten().tolist() == pytest.approx([1, 0.5, 0.9])


def test_a_file_from_before_smudged_pictures_were_kept_is_drawn_again(tmp_path):
    path = tmp_path / "clip.safetensors"
    whole = latents.cache(path, 3, 64, "frozen", Encoder())
    for name in ("clip.safetensors", "clip.part"):
        path.unlink()
        save_file({key: value for key, value in whole.items() if key != "smudged"}, tmp_path / name)
        again = latents.cache(path, 3, 64, "frozen", Encoder())
        assert again.keys() == whole.keys() and torch.equal(again["smudged"], whole["smudged"])
