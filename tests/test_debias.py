"""Peer methods against static bias: each on data where the result is known, and each in a training."""

from dataclasses import replace

import make_groups
import pytest
import torch
from make_groups import CLASSES, SMALL, VIEWS, toy

from dtsf.errors import ConfigError
from dtsf.model.network import DTSFNet
from dtsf.training.data import evaluation_batches, number_names, training_batches
from dtsf.training.debias import DebiasConfig, make_debiaser
from dtsf.training.debias.background import cluster, dependence, reverse_gradient
from dtsf.training.debias.still_frames import frame_confidence
from dtsf.training.recipe import load_recipe

BACKGROUNDS = 2
BACKGROUND_N = torch.arange(18 * VIEWS) % BACKGROUNDS
QUICK = ["train.lr=0.01", "loss.kl=0.0", "train.epochs=30", "augment.view_drop=0.0"]
FRAMES = ['model.branch=[{input="frames"}]', "model.normalise=data", *QUICK]


@pytest.fixture
def groups():
    """Eighteen groups: the channel of the class moves, channel 5 shows the background; one view is missing."""
    made = toy()
    made.embeddings_NFHWC[..., 5] += 3.0 * BACKGROUND_N[:, None, None, None]
    made.row_GV[3, 1] = -1
    return made


def train(groups, run, *overrides):
    fitted, log = make_groups.train(run, groups, "train.batch_size=6", *overrides)
    return fitted.net, log


def made(method, groups, **weights):
    return make_debiaser(DebiasConfig(method=method, **weights), groups, width=16, n_classes=CLASSES, seed=0)


def frames_network(groups):
    """A network of frames, and its first batch without augmentation."""
    torch.manual_seed(0)
    net = DTSFNet(load_recipe("thumbnails", [*SMALL, *FRAMES]).model, channels=6, side=3, n_classes=CLASSES, n_views=VIEWS)
    return net, next(evaluation_batches(groups, 6, 4, 0.0))


def assert_learned(log):
    """From chance (a third) to nearly all training groups."""
    first, last = ([line["accuracy"] for line in part] for part in (log[:3], log[-3:]))
    assert sum(last) / 3 > 0.8 > sum(first) / 3
    assert sum(line["loss"] for line in log[-3:]) < 0.7 * sum(line["loss"] for line in log[:3])


def test_dependence__is_tr_khlh_and_larger_for_dependent_samples():
    torch.manual_seed(0)
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)

    def kernel(z):
        square = torch.cdist(z, z).square()
        return torch.exp(-square / square[torch.triu(torch.ones(40, 40), 1).bool()].median())

    H = torch.eye(40, dtype=torch.float64) - 1 / 40
    torch.testing.assert_close(dependence(x, y), torch.trace(kernel(x) @ H @ kernel(y) @ H) / 39**2)
    assert dependence(x, 2 - x) > 4 * dependence(x, y) > 0
    assert abs(dependence(x, torch.ones(40, 1, dtype=torch.float64)).item()) < 1e-15
    assert dependence(x[:1], y[:1]) == 0


def test_dependence__has_finite_gradients_at_equal_points():
    x = torch.zeros(4, 2, requires_grad=True)
    assert torch.autograd.grad(dependence(x, torch.randn(4, 2)), x)[0].isfinite().all()


def test_reverse_gradient__changes_the_sign():
    x = torch.tensor([2.0], requires_grad=True)
    (reverse_gradient(x) ** 2).backward()
    assert x.grad.item() == -4.0


def test_cluster__finds_the_backgrounds_and_repeats():
    torch.manual_seed(0)
    background = torch.arange(30) % 3
    x = torch.randn(30, 4) + 20.0 * torch.eye(4)[background]
    found = cluster(x, 3, torch.Generator().manual_seed(5))
    assert len({(int(a), int(b)) for a, b in zip(background, found, strict=True)}) == 3
    assert torch.equal(found, cluster(x, 3, torch.Generator().manual_seed(5)))
    assert cluster(x[:2], 8, torch.Generator().manual_seed(0)).max() < 2
    assert cluster(torch.zeros(5, 2), 3, torch.Generator().manual_seed(0)).max() < 3  # all the same point


def test_number_names__needs_a_name_of_every_clip():
    assert number_names(["kitchen", "hall", "kitchen"]).tolist() == [1, 0, 1]
    assert number_names(["kitchen", None]) is None
    assert number_names([]) is None


def test_hsic__takes_named_backgrounds_or_clusters(groups):
    by_cluster = made("hsic", groups, backgrounds=BACKGROUNDS).background_N
    used = groups.row_GV[groups.mask_GV]
    assert len(set(zip(BACKGROUND_N[used].tolist(), by_cluster[used].tolist(), strict=True))) == BACKGROUNDS
    assert torch.equal(made("hsic", replace(groups, background_N=BACKGROUND_N)).background_N, BACKGROUND_N)


def test_hsic__trains_both_streams(groups, tmp_path):
    _, log = train(groups, tmp_path / "run", "debias.method=hsic", "train.epochs=4")
    assert {"biased", "hsic", "background"} <= set(log[0])
    for line in log:
        parts = line["evidence"] + line["cross"] + min(1, line["epoch"] / 10) * line["kl"] + line["views"]
        assert line["loss"] == pytest.approx(parts + line["biased"] + line["hsic"] + line["background"], rel=1e-4)
    # The biased stream reads the static part, which shows the background and not the class.
    assert log[-1]["background"] < log[0]["background"]


def test_hsic__lowers_the_dependence_on_the_background(groups, tmp_path):
    one_hot = torch.nn.functional.one_hot(BACKGROUND_N[groups.row_GV[groups.mask_GV]]).float()

    def remaining(weight):
        switches = ["debias.method=hsic", f"debias.hsic={weight}", "debias.background=0.0", "train.batch_size=18"]
        switches += ['model.branch=[{input="frames"}]', "train.epochs=40", "train.lr=0.01"]
        net, _ = train(groups, tmp_path / str(weight), *switches)
        with torch.inference_mode():
            batch = next(evaluation_batches(groups, 18, 4, 0.0))
            feature = net(batch.x_BVTHWC, batch.mask_BV).view_feature_BVD[batch.mask_BV]
        return dependence(feature, one_hot).item()

    assert remaining(50.0) < 0.5 * remaining(0.0)


def test_frame_confidence__is_high_for_frames_that_show_the_class():
    torch.manual_seed(0)
    label = torch.arange(60) % 3
    x = torch.randn(60, 8)
    x[:30] += 6.0 * torch.nn.functional.one_hot(label[:30], 8)  # only the first half shows it
    sure = frame_confidence(x, label, 3)
    assert sure[:30].mean() > sure[30:].mean() + 0.2
    assert ((sure >= 1 / 3) & (sure <= 1)).all()
    # A frame that looks like another class counts as confident too: the probability is that of the predicted class.
    label[0] = (label[0] + 1) % 3
    assert frame_confidence(x, label, 3)[0] > 0.5


def test_stillmix__adds_one_still_frame_and_keeps_the_label(groups):
    mixer = made("stillmix", groups, bank=5, mix=1.0)
    assert mixer.bank_SHWC.shape == (5, 3, 3, 6)
    batch = next(training_batches(groups, 6, 4, 0.0, load_recipe("thumbnails", SMALL).augment, torch.ones(6)))
    torch.manual_seed(3)
    mixed = mixer.prepare(batch)
    shares = []
    assert torch.equal(mixed.label_B, batch.label_B)
    for b, v in batch.mask_BV.nonzero().tolist():
        x, y = batch.x_BVTHWC[b, v].flatten(1), mixed.x_BVTHWC[b, v].flatten(1)
        moved, after = x[1:] - x[:-1], y[1:] - y[:-1]
        keep = (moved * after).sum() / moved.square().sum()
        torch.testing.assert_close(after, keep * moved, rtol=1e-3, atol=1e-4)  # the same frame at all times
        assert 0.35 < keep < 0.65
        shares.append(keep)
        still = ((y - keep * x) / (1 - keep)).mean(0)
        assert (mixer.bank_SHWC.flatten(1).float() - still).norm(dim=1).min() < 1e-2
    assert max(shares) - min(shares) < 1e-3  # one lambda a batch, as the authors
    assert torch.equal(made("stillmix", groups, bank=5, mix=0.0).prepare(batch).x_BVTHWC, batch.x_BVTHWC)


def test_stillmix__trains(groups, tmp_path):
    _, log = train(groups, tmp_path / "run", "debias.method=stillmix", "model.branch.0.input=frames", *QUICK, "train.epochs=60")
    assert_learned(log)
    assert "biased" not in log[0]


@pytest.mark.parametrize(("method", "message"), [
    ("stillmix", '"stillmix" adds still frames.*--set model.branch.0.input=frames'),
    ("albar", '"albar" adds still frames.*--set model.branch.0.input=frames'),
    ("places", "'none', 'hsic', 'stillmix', 'albar', 'soar', 'prototypes', 'actionmae' or 'cir'"),
])
def test_recipe__refuses_still_frames_for_a_dynamic_input_and_unknown_methods(method, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("thumbnails", [f"debias.method={method}"])


def test_make_debiaser__none_adds_nothing(groups):
    debiaser = made("none", groups)
    assert list(debiaser.parameters()) == []
    assert debiaser.losses(None, None, None) == {}


def test_albar__lowers_the_confidence_for_still_frames(groups, tmp_path):
    # A static channel shows the class.
    x = groups.embeddings_NFHWC.float()
    x[..., 4] += groups.label_G.repeat_interleave(VIEWS)[:, None, None, None] * 2.0
    shown = replace(groups, embeddings_NFHWC=x.half())

    def confidence(run, *overrides):
        net, log = train(shown, tmp_path / run, *overrides, *FRAMES)
        with torch.inference_mode():
            batch = next(evaluation_batches(shown, 18, 4, 0.0))
            still = batch.x_BVTHWC[:, :, :1].float().expand_as(batch.x_BVTHWC)
            return net(still, batch.mask_BV).logits_BK.softmax(-1).amax(-1).mean().item(), log

    debiased, log = confidence("albar", "debias.method=albar", "debias.adversary=0.2", "debias.penalty=0.1")
    assert debiased < confidence("plain")[0] - 0.1
    assert {"adversary", "entropy", "penalty"} <= set(log[0])
    assert all(line["penalty"] > 0 for line in log)


def test_albar__penalty_is_the_gradient_norm_and_reaches_the_weights(groups):
    net, batch = frames_network(groups)
    torch.manual_seed(7)
    found = made("albar", groups, adversary=0.0, entropy=0.0, penalty=1.0).losses(batch, None, net)["penalty"]
    torch.manual_seed(7)
    frame = torch.randint(4, (6, VIEWS))
    x = torch.stack([torch.stack([batch.x_BVTHWC[b, v, frame[b, v]] for v in range(VIEWS)]) for b in range(6)])
    x = x.float()[:, :, None].repeat(1, 1, 4, 1, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, batch.mask_BV).logits_BK.sum(), x)
    assert found.item() == pytest.approx(gradient.flatten(1).norm(dim=1).mean().item(), rel=1e-3)
    found.backward()
    assert net.encoders[0].layers[0].mixer.x_proj.weight.grad.abs().max() > 0


def test_soar__adversaries_and_features_learn_the_opposite(groups, tmp_path):
    net, batch = frames_network(groups)
    for name, share in (("reconstruction", 0.2), ("background", 1.0)):
        soar = made("soar", groups, **{"reconstruction": 0.0, "background": 0.0, name: 1.0}, backgrounds=BACKGROUNDS)
        output = net(batch.x_BVTHWC, batch.mask_BV)
        output.view_feature_BVD = output.view_feature_BVD.detach().requires_grad_()
        (term,) = soar.losses(batch, output, net).values()
        (ours,) = torch.autograd.grad(term, output.view_feature_BVD, retain_graph=True)
        adversary = next(iter((soar.decoder if name == "reconstruction" else soar.background_of_features).parameters()))
        (theirs,) = torch.autograd.grad(term, adversary)
        step = 0.01 / ours.norm()
        output.view_feature_BVD = (output.view_feature_BVD - step * ours).detach()
        harder = next(iter(soar.losses(batch, output, net).values()))
        assert harder > term  # going down its own gradient, a feature makes the adversary's task harder
        assert (harder - term).item() == pytest.approx(step.item() * ours.square().sum().item() / share, rel=0.1)
        with torch.no_grad():
            adversary -= 0.01 * theirs / theirs.norm()
        assert next(iter(soar.losses(batch, output, net).values())) < harder
    _, log = train(groups, tmp_path / "run", "debias.method=soar", *FRAMES)
    assert_learned([{**line, "loss": line["evidence"]} for line in log])
    assert sum(line["reconstruction"] for line in log[-3:]) < 0.9 * sum(line["reconstruction"] for line in log[:3])
    _, log = train(groups, tmp_path / "without", "debias.method=soar", *FRAMES, "debias.background=0.0", "train.epochs=1")
    assert "background" not in log[0]


@pytest.mark.parametrize("peer", ["fusion=mean", "fusion=concat", "fusion=tmc", "fusion=sfm", "fusion=mixer", "branch.0.msm=true"])
def test_fit__trains_every_fusion_and_msm(groups, tmp_path, peer):
    _, log = train(groups, tmp_path / "run", f"model.{peer}", *QUICK)
    assert_learned(log)
