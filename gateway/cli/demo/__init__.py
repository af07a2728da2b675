"""What `cortex demo` runs: its files (`files.py`), its key (`operator_key.py`), and a gateway with simulated neurons in
one nursery (`server.py`).

Does not belong here: the options of the command, which are in `gateway.cli.commands.demo`, and the simulated neurons,
which are `neuron.simulated`. Read `server.py` first.
"""
