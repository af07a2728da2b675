"""The catalogue in force, and every change of what an alias stands for.

Read `catalogue_store.py` first: it holds the catalogue in force, and all changes go through it.

    file_watch      notices that models.toml changed
    catalogue_store accepts or rejects the file, and notifies subscribers
    warm_swap       moves an alias once its new target is loaded and has answered (warm_up, probe)
    rollout         moves an alias in steps and rolls it back (rollout_guards, guard_tests, e_process)
    plan            forecasts what a change would load and evict
    auditor         writes every change into the audit log

Does not belong here: what `models.toml` may contain (`catalogue`), choosing a replica or loading a model (`fleet`), and
sending a client's request (`proxy`, which knows aliases only by the catalogue in force).
"""
