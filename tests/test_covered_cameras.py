"""``model.covered``: a camera whose sight is blocked is known by how little it sees move, and left out of the fusion."""

import pytest
import torch
from test_export import assert_says_the_same, run_state

from dtsf.api import Run
from dtsf.errors import CheckpointError, ConfigError, DataError
from dtsf.model.config import ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.model.tsm import motion_share
from dtsf.predict.onnx import export_onnx
from dtsf.training.checkpoint import load_checkpoint, load_network, save_checkpoint
from dtsf.training.data import Groups, evaluation_batches, min_motion_share

T, H, C = 4, 6, 5
ENERGY = {"canvas": "energy", "anchor": "frame", "pasted": "none", "readout": "ordered", "normalise": "data"}


def network(covered=0.9, n_views=3, **changes):
    torch.manual_seed(0)
    config = ModelConfig(
        width=16, depth=1, frames=T, state=4, covered=covered, **ENERGY | {"views": "merged"} | changes
    )
    net = DTSFNet(config, channels=C, canvas=H, n_classes=4, n_views=n_views).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net


def swinging(amounts):
    """Groups (B, V) in which view v's every cell goes to and fro by ``amounts[b][v]``, about some picture of its own."""
    amount_BV = torch.tensor(amounts)
    x_BVTHWC = torch.randn(*amount_BV.shape, 1, H, H, C, generator=torch.Generator().manual_seed(1)).repeat(
        1, 1, T, 1, 1, 1
    )
    swing_T = torch.tensor([1.0, -1.0]).repeat(T // 2)
    return x_BVTHWC + amount_BV[:, :, None, None, None, None] * swing_T.view(T, 1, 1, 1)


ALL = torch.ones(1, 3, dtype=torch.bool)
WITHOUT_SECOND = torch.tensor([[True, False, True]])


def test_share_is_of_what_the_liveliest_view_of_the_group_sees_move():
    share_BV = motion_share(swinging([[2.0, 1.0, 0.5], [0.1, 0.4, 0.4]]), ALL.expand(2, 3), torch.ones(C))
    torch.testing.assert_close(share_BV, torch.tensor([[1.0, 0.5, 0.25], [0.25, 1.0, 1.0]]))
    # Channels are weighed: one that counts for nothing hides what moves there alone.
    x_BVTHWC = swinging([[0.0, 1.0, 1.0]])
    x_BVTHWC[0, 0, ::2, ..., 0] += 9.0
    scale_C = torch.ones(C)
    assert motion_share(x_BVTHWC, ALL, scale_C)[0, 0] == 1.0
    scale_C[0] = 0.0
    assert motion_share(x_BVTHWC, ALL, scale_C)[0, 0] < 1e-5


def test_absent_views_have_no_share_whatever_stands_there_and_set_no_measure():
    x_BVTHWC = swinging([[1.0, 50.0, 0.5]])
    wanted = torch.tensor([[1.0, 0.0, 0.5]])
    torch.testing.assert_close(motion_share(x_BVTHWC, WITHOUT_SECOND, torch.ones(C)), wanted)
    for nonsense in (torch.nan, torch.inf):
        x_BVTHWC[0, 1] = nonsense
        torch.testing.assert_close(motion_share(x_BVTHWC, WITHOUT_SECOND, torch.ones(C)), wanted)


def test_where_nothing_moves_no_view_is_worse_than_another():
    still = torch.zeros(1, 3, T, H, H, C)
    assert motion_share(still, ALL, torch.ones(C)).tolist() == [[1.0, 1.0, 1.0]]
    assert motion_share(still, WITHOUT_SECOND, torch.ones(C)).tolist() == [[1.0, 0.0, 1.0]]


def test_rounding_is_no_motion():
    """Frames at equal shares of motion are interpolated, also between two that are the same."""
    still = torch.randn(3, 1, H, H, C, generator=torch.Generator().manual_seed(0)).repeat(1, 16, 1, 1, 1).half()
    groups = Groups(still, torch.tensor([[0, 1, 2]]), torch.zeros(1, dtype=torch.int64), ("a",))
    [batch] = evaluation_batches(groups, 1, 16, motion_sampling=1.0)
    assert not torch.equal(batch.x_BVTHWC[:, :, 0], batch.x_BVTHWC[:, :, 7])
    assert motion_share(batch.x_BVTHWC, ALL, torch.ones(C)).tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("fusion", ["msf", "mean", "concat", "sfm", "tmc"])
@pytest.mark.parametrize("views", ["merged", "apart"])
def test_a_covered_view_has_no_part_in_evaluation_and_its_part_in_training(fusion, views):
    net = network(fusion=fusion, views=views)
    net.min_motion_share_V.fill_(0.5)
    x_BVTHWC, mask_BV = swinging([[1.0, 0.1, 0.9]]), ALL
    said = net(x_BVTHWC, mask_BV)
    assert said.view_weights_BV[0, 1] == 0
    assert (said.view_weights_BV[0, [0, 2]] > 0).all()
    # It is as if the camera were not there.
    absent = net(x_BVTHWC, WITHOUT_SECOND)
    torch.testing.assert_close(said.probabilities_BK, absent.probabilities_BK)
    torch.testing.assert_close(said.view_weights_BV, absent.view_weights_BV)
    # But it is judged by itself like any other.
    assert said.mask_BV.all()
    assert (said.view_feature_BVD[0, 1] != 0).any()
    net.train()
    assert (net(x_BVTHWC, mask_BV).view_weights_BV > 0).all()
    never = network(0.0, fusion=fusion, views=views)
    assert (never(x_BVTHWC, mask_BV).view_weights_BV > 0).all()


def test_one_view_always_stays():
    net = network(1.0)
    net.min_motion_share_V.fill_(1.0)
    torch.manual_seed(2)
    x_BVTHWC = torch.cat(
        [torch.randn(40, 3, T, H, H, C), torch.randn(4, 3, T, H, H, C) * 1e-6, torch.zeros(1, 3, T, H, H, C)]
    )
    mask_BV = torch.rand(45, 3) < 0.6
    mask_BV[~mask_BV.any(1), 2] = True
    weights_BV = net(x_BVTHWC, mask_BV).view_weights_BV
    assert ((weights_BV > 0).sum(1) >= 1).all()
    torch.testing.assert_close(weights_BV.sum(1), torch.ones(45))
    assert (weights_BV[~mask_BV] == 0).all()


def test_a_camera_that_no_one_trained_with_is_never_left_out():
    net = network(1.0, views="apart")
    net.min_motion_share_V.copy_(torch.tensor([0.9, 0.0, 0.9]))
    assert (net(swinging([[1.0, 1e-3, 0.95]]), ALL).view_weights_BV > 0).all()
    # Nor is one beyond those that the network knows at all.
    four = net(swinging([[1.0, 0.1, 0.1, 1e-3]]), torch.ones(1, 4, dtype=torch.bool)).view_weights_BV[0] > 0
    assert four.tolist() == [True, True, False, True]


def test_merged_cameras_refuse_one_that_they_do_not_know():
    net = network()
    four = torch.randn(2, 4, T, H, H, C)
    with pytest.raises(ConfigError, match="4 views given .* merged that was trained for 3"):
        net(four)
    mask_BV = torch.tensor([[True, True, True, False]]).expand(2, 4)
    said, three = net(four, mask_BV), net(four[:, :3])
    torch.testing.assert_close(said.probabilities_BK, three.probabilities_BK)


@pytest.mark.parametrize("changes", [{"views": "merged"}, {"views": "apart", "fusion": "concat"}])
def test_more_videos_than_cameras_with_weights_are_wrong_data(tmp_path, changes):
    """Not a wrong setting: ``predict --watch`` goes on after wrong data alone."""
    net = network(**changes)
    run = Run(tmp_path, run_state(net), net)
    with pytest.raises(DataError, match="4 videos given, .* was trained on 3 views"):
        run.predict(["a.avi", "b.avi", "c.avi", "d.avi"])


def test_the_least_share_comes_from_groups_of_several_views_alone():
    net = network()
    x_BVTHWC = swinging([[1.0, 0.5, 0.8], [1.0, 0.7, 0.4], [0.01, 0.0, 0.0]])
    row_GV = torch.tensor([[0, 1, 2], [3, -1, 5], [6, -1, -1]])
    groups = Groups(x_BVTHWC.flatten(0, 1).half(), row_GV, torch.zeros(3, dtype=torch.int64), ("a", "b", "c"))
    torch.testing.assert_close(min_motion_share(net, groups), torch.tensor([1.0, 0.5, 0.4]), rtol=2e-3, atol=0)
    # Every group is of one view: of no camera can anything be said, and none is ever left out.
    row_GV = torch.tensor([[0, -1, -1], [-1, 4, -1], [-1, 7, -1]])
    alone = Groups(groups.embeddings_NFHWC, row_GV, groups.label_G, groups.names)
    assert min_motion_share(net, alone).tolist() == [0.0, 0.0, 0.0]
    of_one = Groups(groups.embeddings_NFHWC, torch.tensor([[0], [3]]), torch.zeros(2, dtype=torch.int64), ("a", "b"))
    assert min_motion_share(network(n_views=1), of_one).tolist() == [0.0]


def test_a_checkpoint_from_before_there_were_covered_views_loads(tmp_path):
    net = network(0.0)
    assert "min_motion_share_V" not in net.state_dict()
    state = run_state(net)
    save_checkpoint(tmp_path / "last", state, net.state_dict(), {})
    file = tmp_path / "last/state.json"
    file.write_text(file.read_text().replace('"covered": 0.0,', ""))
    assert "covered" not in file.read_text()
    opened = load_network(load_checkpoint(tmp_path / "last"))
    x_BVTHWC = swinging([[1.0, 0.0, 0.9]])
    torch.testing.assert_close(opened(x_BVTHWC, ALL).view_weights_BV, net(x_BVTHWC, ALL).view_weights_BV)
    # One that leaves covered views out, and has not what it takes, is no run.
    save_checkpoint(tmp_path / "cut", run_state(network()), net.state_dict(), {})
    with pytest.raises(CheckpointError, match="min_motion_share_V"):
        load_network(load_checkpoint(tmp_path / "cut"))


def test_the_measure_is_kept_in_the_checkpoint(tmp_path):
    net = network()
    net.min_motion_share_V.copy_(torch.tensor([0.3, 0.6, 0.9]))
    save_checkpoint(tmp_path / "last", run_state(net), net.state_dict(), {})
    opened = load_network(load_checkpoint(tmp_path / "last"))
    assert opened.min_motion_share_V.tolist() == net.min_motion_share_V.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("views", ["merged", "apart"])
def test_an_exported_network_leaves_a_covered_view_out_as_pytorch_does(tmp_path, views):
    net = network(views=views)
    net.min_motion_share_V.copy_(torch.tensor([0.9, 0.8, 0.3]))

    export_onnx(net, run_state(net), tmp_path / "net.onnx")
    # In the first group no camera is covered, in the next ones another each, then nothing moves anywhere.
    x_BVTHWC = swinging([[1.0, 0.9, 0.8], [0.1, 1.0, 0.9], [1.0, 0.1, 0.9], [0.9, 1.0, 0.1], [0.0, 0.0, 0.0]])
    x_BVTHWC += 0.01 * torch.randn(x_BVTHWC.shape, generator=torch.Generator().manual_seed(3))
    x_BVTHWC[4] = 0.0
    said = assert_says_the_same(tmp_path / "net.onnx", net, x_BVTHWC)
    assert (said.view_weights_BV == 0).int().tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
