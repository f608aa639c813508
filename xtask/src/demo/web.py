"""The demo's web server: says who it thinks is asking. Usage: web.py PORT..."""

import http.server
import socket
import sys
import threading


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        client = self.client_address[0].removeprefix("::ffff:")
        body = f"Hello from home! You are {client}.\n".encode()
        if self.path == "/big":
            body = bytes(10_000_000)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Quiet: the demo shows what the client got."""


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


servers = [Server(("::", int(port)), Page) for port in sys.argv[1:]]
print("ready", flush=True)
threads = [threading.Thread(target=server.serve_forever) for server in servers]
for thread in threads:
    thread.start()
