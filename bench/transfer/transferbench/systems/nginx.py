"""nginx servers with the payload, as sources for the HTTP clients."""

from __future__ import annotations

from ..bench import free_port, wait_for_port
from ..transfer import Transfer
from .programs import find

CONFIG = """
daemon off;
master_process off;
user root;
pid {folder}/nginx-{port}.pid;
error_log {folder}/nginx-{port}.error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {folder}/nginx-{port}.body;
    proxy_temp_path {folder}/nginx-{port}.proxy;
    fastcgi_temp_path {folder}/nginx-{port}.fastcgi;
    uwsgi_temp_path {folder}/nginx-{port}.uwsgi;
    scgi_temp_path {folder}/nginx-{port}.scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def serve(transfer: Transfer, count: int) -> list[str]:
    """Starts `count` servers, one process each; returns the URL of the payload on each."""
    ports = []
    for _ in range(count):
        port = free_port()
        config = transfer.folder / f"nginx-{port}.conf"
        config.write_text(CONFIG.format(folder=transfer.folder, port=port, root=transfer.payload.path.parent))
        transfer.spawn("source", [find("nginx"), "-p", transfer.folder, "-c", config])
        ports.append(port)
    for port in ports:
        wait_for_port(port)
    return [f"http://127.0.0.1:{transfer.reach(port)}/{transfer.payload.path.name}" for port in ports]
