"""Trees and matchings against brute force: counts, marginals, entropies, frequencies."""

import itertools
import math

import pytest
import torch

from core import build
from core.errors import AleatorError
from core.posterior import posterior
from core.random import keyed_generator
from core.structured import (
    matching_log_partition,
    perturb_and_map,
    sample_matching,
    sample_tree,
    sinkhorn,
    tree_entropy,
    tree_log_partition,
    tree_marginals,
)
from core.training import FitConfig, fit

F64 = torch.float64


def symmetric(n, seed=0, scale=1.0):
    w = scale * torch.randn(n, n, generator=keyed_generator(seed), dtype=F64)
    return 0.5 * (w + w.T)


def all_trees(n):
    """Every spanning tree of the complete graph, (count, n, n), by trying all sets of edges."""
    edges, trees = list(itertools.combinations(range(n), 2)), []
    for chosen in itertools.combinations(edges, n - 1):
        group = list(range(n))
        for a, b in chosen:
            group = [group[a] if g == group[b] else g for g in group]
        if len(set(group)) == 1:
            tree = torch.zeros(n, n, dtype=F64)
            for a, b in chosen:
                tree[a, b] = tree[b, a] = 1
            trees.append(tree)
    return torch.stack(trees)


@pytest.mark.exact
def test_the_matrix_tree_theorem_counts_trees():
    for n, count in ((2, 1), (3, 3), (4, 16), (7, 7**5)):
        found = tree_log_partition(torch.zeros(1, n, n, dtype=F64))
        assert found.exp().item() == pytest.approx(count, rel=1e-10)
    far = tree_log_partition(symmetric(4)[None] + 900.0)
    assert far.item() == pytest.approx(tree_log_partition(symmetric(4)[None]).item() + 2700.0)


@pytest.mark.exact
@pytest.mark.parametrize("n", [4, 5])
def test_trees_by_brute_force(n):
    w, trees = symmetric(n), all_trees(n)
    assert len(trees) == n ** (n - 2)
    scores = 0.5 * (trees * w).sum((1, 2))
    log_p = scores - scores.logsumexp(0)
    torch.testing.assert_close(tree_log_partition(w[None])[0], scores.logsumexp(0))
    marginal = (log_p.exp()[:, None, None] * trees).sum(0)
    torch.testing.assert_close(tree_marginals(w[None])[0], marginal)
    assert marginal.sum().item() / 2 == pytest.approx(n - 1)
    torch.testing.assert_close(tree_entropy(w[None])[0], -(log_p.exp() * log_p).sum())
    gone = w.clone()
    gone[0, 1] = gone[1, 0] = -math.inf  # an edge that is not there
    kept = scores[trees[:, 0, 1] == 0]
    torch.testing.assert_close(tree_log_partition(gone[None])[0], kept.logsumexp(0))


@pytest.mark.exact
def test_wilsons_trees_have_their_frequencies():
    """χ² over the 16 trees of four nodes."""
    w, trees, n = symmetric(4, 1), all_trees(4), 3000
    scores = 0.5 * (trees * w).sum((1, 2))
    p = scores.softmax(0)
    g = keyed_generator(2)
    counts = torch.zeros(16, dtype=F64)
    for _ in range(n):
        tree = sample_tree(w, g)
        counts[(trees == tree).all(2).all(1).nonzero().item()] += 1
    chi_squared = ((counts - n * p).square() / (n * p)).sum().item()
    assert chi_squared < 37.7  # 15 degrees of freedom, 0.001


@pytest.mark.exact
@pytest.mark.parametrize("n", [1, 3, 5])
def test_matchings_by_brute_force(n):
    scores = torch.randn(2, n, n, generator=keyed_generator(n), dtype=F64).requires_grad_()
    every = torch.tensor(list(itertools.permutations(range(n))))
    rows = torch.arange(n)
    totals = torch.stack([scores[:, rows, p].sum(1) for p in every], 1)
    found = matching_log_partition(scores)
    torch.testing.assert_close(found, totals.logsumexp(1))
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    one_hot = torch.nn.functional.one_hot(every, n).to(F64)
    marginal = torch.einsum("bp,pij->bij", totals.softmax(1).detach(), one_hot)
    torch.testing.assert_close(gradient, marginal)


@pytest.mark.exact
def test_exact_matchings_have_their_frequencies_and_perturbed_ones_nearly():
    n = 12000
    scores = torch.randn(1, 3, 3, generator=keyed_generator(5), dtype=F64)
    every = torch.tensor(list(itertools.permutations(range(3))))
    p = torch.stack([scores[0, torch.arange(3), e].sum() for e in every]).softmax(0)

    def frequencies(drawn):
        return (drawn[:, None] == every).all(2).double().mean(0)

    exact = frequencies(sample_matching(scores.expand(n, -1, -1), keyed_generator(6)))
    assert n * ((exact - p).square() / p).sum() < 20.5  # χ², 5 degrees of freedom, 0.001
    rough = frequencies(perturb_and_map(scores.expand(2000, -1, -1), keyed_generator(7)))
    assert (rough - p).abs().max() < 0.15
    assert rough.argmax() == p.argmax()


@pytest.mark.exact
def test_sinkhorn_is_doubly_stochastic_and_cold_it_is_the_best_matching():
    scores = torch.randn(3, 6, 6, generator=keyed_generator(8), dtype=F64)
    soft = sinkhorn(scores).exp()
    torch.testing.assert_close(soft.sum(1), torch.ones(3, 6, dtype=F64))
    torch.testing.assert_close(soft.sum(2), torch.ones(3, 6, dtype=F64))
    ratio = soft.log() - scores  # differs from the scores by rows and columns only
    mixed = ratio[:, :1, :1] - ratio[:, 1:, :1] - ratio[:, :1, 1:] + ratio[:, 1:, 1:]
    assert mixed.abs().max() < 1e-9
    cold = sinkhorn(scores / 0.005, 2000).exp()
    from core.coupling import optimal_permutation

    best = torch.stack([optimal_permutation(-s) for s in scores])
    assert torch.equal(cold.argmax(2), best)


def trained(family, truth, tmp_path, steps=300):
    model = build({"family": family, "event_shape": [4, 4]})
    with torch.no_grad():
        model.free.copy_(truth)
    data = model.sample((3000,), generator=keyed_generator(1))
    learner = build({"family": family, "event_shape": [4, 4]})

    def batches(step, generator):
        return data[torch.randint(3000, (256,), generator=generator)], None

    config = FitConfig(
        steps=steps, learning_rate=5e-2, validate_every=0, weight_decay=0.0, ema=0.95
    )
    return (
        model,
        fit(learner, batches, config, folder=tmp_path, progress=None, device="cpu").model,
        data,
    )


@pytest.mark.exact
@pytest.mark.parametrize("family", ["spanning_tree", "matching"])
def test_models_learn_the_law_of_their_structures(family, tmp_path):
    truth, learned, data = trained(family, symmetric(4, 3).float(), tmp_path)
    exact, found = (m.log_prob(data[:500]).value.mean() for m in (truth, learned))
    assert truth.log_prob(data[:1]).kind == "exact"
    assert abs(exact - found) < 0.02
    uniform = -math.log(16 if family == "spanning_tree" else 24)
    assert found > uniform + 0.1


@pytest.mark.contract
@pytest.mark.parametrize("family", ["spanning_tree", "matching"])
def test_contexts_and_streams(family):
    config = {"family": family, "event_shape": [4, 4], "context_shape": [2]}
    model = build({**config, "scores": {"width": 8, "blocks": 1}})
    torch.nn.init.normal_(model.net.last.weight, std=2.0, generator=keyed_generator(0))
    context = torch.randn(3, 2, generator=keyed_generator(1))
    streams = [keyed_generator(2, k) for k in range(3)]
    x = model.sample((1,), context, generator=streams)[0]
    assert torch.equal(
        x[2:], model.sample((1,), context[2:], generator=[keyed_generator(2, 2)])[0]
    )
    assert model.loss(x, context).value.shape == (3,)
    both = model.log_prob(x[:1].expand(2, -1, -1), context[:2]).value
    assert both[0] != both[1]
    with pytest.raises(AleatorError, match="needs a context vector"):
        model.sample()
    with pytest.raises(AleatorError, match="has no posterior: structures are discrete"):
        posterior(model, torch.zeros(1, 1), torch.ones(1, 16), noise=1.0)


def test_mistakes_are_named():
    tree, matching = (
        build({"family": f, "event_shape": [3, 3]}) for f in ("spanning_tree", "matching")
    )
    cycle = (1 - torch.eye(3))[None]
    with pytest.raises(AleatorError, match="example 0 is no adjacency of a spanning tree"):
        tree.loss(cycle)
    with pytest.raises(AleatorError, match="example 0 is no permutation matrix"):
        matching.loss(cycle)
    with pytest.raises(AleatorError, match="no sampler"):
        tree.sample((1,), sampler="mala")
    with pytest.raises(AleatorError, match="has no context"):
        tree.sample((), torch.zeros(1, 2))
    with pytest.raises(AleatorError, match=r"an event \(N, N\)"):
        build({"family": "matching", "event_shape": [3]})
    with pytest.raises(AleatorError, match="must be symmetric"):
        tree_log_partition(torch.arange(9.0).reshape(1, 3, 3))
    with pytest.raises(AleatorError, match="at most 16; use perturb_and_map"):
        matching_log_partition(torch.zeros(1, 17, 17))
    with pytest.raises(AleatorError, match="is needed"):
        matching_log_partition(torch.zeros(3, 3))
