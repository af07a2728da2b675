"""What can be served and under which names. Sync and pure: no trio, no HTTP, never imports `gateway`."""
