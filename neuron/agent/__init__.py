"""The neuron daemon: turns a GPU host with stock inference engines into a host that loads and swaps models on demand.

Here: engine processes and their supervision, devices, placement on this host, the neuron API, the forwarder in front of
engines. Not here: anything about aliases, fleets or clients, which is the gateway's. Read `serve.py` first, then the
package `supervision`.
"""
