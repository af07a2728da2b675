"""Files that the gateway and the command line write: atomic replacement, the edit lock, and the state directory.

Read `atomic_write.py` first. Everything here blocks; async callers use a thread.

Belongs here: how a file or directory is written safely, whatever is in it. Does not belong here: the formats of
particular files. The audit log, the file history and the rollout state are in `gateway/aliases/files`.
"""
