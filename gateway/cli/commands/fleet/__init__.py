"""The commands about neurons and what runs on them: drains, loads, running requests, and the file of the neurons.

Each asks the admin API of a gateway (`admin_command.py`); none reads a file of the gateway. Does not belong here:
`cortex neuron`, which runs on a GPU host and needs no gateway.
"""
