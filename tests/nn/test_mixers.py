"""The mixing network of QMIX: monotone, the same for any batch, and torchrl's where torchrl is installed."""

import copy

import pytest
import torch
from torch.testing import assert_close

from ltos_pyg.nn import QMixer

SIZES = [3, 0, 1, 2]  # nodes of each graph: one is empty
BATCH = torch.tensor([0, 0, 0, 2, 3, 3])
SLOT = torch.tensor([2, 0, 1, 1, 0, 2])  # in any order, and some are empty
FORMS = {
    'slots': lambda **options: QMixer(5, 4, num_slots=3, **options),
    'slots-linear': lambda **options: QMixer(5, 4, None, num_slots=3, **options),
    'shared': lambda **options: QMixer(5, 4, 6, node_channels=2, **options),
}
every_form = pytest.mark.parametrize('form', FORMS)


def inputs(form, seed=0):
    rng = torch.Generator().manual_seed(seed)
    node = torch.randn(6, 2, generator=rng) if form == 'shared' else SLOT
    return torch.randn(6, generator=rng), torch.randn(4, 5, generator=rng), BATCH, node


def constant(module, value):
    """Makes a hypernetwork say the same whatever the state."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.lins[-1].bias.copy_(torch.tensor(value))


def by_hand(activation=None, w1=(-0.5, 1.0), b1=0.1, w2=-2.0, value=0.3):
    mixer = QMixer(1, 1, None, num_slots=2, activation=activation)
    for module, numbers in ((mixer.hyper_w1, w1), (mixer.hyper_b1, [b1]), (mixer.hyper_w2, [w2])):
        constant(module, list(numbers))
    constant(mixer.value, [value])
    return mixer


@pytest.mark.parametrize(('q', 'total'), [((1.0, 2.0), 5.5), ((-1.0, -2.0), -1.518564), ((2.0, 1.0), 4.5)])
def test_numbers_worked_by_hand(q, total):
    got = by_hand()(torch.tensor(q), torch.ones(1, 1), torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert_close(got, torch.tensor([total]))


def test_with_all_weights_one_it_is_the_sum():
    vdn = by_hand(torch.nn.Identity(), w1=(1.0, 1.0), b1=0.0, w2=1.0, value=0.0)
    q = torch.tensor([1.0, -2.0, 0.5, -3.0])
    assert_close(
        vdn(q, torch.randn(3, 1), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0])), torch.tensor([-1, -2.5, 0])
    )


@every_form
def test_the_whole_never_falls_when_a_part_rises(form):
    for seed in range(5):
        torch.manual_seed(seed)
        q, *rest = inputs(form, seed)
        gradient = torch.autograd.functional.jacobian(lambda q: FORMS[form]()(q, *rest), 3 * q)  # noqa: B023
        assert (gradient >= 0).all()
        own = torch.arange(4).unsqueeze(1) == BATCH
        assert (gradient[own] > 0).all()
        assert (gradient[~own] == 0).all()  # no graph sees another


@every_form
def test_a_batch_is_its_graphs_one_by_one(form):
    mixer, (q, state, batch, node) = FORMS[form](), inputs(form)
    alone = []
    for b in range(4):
        here = batch == b
        alone.append(mixer(q[here], state[b : b + 1], torch.zeros(int(here.sum()), dtype=torch.int64), node[here]))
    assert_close(mixer(q, state, batch, node), torch.cat(alone))


@every_form
def test_the_order_of_the_nodes_does_not_matter_but_their_slots_do(form):
    mixer, (q, state, batch, node) = FORMS[form](), inputs(form)
    expected, order = mixer(q, state, batch, node), torch.randperm(6)
    assert_close(mixer(q[order], state, batch[order], node[order]), expected)
    assert not torch.allclose(mixer(q, state, batch, node.roll(1, 0)), expected)


def test_rows_from_features_that_name_the_slot_are_the_rows_of_the_slots():
    """One linear network of [slot (x) state, slot] is a linear network for each slot."""
    slots, shared = QMixer(5, 4, None, num_slots=3), QMixer(5, 4, None, node_channels=18)
    q, state, batch, slot = inputs('slots')
    one = torch.eye(3)[slot]
    node = torch.cat([(one.unsqueeze(2) * state[batch].unsqueeze(1)).flatten(1), one], dim=1)
    shared.load_state_dict({k: v for k, v in slots.state_dict().items() if 'w1' not in k}, strict=False)
    lin, weight = slots.hyper_w1.lins[0], torch.zeros(4, 5 + 18)
    weight[:, 5:20] = lin.weight.detach().view(3, 4, 5).transpose(0, 1).flatten(1)
    weight[:, 20:] = lin.bias.detach().view(3, 4).t()
    with torch.no_grad():
        shared.hyper_w1.lins[0].weight.copy_(weight)
        shared.hyper_w1.lins[0].bias.zero_()
    assert_close(shared(q, state, batch, node), slots(q, state, batch, slot))


@every_form
def test_gradients_are_those_of_finite_differences(form):
    mixer, (q, state, batch, node) = FORMS[form]().double(), inputs(form)
    reals = [t.double().requires_grad_() for t in (q, state)]
    node = node.double().requires_grad_() if form == 'shared' else node
    assert torch.autograd.gradcheck(lambda q, state: mixer(q, state, batch, node), reals)


@every_form
def test_for_a_graph_without_nodes_the_mixer_returns_the_value_of_its_state(form):
    mixer = FORMS[form]()
    no_agents = inputs(form)[3][:0]
    state, none = torch.randn(2, 5), torch.zeros(0, dtype=torch.int64)
    hidden = torch.nn.functional.elu(mixer.hyper_b1(state)) * mixer.hyper_w2(state).abs()
    expected = hidden.sum(1) + mixer.value(state).squeeze(1)
    assert_close(mixer(torch.zeros(0), state, none, no_agents), expected)
    assert mixer(torch.zeros(0), state[:0], none, no_agents).shape == (0,)


@every_form
def test_copies_and_new_draws(form):
    mixer, args = FORMS[form](), inputs(form)
    expected = mixer(*args)
    assert_close(copy.deepcopy(mixer)(*args), expected, rtol=0, atol=0)
    before = [p.clone() for p in mixer.parameters()]
    mixer.reset_parameters()
    assert not any(torch.equal(old, new) for old, new in zip(before, mixer.parameters(), strict=True))


@every_form
@pytest.mark.parametrize('port', ['compile', 'export'])
def test_ports_agree_on_a_size_that_they_were_not_traced_on(form, port):
    mixer, args = FORMS[form]().eval(), inputs(form)
    q, state, _, node = (torch.cat([part, part]) for part in args)
    larger = q, state, torch.cat([BATCH, BATCH + 4]), node
    if port == 'compile':
        ported = torch.compile(mixer, fullgraph=True, dynamic=True, backend='aot_eager')
        ported(*args)
    else:
        dyn = torch.export.Dim.DYNAMIC
        ported = torch.export.export(mixer, args, dynamic_shapes=({0: dyn}, {0: dyn}, {0: dyn}, {0: dyn})).module()
    assert_close(ported(*larger), mixer(*larger))


def test_float32_comes_out_of_autocast():
    for form, build in FORMS.items():
        mixer, args = build(), inputs(form)
        with torch.autocast('cpu', torch.bfloat16):
            rough = mixer(*args)
        assert rough.dtype == torch.float32
        assert_close(rough, mixer(*args), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ('form', 'change', 'message'),
    [
        ('slots', {0: torch.randn(6, 2)}, r"'q' must have shape \(N,\).* \(got \(6, 2\)\)\. Gather it"),
        ('slots', {1: torch.randn(4, 6)}, r"'state' must have shape \(B, state_channels=5\).* \(got \(4, 6\)\)"),
        ('slots', {2: BATCH[:5]}, r"'batch' needs one row per node: expected 6 rows, got shape \(5,\)"),
        ('slots', {3: torch.randn(6)}, r"'node' must hold the slot of each node.* \(got \(6,\) of torch.float32\)"),
        ('slots', {3: SLOT + 9}, r"'node' must be a slot for each node, in \[0, .*\) \(got 9\.\."),
        ('slots', {2: BATCH + 9}, r"'batch' must be a graph for each node, in \[0, 4\) \(got 9\.\."),
        ('slots', {3: SLOT.view(6, 1)}, r"'node' must hold the slot of each node.* \(got \(6, 1\)"),
        ('shared', {3: torch.randn(6, 3)}, r"'node' must hold features, \(N, 2\) \(got \(6, 3\)"),
        ('shared', {3: torch.randn(5, 2)}, r"'node' needs one row per node: expected 6 rows"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(form, change, message):
    args = [change.get(i, part) for i, part in enumerate(inputs(form))]
    with pytest.raises(ValueError, match=message):
        FORMS[form]()(*args)


@pytest.mark.parametrize('options', [{}, {'num_slots': 2, 'node_channels': 3}])
def test_rows_are_made_in_exactly_one_way(options):
    with pytest.raises(ValueError, match=r"exactly one of 'num_slots' and 'node_channels' must be given \(got"):
        QMixer(3, **options)


@pytest.mark.filterwarnings('default')
def test_torchrl_computes_the_same_with_the_same_weights():
    multiagent = pytest.importorskip('torchrl.modules.models.multiagent', reason='the oracle is torchrl')
    agents, state_channels, embed, graphs = 4, 7, 8, 16
    oracle = multiagent.QMixer(state_shape=(state_channels,), mixing_embed_dim=embed, n_agents=agents, device='cpu')
    mixer = QMixer(state_channels, embed, None, num_slots=agents)
    pairs = {
        'hyper_w1.lins.0': 'hyper_w_1',
        'hyper_b1.lins.0': 'hyper_b_1',
        'hyper_w2.lins.0': 'hyper_w_final',
        'value.lins.0': 'V.0',
        'value.lins.1': 'V.2',
    }
    theirs = oracle.state_dict()
    mixer.load_state_dict({f'{a}.{p}': theirs[f'{b}.{p}'] for a, b in pairs.items() for p in ('weight', 'bias')})
    q, state = torch.randn(graphs, agents, 1), torch.randn(graphs, state_channels)
    expected = oracle(q, state)
    batch, slot = torch.arange(graphs).repeat_interleave(agents), torch.arange(agents).repeat(graphs)
    assert_close(mixer(q.flatten(), state, batch, slot), expected.squeeze(-1))
