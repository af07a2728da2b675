"""What the connections of one server share: limits, who waits for what, and the timer for those that wait too long."""
