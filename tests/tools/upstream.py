"""Something that answers whatever it is asked, over TLS, and keeps what reached it."""

from __future__ import annotations

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from simulations.devices.certificates import Certificates


class Reached(NamedTuple):
    """A request, as it was written."""

    method: str
    path: str
    keys: list[str]
    size: int


class Upstream:
    """An open server on loopback."""

    def __init__(self, certificates: Certificates) -> None:
        self.seen: list[Reached] = []
        self.says: tuple[bytes, float] | None = None  # instead of an answer: bytes, and how slowly
        upstream, seen = self, self.seen

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                size = int(self.headers.get("content-length", 0))
                body = self.rfile.read(size)
                if self.headers.get("transfer-encoding") == "chunked":
                    while length := int(self.rfile.readline() or b"0", 16):
                        body += self.rfile.read(length + 2)[:length]
                    self.rfile.readline()
                keys = self.headers.get_all("flwr-public-key") or []
                seen.append(Reached(self.command, self.path, keys, len(body)))
                if upstream.says is not None:
                    self.close_connection = True
                    for byte in upstream.says[0]:
                        self.wfile.write(bytes([byte]))
                        time.sleep(upstream.says[1])
                    return
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_TRACE = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                """Who goes away has gone away."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server, certificates.server_key)
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
