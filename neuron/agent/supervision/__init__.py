"""Loading, watching and unloading models on this host: one supervisor per model, one nursery per engine process.

Here: states and their transitions, restarts, device memory, ports, what is remembered across starts of the neuron. Not
here: HTTP (`neuron.agent.api`) and how a process is started (`neuron.agent.process`). Read `model_supervisor.py` first,
then `host.py`, which has all models.
"""
