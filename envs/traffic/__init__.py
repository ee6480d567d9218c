"""Signal control on CityFlow road networks."""

from .config import TrafficConfig
from .engine import BACKENDS, TrafficEngine, TripTable, VehicleTable, make_engine
from .env import TrafficEnv
from .files.flow import Flow, load_flow
from .files.network import RoadNetwork, load_network
from .tasks import load_tasks, make_traffic

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
