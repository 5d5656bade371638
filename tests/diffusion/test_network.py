"""One network from its folder: the autoencoder's old names and posterior, and weights drawn from a seed."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from fourdfy_cli.diffusion import models, network


def kl() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        scaling_factor=0.18215,
    )


def test_kl_autoencoder_samples_its_posterior(tmp_path: Path) -> None:
    theirs = kl()
    theirs.save_pretrained(tmp_path)
    ours = network.network(tmp_path, network.VAES, "cpu", torch.float32)
    rgb = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        posterior = theirs.encode(rgb * 2 - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(5))
        mean, std = models.encode(ours, rgb)
        sample = posterior.sample(torch.Generator().manual_seed(5)) * 0.18215
        torch.testing.assert_close(mean + std * noise, sample, rtol=1e-4, atol=1e-6)


def test_kl_autoencoder_with_old_attention_names(tmp_path: Path) -> None:
    theirs = kl()
    theirs.save_pretrained(tmp_path)
    old = {new: before for before, new in network.OLD_NAMES.items()}
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for key, value in load_file(path).items():
        for new, before in old.items():
            key = key.replace(new, before)
        renamed[key] = value
    assert "encoder.mid_block.attentions.0.query.weight" in renamed
    save_file(renamed, path)
    ours = network.network(tmp_path, network.VAES, "cpu", torch.float32)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


def test_old_names_and_back() -> None:
    keys = list(kl().state_dict())
    assert [network.rename(network.old_name(key)) for key in keys] == keys
    assert sum(network.old_name(key) != key for key in keys) == 16  # q, k, v and output of two attentions, weight and bias


def test_drawn_weights_keep_the_size_of_activations(tmp_path: Path) -> None:
    kl().save_config(tmp_path)
    vae = network.network(tmp_path, network.VAES, "cpu", torch.float32, seed=3)
    weight = vae.encoder.down_blocks[0].resnets[0].conv1.weight
    assert abs(weight.std().item() * (8 * 9) ** 0.5 - 1) < 0.15
    assert (vae.encoder.conv_norm_out.weight == 1).all()
    assert (vae.encoder.conv_in.bias == 0).all()
    with torch.no_grad():
        size = vae.encode(torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))).latent_dist.mean.std()
    assert 0.1 < size < 10


def test_drawing_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    kl().save_config(tmp_path)
    before = torch.get_rng_state()
    network.network(tmp_path, network.VAES, "cpu", torch.float32, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
