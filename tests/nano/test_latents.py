"""Latents of drawn groups: kept, and not drawn twice."""

from types import SimpleNamespace

import pytest
import torch

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
