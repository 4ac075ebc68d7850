"""A server without a model, for `benchmarks.serving`: every request is answered with SIZE bytes.

`python -m benchmarks.serving_echo SIZE` uses the gRPC and HTTP libraries of the embedded server, as
many threads, and decodes nothing: what is left of a server without its work. It prints its two
ports when it is ready.
"""

import concurrent.futures
import os
import sys

import grpc
import uvicorn

_THREADS = 4 * (os.cpu_count() or 1)


def run(size):
    body = bytes(size)
    grpc_server = grpc.server(concurrent.futures.ThreadPoolExecutor(_THREADS))
    grpc_server.add_generic_rpc_handlers([_Echo(body)])
    grpc_port = grpc_server.add_insecure_port("127.0.0.1:0")
    grpc_server.start()

    async def application(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(
        application, port=0, http="httptools", loop="uvloop", lifespan="off", log_level="error"
    )
    listener = config.bind_socket()
    print(f"gRPC on :{grpc_port}, HTTP on :{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run([listener])


class _Echo:
    """A gRPC handler of every method."""

    def __init__(self, body):
        self._handler = grpc.unary_unary_rpc_method_handler(lambda request, context: body)

    def service(self, details):
        return self._handler


if __name__ == "__main__":
    run(int(sys.argv[1]))
