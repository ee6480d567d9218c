"""Every wrong input is refused at the border, by name, with what was expected, what came, and the next move."""

import numpy as np
import pytest
import torch
from nn_zoo import CASES
from torch.testing import assert_close
from torch_geometric.data import Data
from torch_geometric.nn import GATConv
from torch_geometric.transforms import ToSparseTensor
from torch_geometric.utils import to_edge_index

from ltos_pyg.graph_env import fully_connected
from ltos_pyg.nn import (
    DGN,
    DGNConv,
    DGNTrunk,
    EdgePolicyHead,
    EdgeQHead,
    IntentionConv,
    LToSConv,
    QMixer,
    Sharing,
    check_sharing,
    constant_sharing,
    keep_all,
    sender_softmax,
    share_value,
)
from ltos_pyg.nn.validation import check_finite

X, EDGES = torch.randn(4, 5), torch.tensor([[0, 1, 2], [1, 2, 0]])
NAN = float('nan')

BAD_EDGES = {
    'above': (torch.tensor([[0, 4], [1, 2]]), r"'edge_index' must lie in \[0, 3\] for 4 nodes \(got 0\.\.4\)"),
    'below': (torch.tensor([[0, 1], [-1, 2]]), r"'edge_index' must lie in \[0, 3\] for 4 nodes \(got -1\.\.2\)"),
    'float': (torch.tensor([[0.0], [1.0]]), r'must be torch\.int64 \(got torch\.float32\)\. Convert it with \.long'),
    'int32': (EDGES.int(), r"'edge_index' must be torch\.int64 \(got torch\.int32\)"),
    'pairs': (EDGES.t(), r'must have shape \(2, E\), row 0 senders, row 1 receivers \(got \(3, 2\)\)\. Transpose'),
    'flat': (EDGES[0], r"'edge_index' must have shape \(2, E\).*got \(3,\)"),
    'loops': (torch.tensor([[0, 1, 3], [1, 1, 3]]), r'free of self-loops.*got 2, first at edges \[1, 2\]'),
}


def takes_edges():
    calls = {str(case): (lambda e, case=case: case.module()(X[:, :4], e, *extra(case, e))) for case in CASES}
    calls = {name: call for name, call in calls.items() if not name.startswith(('QHead', 'EdgeQHead', 'DGN-sharing'))}
    return {
        **calls,
        'LToSConv.share': lambda e: LToSConv(5, 6).share(X, e),
        'trunk with sharing': lambda e: DGN(5, 3, sharing=True)(
            X, e, None, Sharing(torch.zeros(columns(e)), torch.ones(4))
        ),
        'share_value': lambda e: share_value(X, e, Sharing(torch.zeros(columns(e)), torch.ones(4))),
        'sender_softmax': lambda e: sender_softmax(torch.zeros(columns(e)), torch.zeros(4), e),
        'constant_sharing': lambda e: constant_sharing(e, 4),
    }


def columns(edge_index):
    return edge_index.size(-1)


def extra(case, edge_index):
    return () if case.edge_dim is None else (torch.randn(columns(edge_index), case.edge_dim),)


@pytest.mark.parametrize('bad', BAD_EDGES)
@pytest.mark.parametrize('name', takes_edges())
def test_bad_edge_index(name, bad):
    edge_index, message = BAD_EDGES[bad]
    with pytest.raises(ValueError, match=message):
        takes_edges()[name](edge_index)


HALF = [0.5, 0.5, 0.5]
BAD_SHARING = {
    'sum': (HALF, [0.5, 0.6, 0.5, 1.0], r'simplex of each sender.*sums off by up to 0\.1 at 1 of 4 nodes'),
    'negative': ([-0.5, 0.5, 0.5], [1.5, 0.5, 0.5, 1.0], r'smallest weight -0\.5'),
    'lone gives': (HALF, [0.5, 0.5, 0.5, 0.7], r'off by up to 0\.3 at 1 of 4 nodes'),
    'nan given': ([NAN, 0.5, 0.5], [0.5, 0.5, 0.5, 1.0], r"'sharing\.given' must be finite \(got 1 .* of 3 .*\[0\]"),
    'inf kept': (HALF, [0.5, 0.5, float('inf'), 1.0], r"'sharing\.kept' must be finite .*first at \[2\]"),
    'given short': ([0.5, 0.5], [0.5, 0.5, 0.5, 1.0], r"'sharing\.given' needs one row per edge: expected 3 rows"),
    'kept short': (HALF, [0.5, 0.5, 0.5], r"'sharing\.kept' needs one row per node: expected 4 rows"),
}


@pytest.mark.parametrize('bad', BAD_SHARING)
def test_weights_off_the_simplex(bad):
    given, kept, message = BAD_SHARING[bad]
    with pytest.raises(ValueError, match=message):
        check_sharing(Sharing(torch.tensor(given), torch.tensor(kept)), EDGES, 4)


def test_weights_that_are_being_learned_are_refused_alike():
    given = torch.tensor([-0.5, 0.5, 0.5], requires_grad=True)
    with pytest.raises(ValueError, match=r'smallest weight -0\.5'):
        check_sharing(Sharing(given, torch.tensor([1.5, 0.5, 0.5, 1.0])), EDGES, 4)


def test_weights_on_the_simplex_pass_within_the_tolerance():
    check_sharing(Sharing(torch.tensor(HALF), torch.tensor([0.5, 0.5, 0.50005, 1.0])), EDGES, 4)
    check_sharing(keep_all(EDGES[:, :0], 0), EDGES[:, :0], 0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_pass_if_they_are_right(dtype):
    edges = fully_connected(40)
    logits = torch.randn(edges.size(1) + 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    right = sender_softmax(logits[: edges.size(1)], logits[edges.size(1) :], edges)
    check_sharing(right, edges, 40)
    with pytest.raises(ValueError, match=r"'sharing' must lie on the simplex"):
        check_sharing(Sharing(right.given, right.kept + 0.1), edges, 40)


ROWS = r'needs one row per {}: expected {} rows, got shape {}'
UNIFORM = constant_sharing(EDGES, 4)
CALLS = {
    'value of another graph': (
        lambda: share_value(X[:3], EDGES, UNIFORM),
        r"'sharing\.kept' needs one row per node: expected 3 rows, got shape \(4,\)\. Was it computed for another",
    ),
    'given of another graph': (
        lambda: share_value(X, EDGES, Sharing(torch.zeros(2), UNIFORM.kept)),
        r"'sharing\.given' needs one row per edge: expected 3 rows, got shape \(2,\)",
    ),
    'sharing of many heads': (
        lambda: share_value(X, EDGES, Sharing(torch.zeros(3, 2), torch.ones(4, 2))),
        r'one weight per edge and node.*got \(3, 2\) and \(4, 2\)\. Choose one head',
    ),
    'weights of two dtypes': (
        lambda: share_value(X, EDGES, Sharing(UNIFORM.given, UNIFORM.kept.double())),
        r"'sharing\.given' and 'sharing\.kept' must have one floating-point dtype \(got torch\.float32 and",
    ),
    'whole numbers as weights': (
        lambda: check_sharing(Sharing(torch.zeros(3).long(), torch.ones(4).long()), EDGES, 4),
        r"'sharing\.given' and 'sharing\.kept' must have one floating-point dtype \(got torch\.int64",
    ),
    'no weights': (
        lambda: check_sharing(None, EDGES, 4),
        r'sharing weights must be Sharing\(given, kept\).*got NoneType',
    ),
    'weights of other heads': (
        lambda: check_sharing(Sharing(torch.zeros(3, 2), torch.ones(4, 3)), EDGES, 4),
        r"'sharing\.given' and 'sharing\.kept' must agree in the number of heads \(got \(3, 2\) and \(4, 3\)\)",
    ),
    'whole numbers as logits': (
        lambda: sender_softmax(torch.zeros(3).long(), torch.zeros(4).long(), EDGES),
        r"'edge_logit' and 'self_logit' must have one floating-point dtype \(got torch\.int64 and torch\.int64\)",
    ),
    'a word as share': (
        lambda: constant_sharing(EDGES, 4, 'uniform'),
        r"'kept' must be a number in \[0, 1\], one per node, or None for uniform weights \(got 'uniform'\)",
    ),
    'LToSConv: features beside weights': (
        lambda: LToSConv(5, 6)(X, EDGES, torch.randn(3, 2), share=UNIFORM),
        r"'edge_attr' was given to a layer without edge features",
    ),
    'pairs of nodes that are not there': (
        lambda: EdgeQHead(5, 3)(X, EDGES + 2),
        r"'pairs' must be numbers of nodes, in \[0, 4\) \(got 2\.\.4\)",
    ),
    'pairs of floats': (
        lambda: EdgeQHead(5, 3)(X, EDGES.float()),
        r"'pairs' must be a \(2, P\) tensor of torch\.int64",
    ),
    'trunk: weights of several heads': (
        lambda: DGN(5, 3, sharing=True)(X, EDGES, None, Sharing(torch.zeros(3, 1), torch.ones(4, 1))),
        r"'sharing' needs one weight per edge and node.*got \(3, 1\) and \(4, 1\)",
    ),
    'logits of another graph': (
        lambda: sender_softmax(torch.zeros(2), torch.zeros(4), EDGES),
        r"'edge_logit' needs one row per edge: expected 3 rows",
    ),
    'logits of other heads': (
        lambda: sender_softmax(torch.zeros(3, 2), torch.zeros(4), EDGES),
        r"'edge_logit' and 'self_logit' must agree in the number of heads \(got \(3, 2\) and \(4,\)\)",
    ),
    'kept above 1': (lambda: constant_sharing(EDGES, 4, 1.2), r"'kept' must lie in \[0, 1\] \(got 1\.2\.\.1\.2\)"),
    'kept nan': (
        lambda: constant_sharing(EDGES, 4, torch.full((4,), NAN)),
        r"'kept' must lie in \[0, 1\] \(got nan",
    ),
    'kept shares of another graph': (
        lambda: constant_sharing(EDGES, 4, torch.ones(3)),
        r"'kept' needs one row per node: expected 4 rows, got shape \(3,\)",
    ),
    'a number where a row per node is due': (
        lambda: check_sharing(Sharing(UNIFORM.given, torch.tensor(1.0)), EDGES, 4),
        r"'sharing\.kept' needs one row per node: expected 4 rows, got shape \(\)",
    ),
    'LToSConv: share of too few edges': (
        lambda: LToSConv(5, 6)(X, EDGES, share=Sharing(torch.zeros(2), torch.ones(4))),
        r"'share\.given' needs one row per edge: expected 3 rows",
    ),
    'LToSConv: share of too few nodes': (
        lambda: LToSConv(5, 6)(X, EDGES, share=Sharing(torch.zeros(3), torch.ones(3))),
        r"'share\.kept' needs one row per node: expected 4 rows",
    ),
    'LToSConv: share of other heads': (
        lambda: LToSConv(5, 6, heads=3)(X, EDGES, share=Sharing(torch.zeros(3, 2), torch.ones(4, 2))),
        r"'share\.given' needs one weight per edge.*expected \(3,\) or \(3, 3\), got \(3, 2\)",
    ),
    'LToSConv: heads': (lambda: LToSConv(5, 6, heads=4), r"'heads' must divide 'out_channels' \(got 4 heads, 6 chan"),
    'DGNConv: heads': (lambda: DGNConv(5, 6, heads=4), r"'heads' must divide 'out_channels' \(got 4 heads, 6 channels"),
    'DGNConv: heads by default': (lambda: DGNConv(5, 4), r"8 heads, 4 channels\)\. 'heads' is 8 if not given"),
    'DGNConv: no heads': (lambda: DGNConv(5, 6, heads=0), r"'heads' must divide 'out_channels' \(got 0 heads"),
    'LToSConv: no heads': (lambda: LToSConv(5, 6, heads=0), r"'heads' must divide 'out_channels' \(got 0 heads"),
    **{
        f'{conv.__name__}: two sets of nodes': (
            lambda conv=conv: conv(5, 8)((X, X), EDGES),
            r"'x' must be one tensor \(N, F\), for this layer works on one set of nodes \(got a tuple\)\. Make a",
        )
        for conv in (LToSConv, DGNConv, IntentionConv)
    },
    **{
        f'{conv.__name__}: {name} {size}': (
            lambda conv=conv, name=name, size=size: conv(**{'in_channels': 5, 'out_channels': 8, name: size}),
            rf"'{name}' must be at least \d.* \(got {size}\)",
        )
        for conv in (LToSConv, DGNConv, IntentionConv)
        for name, size in (('in_channels', -2), ('out_channels', 0), ('edge_dim', -1))
    },
    **{
        f'{conv.__name__}: two sizes': (
            lambda conv=conv: conv((-1, -1), 8),
            r"'in_channels' must be one int.*\(got \(-1, -1\)\)\. Make a graph of two sets one graph first",
        )
        for conv in (LToSConv, DGNConv, IntentionConv)
    },
    'head: initial share 1': (lambda: EdgePolicyHead(5, initial_kept=1.0), r"'initial_kept' must lie strictly betw"),
    'head: initial share 0': (lambda: EdgePolicyHead(5, initial_kept=0.0), r'strictly between 0 and 1 \(got 0\.0\)'),
    'trunk: sharing missing': (
        lambda: DGN(5, 3, sharing=True)(X, EDGES),
        r"'sharing' must be given to a trunk built with sharing=True",
    ),
    'trunk: sharing too much': (
        lambda: DGNTrunk(5)(X, EDGES, None, UNIFORM),
        r"'sharing' must not be given to a trunk built with sharing=False",
    ),
    'trunk: sharing of another graph': (
        lambda: DGN(5, 3, sharing=True)(X, EDGES, None, Sharing(torch.zeros(2), torch.ones(4))),
        r"'sharing\.given' needs one row per edge: expected 3 rows",
    ),
    'nan': (
        lambda: check_finite('reward', torch.tensor([0.0, NAN, 1.0])),
        r"'reward' must be finite \(got 1 NaN or infinite of 3 entries, first at \[1\]\)",
    ),
}


@pytest.mark.parametrize('call', CALLS)
def test_bad_calls(call):
    function, message = CALLS[call]
    with pytest.raises(ValueError, match=message):
        function()


EDGE_LAYERS = {
    'DGNConv': lambda edge_dim: DGNConv(5, 6, 2, edge_dim),
    'LToSConv': lambda edge_dim: LToSConv(5, 6, 2, edge_dim),
    'IntentionConv': lambda edge_dim: IntentionConv(5, 6, edge_dim=edge_dim),
    'EdgePolicyHead': lambda edge_dim: EdgePolicyHead(5, 6, edge_dim),
    'EdgeQHead': lambda edge_dim: EdgeQHead(5, 3, 6, edge_dim),
}
BAD_ATTR = {
    'missing': (2, None, r"'edge_attr' .*\(E, edge_dim=2\)"),
    'unexpected': (
        None,
        torch.randn(3, 2),
        r"'edge_attr' was given to a layer without edge features\. Leave it out, or build the layer with edge_dim=",
    ),
    'too wide': (2, torch.randn(3, 3), r"'edge_attr' must have shape \(E, edge_dim=2\) \(got \(3, 3\)\)"),
    'flat': (2, torch.randn(3), r"'edge_attr' must have shape \(E, edge_dim=2\) \(got \(3,\)\)"),
    'of other edges': (
        2,
        torch.randn(4, 2),
        r"'edge_attr' needs one row per edge: expected 3 rows, got shape \(4, 2\)",
    ),
}


@pytest.mark.parametrize('bad', BAD_ATTR)
@pytest.mark.parametrize('layer', EDGE_LAYERS)
def test_bad_edge_attr(layer, bad):
    edge_dim, edge_attr, message = BAD_ATTR[bad]
    with pytest.raises(ValueError, match=message):
        EDGE_LAYERS[layer](edge_dim)(X, EDGES, edge_attr)


@pytest.mark.parametrize('layer', EDGE_LAYERS)
def test_one_feature_per_edge_may_be_flat(layer):
    made, attr = EDGE_LAYERS[layer](1), torch.randn(3)
    assert_close(made(X, EDGES, attr), made(X, EDGES, attr.unsqueeze(-1)))


def test_one_feature_per_edge_may_be_flat_beside_the_features_of_weights():
    model, attr = DGN(5, 3, edge_dim=1, sharing=True), torch.randn(3)
    share = constant_sharing(EDGES, 4)
    assert_close(model(X, EDGES, attr, share), model(X, EDGES, attr.unsqueeze(-1), share))


@pytest.mark.parametrize('x', [torch.randn(5), torch.randn(4, 3, 5)])
@pytest.mark.parametrize('make', [DGNConv, LToSConv, EdgePolicyHead])
def test_node_features_have_two_dimensions(make, x):
    layer = make(5, 8, heads=2) if make is DGNConv else make(5, 8)
    with pytest.raises(ValueError, match=r'must have shape \(N, F\): one row per node'):
        layer(x, EDGES)


@pytest.mark.parametrize('kept', [torch.full((4, 1), 0.5), torch.full((4, 2), 0.5)])
def test_shares_kept_have_one_dimension(kept):
    with pytest.raises(ValueError, match=r"'kept' must be one number, or one per node \(N,\)"):
        constant_sharing(EDGES, 4, kept)


def test_values_have_at_most_two_dimensions():
    with pytest.raises(ValueError, match=r"'value' must have shape \(N,\) or \(N, D\)"):
        share_value(torch.randn(4, 4, 2), EDGES, constant_sharing(EDGES, 4))


NO_EDGES = r"'edge_index' must be a \(2, E\) tensor of node numbers, torch.int64 \(got ndarray\)\. Convert .*from_numpy"
NO_NODES = r"'{}' must be a tensor \(N, F\) \(got ndarray\)\. Convert an array with torch\.as_tensor\({}, dtype="
NO_TENSOR = r"'{}' must be a torch\.Tensor \(got ndarray\)\. Convert it with torch\.as_tensor"
X_ARRAY, EDGES_ARRAY = X.numpy(), EDGES.numpy()
GIVEN, KEPT = np.zeros(3, np.float32), np.ones(4, np.float32)
ARRAYS = {
    'DGNConv: edges': (lambda: DGNConv(5, 8)(X, EDGES_ARRAY), NO_EDGES),
    'LToSConv: edges': (lambda: LToSConv(5, 8)(X, EDGES_ARRAY), NO_EDGES),
    'EdgePolicyHead: edges': (lambda: EdgePolicyHead(5)(X, EDGES_ARRAY), NO_EDGES),
    'share_value: edges': (lambda: share_value(X, EDGES_ARRAY, UNIFORM), NO_EDGES),
    'sender_softmax: edges': (lambda: sender_softmax(torch.zeros(3), torch.zeros(4), EDGES_ARRAY), NO_EDGES),
    'constant_sharing: edges': (lambda: constant_sharing(EDGES_ARRAY, 4), NO_EDGES),
    'keep_all: edges': (lambda: keep_all(EDGES_ARRAY, 4), NO_EDGES),
    'check_sharing: edges': (lambda: check_sharing(UNIFORM, EDGES_ARRAY, 4), NO_EDGES),
    'DGNConv: nodes': (lambda: DGNConv(5, 8)(X_ARRAY, EDGES), NO_NODES.format('x', 'x')),
    'DGN: nodes': (lambda: DGN(5, 3)(X_ARRAY, EDGES), NO_NODES.format('x', 'x')),
    'EdgeQHead: nodes': (lambda: EdgeQHead(5, 3)(X_ARRAY, EDGES), NO_NODES.format('h', 'h')),
    'EdgeQHead: pairs': (lambda: EdgeQHead(5, 3)(X, EDGES_ARRAY), NO_TENSOR.format('pairs')),
    'LToSConv: share': (lambda: LToSConv(5, 8)(X, EDGES, share=(GIVEN, KEPT)), NO_TENSOR.format('share.given')),
    'IntentionConv: start': (lambda: IntentionConv(5, 8)(X, EDGES, start=KEPT), NO_TENSOR.format('start')),
    'share_value: values': (lambda: share_value(KEPT, EDGES, UNIFORM), NO_TENSOR.format('value')),
    'share_value: weights': (lambda: share_value(X, EDGES, (GIVEN, KEPT)), NO_TENSOR.format('sharing.given')),
    'sender_softmax: edge logits': (lambda: sender_softmax(GIVEN, UNIFORM.kept, EDGES), NO_TENSOR.format('edge_logit')),
    'sender_softmax: self logits': (lambda: sender_softmax(UNIFORM.given, KEPT, EDGES), NO_TENSOR.format('self_logit')),
    'check_sharing: weights': (
        lambda: check_sharing(Sharing(GIVEN, KEPT), EDGES, 4),
        NO_TENSOR.format('sharing.given'),
    ),
    'QMixer: values': (
        lambda: QMixer(2, num_slots=4)(KEPT, torch.zeros(1, 2), torch.zeros(4).long(), torch.arange(4)),
        NO_TENSOR.format('q'),
    ),
}


@pytest.mark.parametrize('call', ARRAYS)
def test_arrays_are_no_tensors(call):
    function, message = ARRAYS[call]
    with pytest.raises(ValueError, match=message):
        function()


def test_a_sparse_tensor_of_torch_sparse_is_no_edge_index():
    class SparseTensor:  # torch_sparse, which has it, need not be installed
        pass

    with pytest.raises(ValueError, match=r'tensor of node numbers, torch\.int64 \(got SparseTensor\).*to_edge_index'):
        LToSConv(5, 3)(X, SparseTensor())


@pytest.mark.filterwarnings('ignore:Sparse')  # PyTorch's own
def test_a_sparse_adjacency_is_no_edge_index():
    with pytest.raises(ValueError, match=r'must be a \(2, E\) tensor of node numbers'):
        DGNConv(5, 8, heads=2)(torch.randn(2, 5), torch.eye(2).to_sparse())
    data = Data(x=X, edge_index=EDGES)
    adj_t = ToSparseTensor(layout=torch.sparse_coo)(data.clone()).adj_t
    with pytest.raises(ValueError, match=r'adj_t, whose rows receive, it is .*to_edge_index\(adj_t\)\[0\].flip\(0\)'):
        LToSConv(5, 3)(X, adj_t)
    conv = LToSConv(5, 3)
    assert_close(conv(X, to_edge_index(adj_t)[0].flip(0)), conv(X, EDGES))


def test_edge_features_are_not_dropped_in_silence():
    with pytest.raises(ValueError, match=r"'edge_attr' was given to a layer without edge features"):
        IntentionConv(5, 8)(X, EDGES, torch.randn(3, 2))


def test_pairs_of_pair_values_are_edges():
    with pytest.raises(ValueError, match=r"'pairs' must be a \(2, P\) tensor"):
        EdgeQHead(5, 3)(X, EDGES.t())


def test_a_trunk_with_sharing_weights_needs_its_size():
    with pytest.raises(ValueError, match=r"'in_channels' must be the size of a node feature in a trunk with sharing"):
        DGNTrunk(-1, sharing=True)


def test_a_layer_is_no_class_of_layers():
    with pytest.raises(ValueError, match=r"'conv' must be a class or a name, .* \(got a layer, GATConv.*Give GATConv"):
        DGN(5, 3, conv=GATConv(128, 16, heads=8))


@pytest.mark.parametrize('name', ['GatedGraphConv', 'APPNP', 'GINConv', 'LabelPropagation'])
def test_a_layer_is_built_from_sizes(name):
    with pytest.raises(ValueError, match=rf"'conv' must be built from \(in_channels, out_channels\): {name} is built"):
        DGN(5, 3, conv=name)


def test_constant_weights_have_the_precision_of_the_share():
    sharing = constant_sharing(EDGES, 4, torch.full((4,), 0.1, dtype=torch.float64))
    assert sharing.given.dtype == sharing.kept.dtype == torch.float64
