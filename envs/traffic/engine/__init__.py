"""Traffic engines: the native one, equal to CityFlow to the bit, and CityFlow itself, behind one interface."""

from .base import BACKENDS, Backend, Shown, TrafficEngine, TripTable, VehicleTable, make_engine

__all__ = ['BACKENDS', 'Backend', 'Shown', 'TrafficEngine', 'TripTable', 'VehicleTable', 'make_engine']
