"""What this host computes on: GPUs or the CPU, and who has how much of their memory.

Here: readings, claims on memory and the choice of devices. Not here: models and engines. Read `devices.py` first.
"""
