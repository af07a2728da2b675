"""Files in general: atomic replacement, the edit lock, the state directory, and files that are read when they change.

Read `atomic_write.py` first: what writes blocks, and async callers use a thread. `file_reload.py` is async; it reads an
operator's file whenever it changes (`file_watch`, `config_file`, `deadline_thread`).

Belongs here: how a file or directory is written or read safely, whatever is in it. Does not belong here: the formats of
particular files. The audit log, the file history and the rollout state are in `gateway/aliases/files`.
"""
