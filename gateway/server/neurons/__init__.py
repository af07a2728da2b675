"""The file that `neurons_config` names: read when it changes, changed over the admin API.

`neuron_store.py` has the neurons in force, `neuron_records.py` writes their changes to the audit log, `neuron_edits.py`
changes the file, `neuron_routes.py` are the routes.

Does not belong here: what a `[[neurons]]` table may contain (`gateway/config/neurons_file.py`), and how the fleet takes
a neuron in or lets it go (`gateway/fleet/control/membership.py`).
"""
