"""Who may wait when the queues are full: the room of `limits.queue` is shared by keys, as the slots are. No I/O.

A full queue refuses a request of the key that has the most waiting requests for its weight: the new request if that is
its own key, else the newest one of that key. So one key cannot fill the queue and have the requests of others refused.
While both priorities wait, `batch` keeps one place in `BATCH_TURN`, and no more.
"""

from __future__ import annotations

from gateway.fleet.routing.fair_queue import BATCH_TURN, QueuedKey

__all__ = ["QueueRoom"]


class QueueRoom:
    """How many requests of each key wait for a slot, over all models.

    Args:
        limit: How many may wait.

    Attributes:
        limit: The same.
        waiting: How many wait.
    """

    __slots__ = ("_backlogs", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting = 0
        self._backlogs: dict[str, _Backlog] = {}

    def add(self, key: QueuedKey) -> None:
        """One more request of the key waits."""
        self.waiting += 1
        backlog = self._backlogs.get(key.id)
        if backlog is None:
            backlog = self._backlogs[key.id] = _Backlog(key)
        backlog.count += 1

    def remove(self, key: QueuedKey) -> None:
        """One less."""
        self.waiting -= 1
        backlog = self._backlogs[key.id]
        backlog.count -= 1
        if backlog.count == 0:
            del self._backlogs[key.id]

    def longest_beside(self, key: QueuedKey) -> str | None:
        """The id of the key that has to give way to a new request of `key`; None if that request is to be refused."""
        is_batch = key.priority == "batch"
        batch = sum(each.count for each in self._backlogs.values() if each.is_batch) + is_batch
        from_batch = batch > self.limit / BATCH_TURN
        own = self._backlogs.get(key.id)
        longest_id = None
        # Of its own level a new request counts too. A request of the other level has no claim here.
        longest = ((0 if own is None else own.count) + 1) / key.weight if is_batch == from_batch else 0.0
        for key_id, backlog in self._backlogs.items():
            if backlog.is_batch == from_batch and key_id != key.id and backlog.count / backlog.key.weight > longest:
                longest_id, longest = key_id, backlog.count / backlog.key.weight
        return longest_id

    def share(self, key: QueuedKey) -> float:
        """The share of the slots that a key gets beside those that wait now: above 0, at most 1."""
        others = [backlog for key_id, backlog in self._backlogs.items() if key_id != key.id]
        is_batch = key.priority == "batch"
        share = key.weight / (key.weight + sum(each.key.weight for each in others if each.is_batch == is_batch))
        if any(each.is_batch != is_batch for each in others):
            share *= 1 / BATCH_TURN if is_batch else 1 - 1 / BATCH_TURN
        return share


class _Backlog:
    __slots__ = ("count", "is_batch", "key")

    def __init__(self, key: QueuedKey) -> None:
        self.key = key
        self.is_batch = key.priority == "batch"
        self.count = 0
