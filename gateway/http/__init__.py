"""HTTP/1.1 on both sides of the gateway, over Trio streams, and SSE framing. Knows no models, aliases or routing.

Inbound, from clients:
    server              listeners, connection limit, drain
    server_connection   one client's connection: its requests in order, deadlines, writes
    server_exchange     one request and its response as ASGI
    request_parser      bytes to requests (llhttp)
    server_state/       what a server's connections share: limits, who waits for what, and the timer for them
    server_tls/         the certificate, and TLS over one connection
    hypercorn_server    the alternative for HTTP/2
    fd_limit            how many connections the process's file descriptors allow

Outbound, to neurons:
    pool                idle connections, and one request on one of them (`UpstreamPool.exchange`)
    connection          one connection: writes a request, reads its response
    response_parser     bytes to a response (llhttp)
    error_body          the text of an error response, in every form that engines write
    streamed_body       a request body that is sent while it arrives
    redirect            which redirects are followed, and with what request
    phase_deadlines     the deadline of each phase of a request
    tls                 which certificates to trust

Both: `epoll` (one task for all connections: the pump that carries streams, and what sees clients leave), `tcp` (a plain
connection, and opening one), `sockets` (reads, writes and closes a stream), `sse` (bytes to events), `content_coding`
(decodes gzip, deflate and zstd).

Read `server` first for inbound, `pool` for outbound. Control calls to neurons use httpx (`gateway.fleet.control`), not
this package. Why the gateway has its own: docs/decisions/0003-own-http-front.md and 0004-own-upstream-client.md.
"""
