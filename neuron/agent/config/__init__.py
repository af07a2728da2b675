"""`neuron.toml`: what an operator can set, as frozen dataclasses, and how the file is read. Read `settings.py` first.

Here: keys, their types and the rules between them. Not here: which programs, GPUs and files this host has.
"""
