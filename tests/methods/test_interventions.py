"""Interventions: their equations, the same in low rank, and dropout as a mask."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from medvlp.methods.interventions import ConditionalLoReFT, LoReFT, RowDropout, between

B, N_CLS, P, D, FEATURE, RANK = 7, 2, 3, 101, 5, 4
KINDS = ["conditional", "unconditional"]


def build(kind: str, **switches) -> LoReFT | ConditionalLoReFT:
    """In float64, every weight away from where it starts, R too."""
    random = torch.Generator().manual_seed(0)
    if kind == "conditional":
        module = ConditionalLoReFT(D, RANK, FEATURE, generator=random, **switches)
    else:
        module = LoReFT(D, RANK, generator=random, **switches)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=random) * 0.1)
    return module.double()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masks() -> dict[str, torch.Tensor | None]:
    return {
        "none": None,
        "shared": (draw(N_CLS, P, D, seed=2) > -1).double() / 0.8,
        "per image": (draw(B, N_CLS, P, D, seed=3) > -1).double() / 0.8,
    }


def test_between_is_the_product_with_a_diagonal_matrix_for_every_row():
    X, rows, Y = draw(2, 5), draw(3, 4, 5, seed=1), draw(5, 6, seed=2)
    found = between(X, rows, Y)
    assert found.shape == (3, 4, 2, 6)
    assert torch.allclose(found[1, 2], X @ torch.diag(rows[1, 2]) @ Y)


def test_conditional_is_its_equation_written_out():
    m, h, f = build("conditional"), draw(N_CLS, P, D), draw(B, FEATURE)
    found = m(h, f)
    assert found.shape == (B, N_CLS, P, D)
    for b, c, j in [(0, 0, 0), (6, 1, 2)]:
        row = h[c, j]
        g = m.G2 @ (m.G1 @ f[b] + m.c1) + m.c2
        s = m.W1 @ row + m.W2 @ (row * g) + m.b - m.R.T @ row
        assert torch.allclose(found[b, c, j], row + m.R @ s)
    assert torch.allclose(m.edit(h, f), (found - h) @ torch.linalg.pinv(m.R).T)


def test_loreft_writes_into_its_subspace_alone():
    m, h = LoReFT(D, RANK).double(), draw(N_CLS, P, D)
    found = m(h)
    assert torch.allclose(found @ m.R, h @ m.W.T + m.b, atol=1e-6)  # there it is W h + b
    apart = torch.eye(D) - (m.R @ m.R.T).detach()
    assert torch.allclose(found @ apart.double(), h @ apart.double(), atol=1e-6)
    assert torch.equal(m(h, draw(B, FEATURE)), found)  # no image changes it


def test_the_image_changes_the_conditional_alone():
    h, f = draw(N_CLS, P, D), draw(B, FEATURE)
    changed = build("conditional")(h, f)
    assert (changed[0] - changed[1]).norm() > 1e-3
    assert build("unconditional").projected(draw(2, D), h, f).shape == (N_CLS, P, 2)


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("kind", KINDS)
def test_projected_is_A_times_the_masked_output_with_its_gradients(kind, mask):
    module, m = build(kind), masks()[mask]
    A, h, f = draw(6, D, seed=4).requires_grad_(), draw(N_CLS, P, D), draw(B, FEATURE).requires_grad_()
    edited = module(h, f)
    plain = (edited if m is None else edited * m) @ A.T
    ours = module.projected(A, h, f, m)
    assert torch.allclose(ours, plain, rtol=1e-10, atol=1e-12)
    inputs = [A, *module.parameters(), *([f] if kind == "conditional" else [])]
    weights = draw(*plain.shape, seed=5)
    for a, b in zip(*(torch.autograd.grad((x * weights).sum(), inputs) for x in (ours, plain)), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mask", ["none", "shared"])
def test_nothing_as_wide_as_the_states_is_kept_for_each_image(mask):
    module, kept = build("conditional"), []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module.projected(draw(6, D).requires_grad_(), draw(N_CLS, P, D), draw(B, FEATURE), masks()[mask])
    assert len(kept) > 5
    assert max(t.numel() for t in kept) < B * D


def test_an_orthonormal_R_stays_so_while_weights_decay():
    random = torch.Generator().manual_seed(0)
    m = ConditionalLoReFT(D, RANK, FEATURE, orthonormal=True, generator=random).double()
    free = ConditionalLoReFT(D, RANK, FEATURE, generator=torch.Generator().manual_seed(0)).double()
    eye = torch.eye(RANK, dtype=torch.float64)
    assert torch.allclose(m.R, free.R, atol=1e-6)  # both orthonormal at the start
    start = m.R.detach().clone()
    for module in (m, free):
        sgd = torch.optim.SGD(module.parameters(), lr=1e-4, weight_decay=10)
        for step in range(20):
            f = draw(B, FEATURE, seed=step)
            loss = module.projected(draw(6, D), draw(N_CLS, P, D), f).square().mean()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    assert torch.allclose(m.R.T @ m.R, eye, atol=1e-6)
    assert (m.R - start).norm() > 0.01
    assert (free.R.T @ free.R - eye).norm() > 0.01
    assert sum(p.numel() for p in m.parameters()) == sum(p.numel() for p in free.parameters())


def test_the_start_is_that_of_linear_layers():
    m = ConditionalLoReFT(400, RANK, 100)
    assert torch.allclose(m.R.T @ m.R, torch.eye(RANK), atol=1e-5)
    for weights, n_inputs in ((m.W1, 800), (m.W2, 800), (m.G1, 100), (m.G2, RANK), (m.c2, RANK)):
        bound = n_inputs**-0.5
        assert 0.9 * bound < weights.abs().max() <= bound
        assert abs(weights.mean()) < 0.2 * bound
    assert m.b.abs().max() <= 800**-0.5
    assert LoReFT(400, RANK).W.abs().max().item() == pytest.approx(400**-0.5, rel=0.1)


@pytest.mark.parametrize("per_image", [False, True])
def test_dropout_keeps_the_mean_and_repeats_with_the_seed(per_image):
    dropout, h = RowDropout(0.1, per_image), torch.ones(20, 4, 100)
    torch.manual_seed(0)
    m = dropout(h, 3)
    assert m.shape == ((3, 20, 4, 100) if per_image else (20, 4, 100))
    assert m.unique().tolist() == pytest.approx([0, 1 / 0.9])
    assert (m == 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    torch.manual_seed(0)
    assert torch.equal(dropout(h, 3), m)
    assert not torch.equal(dropout(h, 3), m)


def test_nothing_is_dropped_in_evaluation_or_with_p_0():
    assert RowDropout(0.5).eval()(torch.ones(2, 3), 1) is None
    assert RowDropout(0.0).train()(torch.ones(2, 3), 1) is None


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_chance_out_of_range_is_an_error(p):
    with pytest.raises(ValueError, match=f"dropout must be at least 0 and below 1, got {p}"):
        RowDropout(p)


@pytest.mark.parametrize(
    ("rank", "message"), [(0, "at least 1, got 0"), (9, "at most the width .*, 8, got 9")]
)
def test_a_rank_out_of_range_is_an_error(rank, message):
    with pytest.raises(ValueError, match=f"the rank must be {message}"):
        LoReFT(8, rank)
