"""CityFlow's files: road networks and flows, read and checked; routes; and a generator of grids with demand."""
