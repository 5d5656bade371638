"""The occupancy grid's bookkeeping."""

from __future__ import annotations

import reference_scene as reference
import torch

from fourdfy_cli.scene.occupancy import Occupancy, lookup


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ball(x: torch.Tensor) -> torch.Tensor:
    return 20.0 * (x.norm(dim=-1) < 0.5)


def test_everything_is_occupied_before_the_first_update():
    grid = Occupancy(4)
    assert lookup(grid.binary, torch.rand(50, 3, generator=generator()) * 2 - 1).all()
    assert torch.equal(grid.bounds(), torch.tensor([[-1.0] * 3, [1.0] * 3]))


def test_points_outside_the_box_are_never_occupied():
    outside = torch.tensor([[1.01, 0, 0], [0, -1.01, 0], [0, 0, 5.0], [-1e6, 0, 0], [1e20, 0, 0]])
    assert not lookup(Occupancy(4).binary, outside).any()


def test_lookup_names_the_right_cell():
    grid = Occupancy(4)
    grid.binary.fill_(False)[3, 0, 2] = True
    x = torch.tensor([[0.6, -0.9, 0.1], [0.6, 0.1, -0.9], [0.1, -0.9, 0.6], [0.99, -0.51, 0.49]])
    assert lookup(grid.binary, x).tolist() == [True, False, False, True]
    assert torch.equal(grid.bounds(), torch.tensor([[0.5, -1.0, 0.0], [1.0, -0.5, 0.5]]))


def test_warm_up_visits_every_cell_once_inside_itself():
    grid, seen = Occupancy(5), []
    grid.update(lambda x: (seen.append(x), ball(x))[1], 0.1, 0, 1, generator())
    (x,) = seen
    cell = ((x + 1) * 2.5).long()
    assert len(x) == 125 and len({tuple(c) for c in cell.tolist()}) == 125
    assert (x.abs() <= 1).all() and ((x + 1) * 2.5 % 1).std() > 0.2


def test_value_is_density_times_step_and_binary_its_threshold():
    grid = Occupancy(8)
    grid.update(ball, 0.05, 0, 1, generator())
    assert set(grid.value.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(grid.binary, reference.occupied_cells(grid.value))
    assert lookup(grid.binary, torch.zeros(1, 3)).all() and not lookup(grid.binary, torch.full((1, 3), 0.9)).any()


def test_threshold_is_the_mean_while_the_scene_is_faint():
    grid = Occupancy(6)
    grid.update(lambda x: 0.001 * (x[:, 0] + 1), 1.0, 0, 1, generator())
    assert torch.equal(grid.binary, reference.occupied_cells(grid.value))
    assert 0.3 < grid.binary.float().mean() < 0.7


def test_what_is_gone_fades_by_a_twentieth_a_visit():
    grid = Occupancy(4)
    grid.update(lambda x: torch.ones(len(x)), 1.0, 0, 9, generator())
    for _ in range(3):
        grid.update(lambda x: torch.zeros(len(x)), 1.0, 0, 9, generator())
    torch.testing.assert_close(grid.value, torch.full((4, 4, 4), 0.95**3))


def test_later_a_quarter_at_random_and_the_occupied_ones():
    grid, counts = Occupancy(8), []
    grid.update(ball, 0.05, 0, 1, generator())
    occupied, before = grid.binary.clone(), grid.value.clone()
    grid.update(lambda x: (counts.append(len(x)), torch.zeros(len(x)))[1], 0.05, 5, 1, generator(1))
    assert occupied.sum() < 128 and counts == [128 + int(occupied.sum())]
    torch.testing.assert_close(grid.value[occupied], 0.95 * before[occupied])  # each visited, faded once though drawn twice


def test_never_more_occupied_cells_than_random_ones():
    grid, counts = Occupancy(8), []
    grid.update(lambda x: (counts.append(len(x)), ball(x))[1], 0.05, 5, 1, generator())
    assert counts == [256]


def test_moving_matter_leaves_a_union_over_times():
    grid = Occupancy(8)
    for side in (-0.5, 0.5):
        grid.update(lambda x, side=side: 20.0 * ((x - torch.tensor([side, 0, 0])).norm(dim=-1) < 0.3), 0.05, 0, 9, generator())
    assert lookup(grid.binary, torch.tensor([[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0]])).all()


def test_repeatable_and_saved():
    first, second = Occupancy(6), Occupancy(6)
    for grid in (first, second):
        for step in range(3):
            grid.update(ball, 0.05, step, 1, generator(step))
    assert torch.equal(first.value, second.value)
    third = Occupancy(6)
    third.load_state_dict(first.state_dict())
    assert torch.equal(third.binary, first.binary)


def test_nothing_left():
    grid = Occupancy(4)
    grid.update(lambda x: torch.zeros(len(x)), 1.0, 0, 1, generator())
    assert not grid.binary.any() and grid.bounds().shape == (2, 3)
