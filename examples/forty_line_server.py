"""A server that averages, of the standard library and veilsum alone. Try it on one machine.

    POST /updates/SITE?weight=100   bytes of an EncodedUpdate
    GET  /mean                      bytes of one

It binds loopback and knows nobody: put TLS and authentication before it, or use `veilsum
coordinator`, which has them.
"""

import tempfile
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

import veilsum

LAYOUT = veilsum.ModelLayout.from_arrays({"w": np.zeros((64, 8), np.float32)})
MOST_BYTES = 8 * LAYOUT.size + 4096  # no update of this layout needs more


class Handler(BaseHTTPRequestHandler):
    timeout = 30  # seconds that a silent connection may hold a thread

    def do_POST(self):
        try:
            size = int(self.headers["Content-Length"])
            if not 0 < size <= MOST_BYTES:
                return self.send_error(413)
            address = urllib.parse.urlsplit(self.path)
            site = address.path.removeprefix("/updates/")
            weight = int(urllib.parse.parse_qs(address.query)["weight"][0])
            self.server.aggregator.add(self.rfile.read(size), weight=weight, site=site)
        except (veilsum.VeilsumError, KeyError, TypeError, ValueError) as error:
            return self.send_error(400, explain=str(error))  # this site's update, and no other
        return self.answer(b"")

    def do_GET(self):
        if not self.server.aggregator.sites:
            return self.send_error(404)
        mean = self.server.aggregator.finish().arrays
        return self.answer(veilsum.encode(mean, codec="f32", layout=LAYOUT).to_bytes())

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    with tempfile.TemporaryDirectory() as spool:  # updates wait on disk, not in memory
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.aggregator = veilsum.Aggregator(LAYOUT, spool=spool)
        print(f"serving on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
