"""The files about one `models.toml`: its edits, audit log, earlier versions and rollouts. Blocking.

Read `catalogue_files.py` first: it names every file. `audit_log.py`, `file_history.py` and `rollout_state.py` each own
one file format, `toml_edit.py` and `locked_edit.py` change `models.toml`, and `versions.py` answers what a rollback
goes back to. The command line and the gateway use the same functions; the gateway calls them in threads.

Does not belong here: when to change or record something (`gateway/aliases`), and atomic writes and locks
(`gateway/files`).
"""
