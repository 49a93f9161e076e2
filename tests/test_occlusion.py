"""``model.occlusion_threshold``: a view with too little motion is occluded, and excluded from the fusion."""

import pytest
import torch
from make_groups import assert_same_outputs, run_state

from dtsf.api import Run
from dtsf.errors import CheckpointError, DataError
from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.motion import motion_share
from dtsf.model.network import DTSFNet
from dtsf.predict.onnx import export_onnx
from dtsf.training.checkpoint import load_checkpoint, load_network, save_checkpoint
from dtsf.training.data import Groups, evaluation_batches
from dtsf.training.prepare import min_motion_share

T, H, C = 4, 6, 5
EACH = BranchConfig(input="motion")
ALL_VIEWS = BranchConfig(input="motion", views="all")


def network(threshold=0.9, n_views=3, together=True, **keys):
    torch.manual_seed(0)
    branch = (EACH, ALL_VIEWS) if together else (EACH,)
    sizes = {"width": 16, "depth": 1, "frames": T, "state": 4, "readout": "flatten"}
    config = ModelConfig(branch=branch, occlusion_threshold=threshold, **sizes, **keys)
    net = DTSFNet(config, channels=C, side=H, n_classes=4, n_views=n_views).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net


def swinging(amounts):
    """Groups (B, V) in which view v's every cell goes to and fro by ``amounts[b][v]``, about some picture of its own."""
    amount_BV = torch.tensor(amounts)
    x_BV1HWC = torch.randn(*amount_BV.shape, 1, H, H, C, generator=torch.Generator().manual_seed(1))
    swing_T = torch.tensor([1.0, -1.0]).repeat(T // 2)
    return x_BV1HWC + amount_BV[:, :, None, None, None, None] * swing_T.view(T, 1, 1, 1)


ALL = torch.ones(1, 3, dtype=torch.bool)
WITHOUT_SECOND = torch.tensor([[True, False, True]])


def test_motion_share__is_relative_to_the_most_moving_view_and_reads_no_absent_one():
    share_BV = motion_share(swinging([[2.0, 1.0, 0.5], [0.1, 0.4, 0.4]]), ALL.expand(2, 3), torch.ones(C))
    torch.testing.assert_close(share_BV, torch.tensor([[1.0, 0.5, 0.25], [0.25, 1.0, 1.0]]))
    # Channels are weighed: one that counts for nothing hides what moves there alone.
    x_BVTHWC = swinging([[0.0, 1.0, 1.0]])
    x_BVTHWC[0, 0, ::2, ..., 0] += 9.0
    scale_C = torch.ones(C)
    assert motion_share(x_BVTHWC, ALL, scale_C)[0, 0] == 1.0
    scale_C[0] = 0.0
    assert motion_share(x_BVTHWC, ALL, scale_C)[0, 0] < 1e-5
    x_BVTHWC = swinging([[1.0, 50.0, 0.5]])
    wanted = torch.tensor([[1.0, 0.0, 0.5]])
    torch.testing.assert_close(motion_share(x_BVTHWC, WITHOUT_SECOND, torch.ones(C)), wanted)
    for nonsense in (torch.nan, torch.inf):
        x_BVTHWC[0, 1] = nonsense
        torch.testing.assert_close(motion_share(x_BVTHWC, WITHOUT_SECOND, torch.ones(C)), wanted)


def test_motion_share__is_1_where_nothing_moves_and_rounding_is_not_motion():
    still = torch.zeros(1, 3, T, H, H, C)
    assert motion_share(still, ALL, torch.ones(C)).tolist() == [[1.0, 1.0, 1.0]]
    assert motion_share(still, WITHOUT_SECOND, torch.ones(C)).tolist() == [[1.0, 0.0, 1.0]]
    # Frames at equal shares of motion are interpolated, also between two that are the same.
    still = torch.randn(3, 1, H, H, C, generator=torch.Generator().manual_seed(0)).repeat(1, 16, 1, 1, 1).half()
    groups = Groups(still, torch.tensor([[0, 1, 2]]), torch.zeros(1, dtype=torch.int64), ("a",))
    [batch] = evaluation_batches(groups, 1, 16, motion_sampling=1.0)
    assert not torch.equal(batch.x_BVTHWC[:, :, 0], batch.x_BVTHWC[:, :, 7])
    assert motion_share(batch.x_BVTHWC, ALL, torch.ones(C)).tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("fusion", ["msf", "mean", "concat", "sfm", "tmc"])
@pytest.mark.parametrize("together", [True, False])
def test_network__an_occluded_view_is_excluded_in_evaluation_only(fusion, together):
    net = network(fusion=fusion, together=together)
    net.min_motion_share_V.fill_(0.5)
    x_BVTHWC, mask_BV = swinging([[1.0, 0.1, 0.9]]), ALL
    said = net(x_BVTHWC, mask_BV)
    assert said.view_weights_BV[0, 1] == 0
    assert (said.view_weights_BV[0, [0, 2]] > 0).all()
    absent = net(x_BVTHWC, WITHOUT_SECOND)
    torch.testing.assert_close(said.probabilities_BK, absent.probabilities_BK)
    torch.testing.assert_close(said.view_weights_BV, absent.view_weights_BV)
    assert said.mask_BV.all()
    assert (said.view_feature_BVD[0, 1] != 0).any()
    net.train()
    assert (net(x_BVTHWC, mask_BV).view_weights_BV > 0).all()
    never = network(0.0, fusion=fusion, together=together)
    assert (never(x_BVTHWC, mask_BV).view_weights_BV > 0).all()


def test_network__one_view_always_stays():
    net = network(1.0)
    net.min_motion_share_V.fill_(1.0)
    torch.manual_seed(2)
    x_BVTHWC = torch.randn(45, 3, T, H, H, C)
    x_BVTHWC[40:] *= 1e-6
    x_BVTHWC[44] = 0.0
    mask_BV = torch.rand(45, 3) < 0.6
    mask_BV[~mask_BV.any(1), 2] = True
    weights_BV = net(x_BVTHWC, mask_BV).view_weights_BV
    assert ((weights_BV > 0).sum(1) >= 1).all()
    torch.testing.assert_close(weights_BV.sum(1), torch.ones(45))
    assert (weights_BV[~mask_BV] == 0).all()


def test_network__a_view_new_in_the_test_is_never_excluded():
    net = network(1.0, together=False)
    net.min_motion_share_V.copy_(torch.tensor([0.9, 0.0, 0.9]))
    assert (net(swinging([[1.0, 1e-3, 0.95]]), ALL).view_weights_BV > 0).all()
    four = net(swinging([[1.0, 0.1, 0.1, 1e-3]]), torch.ones(1, 4, dtype=torch.bool)).view_weights_BV[0] > 0
    assert four.tolist() == [True, True, False, True]


def test_predict__more_videos_than_views_with_weights_are_wrong_data(tmp_path):
    """DataError, not ConfigError: ``predict --watch`` goes on after wrong data alone."""
    net = network(fusion="concat", together=False)
    run = Run(tmp_path, run_state(net), net)
    with pytest.raises(DataError, match="4 videos given, .* was trained on 3 views"):
        run.predict(["a.avi", "b.avi", "c.avi", "d.avi"])


def test_min_motion_share__reads_only_groups_of_several_views():
    net = network()
    x_BVTHWC = swinging([[1.0, 0.5, 0.8], [1.0, 0.7, 0.4], [0.01, 0.0, 0.0]])
    row_GV = torch.tensor([[0, 1, 2], [3, -1, 5], [6, -1, -1]])
    groups = Groups(x_BVTHWC.flatten(0, 1).half(), row_GV, torch.zeros(3, dtype=torch.int64), ("a", "b", "c"))
    torch.testing.assert_close(min_motion_share(net, groups), torch.tensor([1.0, 0.5, 0.4]), rtol=2e-3, atol=0)
    # Every group has one view: all shares are unknown, and no view is ever excluded.
    row_GV = torch.tensor([[0, -1, -1], [-1, 4, -1], [-1, 7, -1]])
    alone = Groups(groups.embeddings_NFHWC, row_GV, groups.label_G, groups.names)
    assert min_motion_share(net, alone).tolist() == [0.0, 0.0, 0.0]
    of_one = Groups(groups.embeddings_NFHWC, torch.tensor([[0], [3]]), torch.zeros(2, dtype=torch.int64), ("a", "b"))
    assert min_motion_share(network(n_views=1), of_one).tolist() == [0.0]


def test_checkpoint__stores_the_smallest_shares_and_is_refused_without_them(tmp_path):
    net = network()
    net.min_motion_share_V.copy_(torch.tensor([0.3, 0.6, 0.9]))
    save_checkpoint(tmp_path / "last", run_state(net), net.state_dict(), {})
    opened = load_network(load_checkpoint(tmp_path / "last"))
    assert opened.min_motion_share_V.tolist() == net.min_motion_share_V.tolist()
    never = network(0.0)
    assert "min_motion_share_V" not in never.state_dict()
    save_checkpoint(tmp_path / "cut", run_state(net), never.state_dict(), {})
    with pytest.raises(CheckpointError, match="min_motion_share_V"):
        load_network(load_checkpoint(tmp_path / "cut"))


@pytest.mark.slow
@pytest.mark.parametrize("together", [True, False])
def test_export_onnx__excludes_an_occluded_view_as_pytorch(tmp_path, together):
    net = network(together=together)
    net.min_motion_share_V.copy_(torch.tensor([0.9, 0.8, 0.3]))
    # No view is occluded in the first group, another one in each of the next three; nothing moves in the last.
    x_BVTHWC = swinging([[1.0, 0.9, 0.8], [0.1, 1.0, 0.9], [1.0, 0.1, 0.9], [0.9, 1.0, 0.1], [0.0, 0.0, 0.0]])
    x_BVTHWC += 0.01 * torch.randn(x_BVTHWC.shape, generator=torch.Generator().manual_seed(3))
    x_BVTHWC[4] = 0.0
    export_onnx(net, run_state(net, x_BVTHWC.shape[2]), tmp_path / "net.onnx")
    said = assert_same_outputs(tmp_path / "net.onnx", net, x_BVTHWC)
    assert (said.view_weights_BV == 0).int().tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
