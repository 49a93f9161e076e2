"""Rooms exchanged and people hidden in training: what moves stays where and when it is, what stands is another's."""

import torch

from dtsf.model.motion import motion_magnitude
from dtsf.training.augment import foreground_weight, occlude_views, swap_backgrounds

B, V, T, H, R = 6, 3, 8, 6, 4


def clips(seed=0):
    """Somebody walks from left to right through the middle rows, before a room of each view's own."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(B, V, 1, H, H, R, generator=rng).repeat(1, 1, T, 1, 1, 1)
    for t in range(T):
        x[:, :, t, 2:4, t * (H - 1) // (T - 1)] += 8.0
    return x


ALL = torch.ones(B, V, dtype=torch.bool)


def test_swap_backgrounds__keeps_the_moving_foreground():
    torch.manual_seed(0)
    x = clips()
    exchanged = swap_backgrounds(x, ALL, 1.0)
    still = foreground_weight(x.flatten(0, 1)).view(B, V, T, H, H) == 0
    rooms = x.mean(2).flatten(0, 1)
    # Where nobody ever is, each clip shows one clip's room, and together they show every room once.
    corner = exchanged[..., 0, 0, :].flatten(0, 1)[:, 0]
    shown = (corner[:, None] - rooms[:, 0, 0]).abs().amax(-1).argmin(1)
    assert sorted(shown.tolist()) == list(range(B * V))
    assert (shown != torch.arange(B * V)).any()
    torch.testing.assert_close(corner, rooms[shown, 0, 0], atol=1e-3, rtol=1e-2)  # the root of rounding
    assert still.any()
    before, after = (motion_magnitude(y)[..., 0] for y in (x, exchanged))
    assert torch.equal(before.sum(3).argmax(-1), after.sum(3).argmax(-1))
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.95


def test_swap_backgrounds__keeps_cells_with_most_motion():
    torch.manual_seed(0)
    x = clips()
    exchanged = swap_backgrounds(x, ALL, 1.0)
    most = foreground_weight(x.flatten(0, 1)).view(B, V, T, H, H) == 1
    assert most.flatten(2).any(-1).all()
    torch.testing.assert_close(exchanged[most], x[most])


def test_swap_backgrounds__only_a_share_of_present_views():
    torch.manual_seed(0)
    x, mask = clips(), ALL.clone()
    mask[:, 1] = False
    x[:, 1] = torch.nan
    exchanged = swap_backgrounds(x, mask, 0.5)
    assert exchanged[:, 1].isnan().all()
    assert not exchanged[:, ::2].isnan().any()
    changed = (exchanged != x)[:, ::2].flatten(2).any(-1).float().mean()
    assert 0 < changed < 1
    assert torch.equal(swap_backgrounds(clips(), ALL, 0.0), clips())


def test_occlude_views__removes_motion_and_keeps_one_view_free():
    torch.manual_seed(0)
    x = clips()
    hidden = occlude_views(x, ALL, 1.0)
    changed = (hidden != x).flatten(2).any(-1)
    assert (changed.sum(1) == V - 1).all()
    motion = [(y - y.mean(2, keepdim=True)).norm(dim=-1).sum((2, 3, 4)) for y in (x, hidden)]
    assert (motion[1][changed] < motion[0][changed]).all()
    assert (motion[1][changed] / motion[0][changed]).min() < 0.3
    # A pillar reaches from the floor to the ceiling: whole columns are still, the others untouched; the room stays behind it.
    columns = (hidden != x).flatten(2).view(B, V, T, H, H, R).any(-1).any(2).any(2)
    assert columns.flatten(0, 1).any(0).all()
    torch.testing.assert_close(hidden.mean(2), x.mean(2), atol=1e-4, rtol=1e-4)


def test_occlude_views__never_covers_a_single_view():
    x, mask = clips(), torch.zeros_like(ALL)
    mask[:, 2] = True
    assert torch.equal(occlude_views(x, mask, 1.0), x)
    assert torch.equal(occlude_views(x, ALL, 0.0), x)
