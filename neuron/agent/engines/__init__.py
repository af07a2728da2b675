"""What differs between inference engines: commands, paths, reading their load, sleep, and why a start failed.

Here: facts about engines and how to ask them. Not here: processes (`neuron.agent.process`), and the decisions when to
start or stop one. Read `kinds.py` first.
"""
