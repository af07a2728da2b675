"""Engine processes: start them, follow their output, end all of their descendants, find those that a crash left over.

Here: operating system matters. Not here: what an engine is, and when one starts. Read `engine_process.py` first, then
`launcher.py`, which runs between the neuron and each engine.
"""
