"""The daemon on a GPU host. `simulated` serves its API without a GPU, for the demo, the bench and tests.

Here: what runs on a GPU host. Not here: the gateway, of which this package imports nothing but `gateway.http`. Read
`simulated/neuron.py` first.
"""
