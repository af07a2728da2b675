"""What one task does for all connections, each with an epoll descriptor of its own. Linux; elsewhere neither runs.

    pump        carries the streams that are being relayed from neurons to clients
    hang_ups    sees clients leave

Read `pump` first. Waiting for a single descriptor is Trio's; reading and writing one is `gateway.http.sockets`.
"""
