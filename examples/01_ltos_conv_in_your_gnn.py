"""LToSConv unchanged in a plain PyTorch Geometric model, beside GCNConv and GATConv, on graphs that PyG generates.

You will see the test accuracy of three networks that differ only in their layer, on the same split of two graphs:

- *roles*: houses attached to a random graph, every node with the same feature 1; classify roof, walls, ground floor and
  the rest. Attention averages over the neighbours, and the average of ones is one: GATConv cannot distinguish nodes.
  LToSConv moves values instead of averaging, so the sum that arrives depends on the neighbours' degrees.
- *communities*: four groups that mostly link among themselves, with noisy features. Averaging is right here, and the
  layers that average win.

Then the learned weights: the share of its value that a node of each role keeps.

    python examples/01_ltos_conv_in_your_gnn.py --epochs 200
"""

import argparse

import torch
from torch import Tensor
from torch.nn import Linear, Module, ReLU
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.datasets import ExplainerDataset
from torch_geometric.datasets.graph_generator import BAGraph
from torch_geometric.nn import GATConv, GCNConv, Sequential
from torch_geometric.utils import stochastic_blockmodel_graph

from ltos_pyg.nn import LToSConv

HIDDEN = 32
ROLES = ('none', 'wall', 'ground', 'roof')
LAYERS = {
    'LToSConv': lambda size: LToSConv(size, HIDDEN, heads=4),
    'GCNConv': lambda size: GCNConv(size, HIDDEN),
    'GATConv': lambda size: GATConv(size, HIDDEN // 4, heads=4),
}


def roles() -> Data:
    graph = ExplainerDataset(BAGraph(num_nodes=300, num_edges=5), 'house', num_motifs=80)[0]
    return Data(x=torch.ones(graph.num_nodes, 1), edge_index=graph.edge_index, y=graph.y)


def communities() -> Data:
    y = torch.arange(4).repeat_interleave(150)
    chance = torch.full((4, 4), 0.01) + 0.05 * torch.eye(4)
    x = torch.eye(4)[y] + 2 * torch.randn(600, 4)
    return Data(x=x, edge_index=stochastic_blockmodel_graph([150] * 4, chance), y=y)


def network(layer: str, num_features: int, num_classes: int) -> Module:
    modules, size = [], num_features
    for _ in range(3):
        modules += [(LAYERS[layer](size), 'x, edge_index -> x'), ReLU(inplace=True)]
        size = HIDDEN
    return Sequential('x, edge_index', [*modules, (Linear(HIDDEN, num_classes), 'x -> x')])


@torch.enable_grad()
def train(model: Module, graph: Data, known: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=5e-4)
    for _ in range(epochs):
        optimizer.zero_grad()
        cross_entropy(model(graph.x, graph.edge_index)[known], graph.y[known]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: Module, graph: Data, asked: Tensor) -> float:
    guess = model(graph.x, graph.edge_index).argmax(-1)
    return float((guess == graph.y)[asked].float().mean())


def compare(name: str, graph: Data, epochs: int) -> Module:
    """Prints one row of the table; returns the network of LToSConv."""
    order = torch.randperm(graph.num_nodes)
    known, asked = order.chunk(2)
    models = {layer: network(layer, graph.num_features, int(graph.y.max()) + 1) for layer in LAYERS}
    for model in models.values():
        train(model, graph, known, epochs)
    scores = [accuracy(model, graph, asked) for model in models.values()]
    chance = float(graph.y[asked].bincount().max()) / len(asked)
    print(f'{name:<13}' + ''.join(f'{score:10.3f}' for score in [*scores, chance]))
    return models['LToSConv']


@torch.no_grad()
def main(epochs: int, seed: int) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    print('test accuracy' + ''.join(f'{name:>10}' for name in [*LAYERS, 'guessing']))
    graph = roles()
    model = compare('roles', graph, epochs)
    compare('communities', communities(), epochs)
    kept = model[0].share(graph.x, graph.edge_index).kept.mean(-1)
    means = [f'{role} {kept[graph.y == i].mean():.2f}' for i, role in enumerate(ROLES)]
    print('kept in the first layer of roles: ' + ', '.join(means))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--epochs', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    main(**vars(parser.parse_args()))
