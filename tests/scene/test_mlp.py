"""The sums of small networks."""

import pytest
import torch

from fourdfy_cli.scene.mlp import weight_gradient


@pytest.mark.parametrize("points", [0, 1, 15, 16, 17, 5000, 8192])
def test_a_weights_gradient(points: int):
    """The plain product, whatever is left over, and the same bits on one thread and on two."""
    generator, threads, found = torch.Generator().manual_seed(points), torch.get_num_threads(), []
    grad, x = (torch.randn(points, width, generator=generator) for width in (4, 32))
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(weight_gradient(grad, x))
    torch.set_num_threads(threads)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0].double(), grad.double().t() @ x.double(), rtol=1e-4, atol=1e-3)
