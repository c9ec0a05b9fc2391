"""SimGCL: the graph convolution, the noise, the loss, what is drawn, and the vectors that are kept."""

import copy
import math

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from appssl.contracts import Context, Ranked
from appssl.errors import DataError
from appssl.evaluators import ranking
from appssl.finetuners.simgcl import (
    Config,
    Pairs,
    bpr,
    build,
    contrast,
    examples,
    normalized_graph,
    propagated,
    sign_aligned_noise,
)
from appssl.stages.models import load_model, open_data
from appssl.stages.recommend import recommend
from tests.finetuners.logs import COLD, ITEMS, META, USERS, Log, prepared, staged
from tests.finetuners.noisy import Stop, Stopping, trained

LOG = Log()


def given(log=LOG):
    return examples(Config(), log, None, 0)


def learner(**values):
    torch.manual_seed(0)
    config = Config(**{"dim": 5, **values})
    facts = given().facts
    return build(config, Context(META, torch.nn.Identity(), (2,), num_samples=len(given()), facts=facts))


def batch(indices=range(12)):
    return given().batch(np.array(indices), seed=1, epoch=0)


def dense_graph():
    """D^-1/2 A D^-1/2 of LOG in float64, entry by entry."""
    users, items, _ = LOG.interactions("train")
    a = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    for user, item in zip(users, items, strict=True):
        a[user, USERS + item] = a[USERS + item, user] = 1
    degree = a.sum(1)
    found = torch.zeros_like(a)
    for i in range(len(a)):
        for j in range(len(a)):
            if a[i, j]:
                found[i, j] = 1 / math.sqrt(degree[i] * degree[j])
    return found


def literal_vectors(own, *, noisy=False):
    """Equation 7, with the random numbers that torch gives next."""
    config, graph = own.config, dense_graph()
    layer = torch.cat([own.users, own.items]).detach().double()
    layers = [layer] if config.input_in_mean else []
    for _ in range(config.layers):
        layer = graph @ layer
        if noisy:
            r = torch.rand_like(layer)
            signs = torch.tensor([[math.copysign(1, x) if x else 0.0 for x in row] for row in layer.tolist()])
            layer = layer + config.eps * r / r.norm(dim=1, keepdim=True) * signs
        layers.append(layer)
    return sum(layers) / len(layers)


@pytest.mark.parametrize("input_in_mean", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_sparse_propagation_equals_the_dense_equation(layers, input_in_mean):
    own = learner(layers=layers, input_in_mean=input_in_mean)
    torch.testing.assert_close(torch.cat(own.vectors()).double(), literal_vectors(own), rtol=1e-5, atol=1e-7)
    whole = own.double()
    # The values of the graph are float32, those of the transcription float64.
    torch.testing.assert_close(torch.cat(whole.vectors()), literal_vectors(whole), rtol=1e-6, atol=1e-8)


def test_noise_is_added_in_every_layer_and_carried_on():
    own = learner(layers=3).double()
    torch.manual_seed(7)
    found = torch.cat(own.vectors(noisy=True))
    torch.manual_seed(7)
    torch.testing.assert_close(found, literal_vectors(own, noisy=True), rtol=1e-6, atol=1e-8)


def test_the_worked_numbers():
    pairs = torch.tensor([[0, 0, 1], [0, 1, 1]])  # degrees 2, 1 of users and 1, 2 of items
    places, values = normalized_graph(pairs, 2, 2)
    assert places.tolist() == [[0, 0, 1, 2, 3, 3], [2, 3, 3, 0, 0, 1]]
    half = math.sqrt(0.5)
    assert values.tolist() == pytest.approx([half, 0.5, half, half, 0.5, half])
    graph = torch.sparse_coo_tensor(places, values, (4, 4), check_invariants=True).coalesce()
    start = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    assert propagated(graph, start, 1).flatten().tolist() == pytest.approx([0, 0, half, 0.5])
    assert propagated(graph, start, 2).flatten().tolist() == pytest.approx([0.375, half / 4, half / 2, 0.25])
    with_input = propagated(graph, start, 1, input_in_mean=True)
    assert with_input.flatten().tolist() == pytest.approx([0.5, 0, half / 2, 0.25])


def test_noise_has_norm_eps_and_the_sign_of_the_vector():
    torch.manual_seed(0)
    vectors = torch.randn(200, 7)
    vectors[3] = 0
    vectors[4, 2:] = 0
    noise = sign_aligned_noise(vectors, 0.3)
    others = torch.arange(200) > 4
    torch.testing.assert_close(noise[others].norm(dim=1), torch.full((195,), 0.3))
    assert (noise.sign() == vectors.sign()).all()
    assert noise[3].abs().sum() == 0
    assert 0 < noise[4].norm() < 0.3
    assert not torch.equal(noise, sign_aligned_noise(vectors, 0.3))
    # Uniform before it is scaled: coordinates differ, and none is preferred.
    torch.testing.assert_close(noise[others].abs().mean(0), torch.full((7,), 0.105), atol=0.015, rtol=0)


def literal_contrast(one, two, tau):
    losses = []
    for i in range(len(one)):
        s = [float(one[i] @ two[j] / (one[i].norm() * two[j].norm())) for j in range(len(two))]
        losses.append(-math.log(math.exp(s[i] / tau) / sum(math.exp(value / tau) for value in s)))
    return sum(losses) / len(losses)


def literal_loss(own, data):
    """The loss written out, with the random numbers that torch gives next."""
    config = own.config
    users, items, others = data["input"].tolist(), data["target"].tolist(), data["views"][0].tolist()
    z, e = literal_vectors(own), torch.cat([own.users, own.items]).detach().double()
    total = 0.0
    for u, i, j in zip(users, items, others, strict=True):
        score = float(z[u] @ z[USERS + i] - z[u] @ z[USERS + j])
        rows = float((e[u] ** 2).sum() + (e[USERS + i] ** 2).sum() + (e[USERS + j] ** 2).sum())
        total += math.log(1 + math.exp(-score)) + config.l2 * rows / 2
    one, two = (literal_vectors(own, noisy=True) for _ in range(2))
    of_users, of_items = sorted(set(users)), sorted({USERS + i for i in items})
    contrasts = [literal_contrast(one[rows], two[rows], config.temperature) for rows in (of_users, of_items)]
    return total / len(users) + config.weight * sum(contrasts), contrasts


@pytest.mark.parametrize("layers", [1, 3])
def test_the_loss_equals_the_equation_written_out(layers):
    own, data = learner(layers=layers, weight=0.7, l2=0.05, eps=0.2).double(), batch()
    assert len(set(data["input"].tolist())) < 12  # users that are in the batch twice count once in the contrast
    torch.manual_seed(3)
    step = own(data)
    torch.manual_seed(3)
    expected, (of_users, of_items) = literal_loss(own, data)
    assert float(step.loss.detach()) == pytest.approx(expected, rel=1e-6)
    assert float(step.metrics["loss_users"]) == pytest.approx(of_users, rel=1e-6)
    assert float(step.metrics["loss_items"]) == pytest.approx(of_items, rel=1e-6)
    assert not any(value.requires_grad for value in step.metrics.values())


def test_limits_of_the_terms():
    equal = torch.ones(6, 3)
    assert float(contrast(equal, 2 * equal, temperature=0.2)) == pytest.approx(math.log(6), rel=1e-6)
    assert float(contrast(equal[:1], -equal[:1], temperature=0.2)) == pytest.approx(0, abs=1e-6)
    assert float(bpr(equal, equal, equal)) == pytest.approx(math.log(2))
    far = bpr(equal, 1e4 * equal, -1e4 * equal)
    assert float(far) == 0
    assert float(bpr(equal, -1e4 * equal, 1e4 * equal)) == pytest.approx(6e4)


def test_without_contrast_and_with_the_input_in_the_mean_it_is_lightgcn():
    own, data = learner(weight=0, input_in_mean=True, layers=2).double(), batch()
    graph, e = dense_graph(), torch.cat([own.users, own.items]).detach().requires_grad_()
    z = (e + graph @ e + graph @ graph @ e) / 3
    u, i, j = data["input"], USERS + data["target"], USERS + data["views"][0]
    ranking_loss = -torch.sigmoid((z[u] * z[i]).sum(1) - (z[u] * z[j]).sum(1)).log().mean()
    expected = ranking_loss + 1e-4 * (e[u].pow(2).sum() + e[i].pow(2).sum() + e[j].pow(2).sum()) / 2 / len(u)
    expected.backward()
    state = torch.get_rng_state()
    step = own(data)
    assert torch.equal(state, torch.get_rng_state())  # no noise is drawn
    step.loss.backward()
    assert float(step.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(torch.cat([own.users.grad, own.items.grad]), e.grad, rtol=1e-5, atol=1e-9)


def test_gradients_of_the_propagation():
    places, values = normalized_graph(given().facts["pairs"], USERS, ITEMS)
    size = (USERS + ITEMS, USERS + ITEMS)
    graph = torch.sparse_coo_tensor(places, values.double(), size, check_invariants=True).coalesce()
    start = torch.randn(USERS + ITEMS, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: propagated(graph, x, 2, input_in_mean=True), (start,))


def test_the_contrast_reaches_every_known_embedding_and_no_unknown_one():
    own, data = learner(), batch(range(4))
    one, two = own.vectors(noisy=True), own.vectors(noisy=True)
    contrast(one[1][data["target"]], two[1][data["target"]], temperature=0.2).backward()
    touched = own.users.grad.abs().sum(1) > 0
    assert touched.tolist() == [True] * (USERS - 1) + [False]
    assert float(own.items.grad[ITEMS - COLD :].abs().sum()) == 0


def test_half_precision_leaves_the_vectors_in_float32():
    own, data = learner(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own.vectors()[0].dtype == torch.float32
        step = own(data)
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert torch.isfinite(own.users.grad).all()


def test_pairs_are_those_of_the_log_each_once():
    repeated = Log()
    repeated.parts["train"] = np.concatenate([repeated.parts["train"], repeated.parts["train"][:9]])
    pairs = given(repeated)
    assert sorted(zip(pairs.users, pairs.items, strict=True)) == sorted(map(tuple, LOG.parts["train"]))
    found = pairs.batch(np.array([5, 0]), seed=0, epoch=0)
    assert found["input"].tolist() == pairs.users[[5, 0]].tolist()
    assert found["target"].tolist() == pairs.items[[5, 0]].tolist()


def test_ranks_are_those_of_the_items_without_an_event():
    pairs = given()
    for user in range(USERS - 1):
        seen = {item for who, item in LOG.parts["train"].tolist() if who == user}
        unseen = [item for item in range(ITEMS - COLD) if item not in seen]
        ranks = np.arange(len(unseen))
        assert pairs.others(np.full(len(unseen), user), ranks).tolist() == unseen


def test_other_items_are_uniform_and_a_function_of_seed_epoch_and_batch():
    pairs = given()
    user = int(pairs.users[0])
    drawn = [int(pairs.batch(np.array([0]), seed=0, epoch=epoch)["views"][0]) for epoch in range(2000)]
    counts = np.unique(drawn, return_counts=True)[1]
    free = ITEMS - COLD - (pairs.users == user).sum()
    assert len(counts) == free
    assert abs(counts - 2000 / free).max() < 5 * math.sqrt(2000 / free)
    again = pairs.batch(np.arange(9), seed=4, epoch=2)["views"][0]
    assert torch.equal(again, pairs.batch(np.arange(9), seed=4, epoch=2)["views"][0])
    assert not torch.equal(again, pairs.batch(np.arange(9), seed=4, epoch=3)["views"][0])
    assert not torch.equal(again, pairs.batch(np.arange(9), seed=5, epoch=2)["views"][0])


def test_scores_are_dot_products_without_noise_and_the_unknown_user_is_the_mean_user():
    own = learner()
    users, items = (v.detach() for v in own.vectors())
    scores = own.export().score_users(torch.arange(USERS))
    torch.testing.assert_close(scores[:-1], users[:-1] @ items.T)
    torch.testing.assert_close(scores[-1], users[:-1].mean(0) @ items.T)
    assert (scores[:, ITEMS - COLD :] == 0).all()
    assert not own.export().user_vectors.requires_grad


def test_state_restores_the_same_scores():
    one, two = learner(), learner()
    with torch.no_grad():
        one.users.add_(0.3)
        one.items.mul_(2)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert sorted(one.state_dict()) == ["items", "users"]
    assert torch.equal(one.export().score_users(torch.arange(3)), two.export().score_users(torch.arange(3)))


@pytest.mark.parametrize("batches", [5, 7])
def test_resumed_training_equals_uninterrupted_training(tmp_path, batches):
    whole = trained(tmp_path / "whole", learner(), given())
    with pytest.raises(Stop):
        trained(tmp_path / "cut", learner(), Stopping(given(), batches))
    resumed = trained(tmp_path / "cut", learner(), given())
    assert not torch.equal(whole.users, learner().users)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def with_training(pairs):
    log = Log()
    log.parts = {"train": np.array(pairs, dtype=np.int64).reshape(-1, 2)}
    return log


def test_errors_say_what_is_missing():
    with pytest.raises(DataError, match=r"training has 0 user\(s\) and 0 item\(s\)"):
        Pairs(with_training([]))
    with pytest.raises(DataError, match=r"training has 1 user\(s\) and 2 item\(s\)"):
        Pairs(with_training([(3, 1), (3, 2)]))
    with pytest.raises(DataError, match=r"training has 2 user\(s\) and 1 item\(s\)"):
        Pairs(with_training([(3, 1), (4, 1)]))
    with pytest.raises(DataError, match="user u4 has an event with each of the 2 items"):
        Pairs(with_training([(3, 1), (4, 1), (4, 2)]))


def test_the_stage_trains_it_and_its_model_is_evaluated_and_recommends(tmp_path):
    data = prepared(tmp_path)
    fit = {"epochs": 3, "batch_size": 64, "lr": 0.05, "weight_decay": 0, "threads": 1}
    model = staged(data, tmp_path / "model", finetuner={"name": "simgcl", "dim": 16}, fit=fit)
    loaded, _, about = load_model(model)
    assert about["finetuner"]["name"] == "simgcl"
    opened = open_data(data)
    scores = loaded.score_users(torch.arange(opened.num_users))
    assert load_file(model.path("facts.safetensors"))["pairs"].shape[0] == 2
    found = ranking.build(ranking.Config(baselines=())).evaluate(
        Ranked(opened, lambda users: scores[torch.as_tensor(users)]), num_bootstrap=100, seed=0
    )
    assert 0 < found["recall@20"].value <= 1
    known = opened.users.filter(pl.col("train_events") > 0)["id"].cast(pl.String).head(2).to_list()
    (tmp_path / "users.csv").write_text("user_id\n" + "\n".join(known) + "\n")
    table, left = recommend(model, loaded, tmp_path / "users.csv", 4)[:2]
    assert left == []
    assert table["user"].to_list() == [name for name in known for _ in range(4)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: there is no CUDA device")
def test_a_gpu_gives_the_same_loss_and_gradients():
    own, data = learner(weight=0.5, eps=1e-9), batch()  # noise differs between devices, so there is next to none
    there = copy.deepcopy(own).cuda()
    moved = {**{k: v.cuda() for k, v in data.items() if k != "views"}, "views": [data["views"][0].cuda()]}
    losses = own(data).loss, there(moved).loss
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(there.users.grad.cpu(), own.users.grad, rtol=1e-3, atol=1e-6)
