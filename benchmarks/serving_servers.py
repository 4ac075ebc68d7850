"""The servers of `benchmarks.serving`, each a process of its own: `python -m` this module.

`kzoo JSON` is the embedded server with these options; `echo SIZE` answers every request with SIZE
bytes, on the same gRPC and HTTP libraries: what is left of a server without any model. Both print
their two ports when they are ready.
"""

import concurrent.futures
import json
import os
import sys
import threading

_THREADS = 4 * (os.cpu_count() or 1)


def run_kzoo(options):
    from kzoo.serving.server import ModelServer

    server = ModelServer(grpc_port=0, rest_port=0, **json.loads(options)).start()
    print(server.grpc_port, server.rest_port, flush=True)
    server.wait()


def run_echo(size):
    import grpc
    import uvicorn

    body = bytes(int(size))
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
    print(grpc_port, listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run([listener])


class _Echo:
    """A gRPC handler of every method that decodes nothing."""

    def __init__(self, body):
        import grpc

        self._handler = grpc.unary_unary_rpc_method_handler(lambda request, context: body)

    def service(self, details):
        return self._handler


if __name__ == "__main__":
    # The server goes when the benchmark closes the pipe, however it ends.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    {"kzoo": run_kzoo, "echo": run_echo}[sys.argv[1]](sys.argv[2])
