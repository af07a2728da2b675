"""The catalogue in force, and every change of what an alias stands for.

Read `catalogue_store.py` first: it holds the catalogue in force, and all changes go through it.

    catalogue_store  accepts or rejects the file, moves aliases, notifies subscribers
    warm_swap        moves an alias once its new target is loaded and has answered (warm_up, probe)
    rollout          moves an alias in steps, or rolls it back (rollout_guards, guard_tests, target_statistics,
                     e_process)
    plan             forecasts what a change would load and evict (planned_fleet)
    auditor          records every change in the audit log (audit_queue)

Does not belong here: what `models.toml` may contain (`catalogue`), choosing a replica or loading a model (`fleet`), and
sending a client's request (`proxy`, which knows aliases only by the catalogue in force).
"""
