"""MSF and its peers: properties for any features, logits and masks; Dempster's rule against its closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtsf.errors import ConfigError
from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.evidence import dirichlet, logits_of_evidence, uncertainty
from dtsf.model.fusion import FUSIONS, combine_evidence, fuse_msf, fuse_tmc, make_fusion
from dtsf.model.network import DTSFNet

WIDTH, CLASSES = 8, 5


def make(name):
    torch.manual_seed(1)
    fusion = make_fusion(name, WIDTH, 4)
    return fusion.double() if isinstance(fusion, torch.nn.Module) else fusion


@st.composite
def groups_of_views(draw):
    """Features, logits and a mask of at least one view in every group, over many orders of magnitude."""
    n_groups, n_views = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    feature = torch.randn(n_groups, n_views, WIDTH, dtype=torch.float64, generator=generator) * scale
    logits = torch.randn(n_groups, n_views, CLASSES, dtype=torch.float64, generator=generator) * scale
    mask = torch.rand(n_groups, n_views, generator=generator) < draw(st.sampled_from([0.3, 0.7, 1.0]))
    stays = torch.randint(n_views, (n_groups, 1), generator=generator)
    return feature, logits, mask.scatter(1, stays, True)


ALL = sorted(FUSIONS)


@pytest.mark.parametrize("name", ALL)
@given(groups=groups_of_views())
@settings(max_examples=60)
def test_fusion__weights_sum_to_one_and_absent_views_are_never_read(name, groups):
    feature, logits, mask = groups
    fuse = make(name)
    fused = fuse(feature, logits, mask)
    assert (fused.weights_BV[~mask] == 0).all()
    assert (fused.weights_BV[mask] >= 0).all()
    torch.testing.assert_close(fused.weights_BV.sum(1), torch.ones(len(mask), dtype=torch.float64))
    assert fused.feature_BD.isfinite().all()
    absent = ~mask.unsqueeze(-1)
    dirty = fuse(feature.masked_fill(absent, 7.0), logits.masked_fill(absent, -9.0), mask)
    assert torch.equal(fused.feature_BD, dirty.feature_BD)
    assert torch.equal(fused.weights_BV, dirty.weights_BV)


@pytest.mark.parametrize("name", ["msf", "mean", "tmc", "sfm", "mixer"])
@given(groups=groups_of_views(), data=st.data())
@settings(max_examples=60)
def test_fusion__permuted_views_permute_weights_and_keep_the_output(name, groups, data):
    feature, logits, mask = groups
    order = data.draw(st.permutations(range(mask.shape[1])))
    fuse = make(name)
    fused, permuted = fuse(feature, logits, mask), fuse(feature[:, order], logits[:, order], mask[:, order])
    torch.testing.assert_close(permuted.feature_BD, fused.feature_BD)
    torch.testing.assert_close(permuted.weights_BV, fused.weights_BV[:, order])
    if name == "tmc":
        torch.testing.assert_close(permuted.logits_BK, fused.logits_BK)


@pytest.mark.parametrize("name", ["msf", "mean", "tmc"])
@given(groups=groups_of_views())
@settings(max_examples=40)
def test_fusion__one_view_is_returned_unchanged(name, groups):
    feature, logits, _ = groups
    alone = torch.zeros(feature.shape[:2], dtype=torch.bool)
    alone[:, -1] = True
    fused = make(name)(feature, logits, alone)
    torch.testing.assert_close(fused.feature_BD, feature[:, -1])
    assert (fused.weights_BV[:, -1] == 1).all()
    if name == "tmc":
        torch.testing.assert_close(dirichlet(fused.logits_BK), dirichlet(logits[:, -1]))


@given(groups=groups_of_views())
def test_msf__stays_inside_the_range_of_the_present_views(groups):
    feature, logits, mask = groups
    fused = fuse_msf(feature, logits, mask).feature_BD
    absent = ~mask.unsqueeze(-1)
    slack = 1e-9 * feature.abs().max()
    assert (fused <= feature.masked_fill(absent, -torch.inf).amax(1) + slack).all()
    assert (fused >= feature.masked_fill(absent, torch.inf).amin(1) - slack).all()


def test_msf__weighs_the_view_with_more_evidence_more():
    feature = torch.zeros(1, 2, WIDTH)
    logits = torch.full((1, 2, CLASSES), -5.0)
    logits[0, 1, 2] = 9.0
    weights = fuse_msf(feature, logits, torch.ones(1, 2, dtype=torch.bool)).weights_BV
    assert weights[0, 1] > 0.7 > 0.3 > weights[0, 0]


def pairwise_dempster(evidence_VK):
    """The reduced rule as TMC prints it, view after view, by beliefs and conflict."""
    K = evidence_VK.shape[-1]

    def opinion(evidence):
        return evidence / (evidence.sum() + K), K / (evidence.sum() + K)

    belief, u = opinion(evidence_VK[0])
    for evidence in evidence_VK[1:]:
        other, v = opinion(evidence)
        conflict = sum(belief[i] * other[j] for i in range(K) for j in range(K) if i != j)
        belief = (belief * other + belief * v + other * u) / (1 - conflict)
        u = u * v / (1 - conflict)
    return belief * K / u


@given(st.integers(1, 5).flatmap(lambda k: st.lists(st.lists(st.floats(0, 50), min_size=k, max_size=k), min_size=1, max_size=4)))
def test_combine_evidence__is_the_pairwise_rule_of_dempster(evidence):
    evidence_VK = torch.tensor(evidence, dtype=torch.float64)
    found = combine_evidence(evidence_VK[None], torch.ones(1, len(evidence), dtype=torch.bool))[0]
    torch.testing.assert_close(found, pairwise_dempster(evidence_VK), rtol=1e-7, atol=1e-9)


def test_tmc__extreme_evidence_and_its_gradient_are_finite():
    logits = torch.tensor([[[-200.0, 1e6, 0.0]] * 5, [[-1e6, -1e6, -1e6]] * 5], requires_grad=True)
    fused = fuse_tmc(torch.zeros(2, 5, 4), logits, torch.ones(2, 5, dtype=torch.bool))
    assert fused.logits_BK.isfinite().all()
    uncertainty(dirichlet(fused.logits_BK)).sum().backward()
    assert logits.grad.isfinite().all()


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_logits_of_evidence__is_the_inverse_of_dirichlet(evidence):
    wanted = torch.tensor(evidence, dtype=torch.float64)
    torch.testing.assert_close(dirichlet(logits_of_evidence(wanted)) - 1.0, wanted, rtol=1e-6, atol=1e-9)


def test_concat__takes_fewer_views_than_in_training_but_not_more():
    fuse = make("concat")
    feature, logits = torch.randn(2, 5, WIDTH).double(), torch.randn(2, 5, CLASSES).double()
    mask = torch.ones(2, 5, dtype=torch.bool)
    padded = torch.cat([mask[:, :2], ~mask[:, :2]], 1)
    two = fuse(feature[:, :2], logits[:, :2], mask[:, :2]).feature_BD
    torch.testing.assert_close(two, fuse(feature[:, :4], logits[:, :4], padded).feature_BD)
    with pytest.raises(ConfigError, match="5 views given .* trained for 4"):
        fuse(feature, logits, mask)


def test_sfm__views_correct_each_other():
    fuse = make("sfm")
    feature, logits = torch.randn(1, 3, WIDTH).double(), torch.zeros(1, 3, CLASSES).double()
    mask = torch.ones(1, 3, dtype=torch.bool)
    plain = fuse.project(feature.mean(1))
    assert not torch.allclose(fuse(feature, logits, mask).feature_BD, plain)
    alone = torch.tensor([[True, False, False]])
    torch.testing.assert_close(fuse(feature, logits, alone).feature_BD, fuse.project(feature[:, 0]))


def test_mixer__is_one_step_of_a_gated_unit_from_each_view():
    fuse = make("mixer")
    feature, logits = torch.randn(1, 3, WIDTH).double(), torch.zeros(1, 3, CLASSES).double()
    mask = torch.tensor([[True, False, True]])
    steps = []
    for mine, other in ((0, 2), (2, 0)):
        state = feature[0, mine]
        mixed = fuse.mix(torch.cat([state, feature[0, other]]))
        reset, update = fuse.gates(torch.cat([mixed, state])).sigmoid().chunk(2)
        steps.append((1 - update) * state + update * fuse.candidate(torch.cat([mixed, reset * state])).tanh())
    torch.testing.assert_close(fuse(feature, logits, mask).feature_BD[0], fuse.project(sum(steps) / 2))
    alone = torch.tensor([[True, False, False]])
    torch.testing.assert_close(fuse(feature, logits, alone).feature_BD, fuse.project(feature[:, 0]))


EACH, SEQUENCE, STACKED = (BranchConfig(views=views) for views in ("each", "sequence", "all"))


@pytest.mark.parametrize(
    ("branch", "keys"),
    [((EACH,), {"fusion": name}) for name in ALL]
    + [((EACH, STACKED), {"fusion": name, "readout": "flatten"}) for name in ALL]
    + [((SEQUENCE,), {"fusion": "sfm"}), ((BranchConfig(input="frames", msm=True),), {})]
    + [((BranchConfig(paste="thumbnails"),), {}), ((BranchConfig(paste="tokens"),), {})],
)
def test_network__every_parameter_gets_a_gradient(branch, keys):
    torch.manual_seed(0)
    net = DTSFNet(ModelConfig(branch=branch, width=16, depth=1, frames=4, **keys), channels=8, side=6, n_classes=3)
    x, label = torch.randn(4, 3, 4, 6, 6, 8), torch.tensor([0, 1, 2, 0])
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=torch.bool)
    output = net(x, mask)
    torch.nn.functional.cross_entropy(output.logits_BK, label).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(p.grad.isfinite().all() for p in net.parameters())
