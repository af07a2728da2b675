"""TLS on our own ports: the certificate, and the stream that a connection reads and writes.

Belongs here: `certificate_files.py` (reads and checks the files), `certificate_store.py` (has the certificate in force,
and reloads it when the files change), `tls_stream.py` (TLS over one TCP connection), `handshake.py` (failures).
`http/server.py` accepts connections, and `http/server_connection.py` has the handshake's deadline.

Does not belong here: which certificates of neurons the gateway trusts (`http/tls.py`).
"""
