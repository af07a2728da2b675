"""Plain TCP connections: their stream, and where those to neurons go. What reads and writes them is `http/sockets`."""
