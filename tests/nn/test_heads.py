"""Heads: where they start, what they see, and the exact gradient of EdgeQHead by the weights."""

import pytest
import torch
from torch.testing import assert_close

from ltos_pyg.nn import EdgePolicyHead, EdgeQHead, QHead, Sharing, check_sharing, constant_sharing, sender_softmax
from ltos_pyg.testing import random_snapshot

STAR = torch.tensor([[0, 0, 0, 0, 1, 2], [1, 2, 3, 4, 0, 0]])  # out-degrees 4, 1, 1, 0, 0, and 5 is alone


@pytest.mark.parametrize('out_channels', [1, 3])
@pytest.mark.parametrize('edge_dim', [None, 2])
@pytest.mark.parametrize('own', [0.05, 0.25, 0.5, 0.8, 0.999])
def test_the_initial_share_is_exact_for_any_degree(own, edge_dim, out_channels):
    head = EdgePolicyHead(5, 8, edge_dim, out_channels, initial_kept=own)
    h = 10 * torch.randn(6, 5)
    sharing = head.share(h, STAR) if edge_dim is None else head.share(h, STAR, torch.randn(6, 2))
    expected = constant_sharing(STAR, 6, own)
    for h in range(out_channels):
        got = sharing if out_channels == 1 else Sharing(sharing.given[:, h], sharing.kept[:, h])
        assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_without_an_initial_share_it_starts_uniform():
    assert_close(EdgePolicyHead(5).share(torch.randn(6, 5), STAR), constant_sharing(STAR, 6))


def test_the_start_is_no_dead_end():
    head, h = EdgePolicyHead(5, initial_kept=0.3), torch.randn(6, 5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):  # give all to node 1
        sharing = head.share(h, STAR)
        optimizer.zero_grad()
        (-sharing.given[0]).backward()
        optimizer.step()
    assert sharing.given[0] > 0.9
    check_sharing(sharing, STAR, 6)


def test_logits_still_learn_from_the_state_when_all_hidden_units_are_negative():
    head, h = EdgePolicyHead(5), torch.randn(6, 5)
    for logit, lin in ((head.edge_logit, head.lin_sender), (head.self_logit, head.lin_own)):
        torch.nn.init.normal_(logit.weight)
        torch.nn.init.constant_(lin.bias, -100.0)
    edge, own = head(h, STAR)
    (edge.sum() + own.sum()).backward()
    for part in (edge.std(), own.std(), head.lin_receiver.weight.grad, head.lin_own.weight.grad):
        assert part.abs().max() > 0


def test_share_is_the_softmax_of_the_logits():
    head, h = EdgePolicyHead(5), torch.randn(6, 5)
    torch.nn.init.normal_(head.edge_logit.weight)
    assert_close(head.share(h, STAR), sender_softmax(*head(h, STAR), STAR), rtol=0, atol=0)


def test_an_edge_logit_depends_on_its_two_ends_alone():
    head, h = EdgePolicyHead(5), torch.randn(6, 5, requires_grad=True)
    torch.nn.init.normal_(head.edge_logit.weight)
    head(h, STAR)[0][4].backward()  # edge 1 -> 0
    assert h.grad.any(-1).nonzero().flatten().tolist() == [0, 1]


def test_pair_values_by_hand():
    own, pair = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[10.0, -10.0]])
    sharing = Sharing(torch.tensor([0.25]), torch.tensor([0.75, 1.0]))  # 0 gives a quarter to 1
    expected = torch.tensor([[0.75, 1.5], [5.5, 1.5]])
    assert_close(EdgeQHead.combine(own, pair, torch.tensor([[0], [1]]), sharing), expected)


def test_combine_is_linear_in_the_weights_and_its_gradient_is_the_pair_value():
    graph = random_snapshot(6, 14, 5)
    own, pair = EdgeQHead(5, 3)(graph.x, graph.edge_index)
    one, other = (Sharing(torch.randn(14), torch.randn(6)) for _ in range(2))
    combine = lambda s: EdgeQHead.combine(own, pair, graph.edge_index, s)
    mixed = Sharing(2 * one.given - 3 * other.given, 2 * one.kept - 3 * other.kept)
    assert_close(combine(mixed), 2 * combine(one) - 3 * combine(other), rtol=1e-4, atol=1e-5)
    given = one.given.clone().requires_grad_()
    q = combine(Sharing(given, one.kept))
    chosen = q[torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])]
    (grad,) = torch.autograd.grad(chosen.sum(), given)
    assert_close(grad, pair[torch.arange(14), torch.tensor([0, 1, 2, 0, 1, 2])[graph.edge_index[1]]])


def test_pair_values_see_both_ends_and_the_edge():
    graph, edge_attr = random_snapshot(6, 14, 5), torch.randn(14, 2)
    head = EdgeQHead(5, 3, hidden_channels=4, edge_dim=2)
    owner, actor = graph.edge_index
    hidden = head.lin_owner(graph.x)[owner] + head.lin_actor(graph.x)[actor] + head.lin_edge(edge_attr)
    assert_close(head(graph.x, graph.edge_index, edge_attr)[1], head.pair(hidden.relu()))


def test_keeping_all_leaves_the_own_values():
    own, pair = EdgeQHead(5, 3)(torch.randn(6, 5), STAR)
    kept_all = Sharing(torch.zeros(6), torch.ones(6))
    assert torch.equal(EdgeQHead.combine(own, pair, STAR, kept_all), own)


def test_q_head_is_one_linear_map():
    head, h = QHead(5, 3), torch.randn(6, 5)
    assert_close(head(h), h @ head.lin.weight.t() + head.lin.bias)
