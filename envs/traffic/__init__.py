"""Signal control on CityFlow road networks."""

from ltos_pyg.envs.traffic.engine import BACKENDS, TrafficEngine, TripTable, VehicleTable, make_engine
from ltos_pyg.envs.traffic.env import TrafficEnv
from ltos_pyg.envs.traffic.flow import Flow, load_flow
from ltos_pyg.envs.traffic.network import RoadNetwork, load_network
from ltos_pyg.envs.traffic.tasks import TrafficConfig, load_tasks, make_traffic

__all__ = [
    'BACKENDS',
    'Flow',
    'RoadNetwork',
    'TrafficConfig',
    'TrafficEngine',
    'TrafficEnv',
    'TripTable',
    'VehicleTable',
    'load_flow',
    'load_network',
    'load_tasks',
    'make_engine',
    'make_traffic',
]
