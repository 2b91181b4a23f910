"""One libtorrent session in its own process: reads commands from stdin and writes events to stdout,
one JSON object per line.

The benchmark that starts it passes the settings.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import libtorrent as lt

REPORT_INTERVAL = 0.1
"""Seconds between two progress lines."""


def say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    config = json.loads(sys.argv[1])
    settings = dict(lt.default_settings())
    known = {name: value for name, value in config["settings"].items() if name in settings}
    for name, text in config["overrides"].items():
        kind = type(settings[name])
        known[name] = text in ("1", "true", "True") if kind is bool else kind(text)
    session = lt.session({**known, "listen_interfaces": config["listen"],
                          "alert_mask": lt.alert.category_t.status_notification | lt.alert.category_t.error_notification})
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(config["torrent"])
    params.save_path = config["folder"]
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused | lt.torrent_flags.apply_ip_filter)
    if config["seed"]:
        params.flags |= lt.torrent_flags.seed_mode
        if config["super"]:
            params.flags |= lt.torrent_flags.super_seeding
    torrent = session.add_torrent(params)
    say(event="ready")
    threading.Thread(target=listen, args=(torrent,), daemon=True).start()
    follow(session, torrent, config["seed"])


def listen(torrent: lt.torrent_handle) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if "begin" in order:
            for address, port in order["begin"]:
                torrent.connect_peer((address, port))
        elif "report" in order:
            status = torrent.status()
            say(event="report", payload_sent=status.total_payload_upload, payload_received=status.total_payload_download,
                wasted=status.total_redundant_bytes + status.total_failed_bytes)
    os._exit(0)  # The benchmark has closed the pipe.


def follow(session: lt.session, torrent: lt.torrent_handle, seed: bool) -> None:
    piece = torrent.torrent_file().piece_length()
    size = torrent.torrent_file().total_size()
    reported = -1
    due = time.monotonic()
    while True:
        session.wait_for_alert(20)
        for alert in session.pop_alerts():
            if isinstance(alert, lt.torrent_finished_alert) and not seed:
                say(event="progress", t=time.monotonic(), bytes=size)
                say(event="done", t=time.monotonic())
            elif isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert, lt.listen_failed_alert)):
                say(event="failed", message=alert.message())
        if not seed and time.monotonic() >= due:
            due = time.monotonic() + REPORT_INTERVAL
            done = min(size, torrent.status(0).num_pieces * piece)
            if done != reported:
                reported = done
                say(event="progress", t=time.monotonic(), bytes=done)


if __name__ == "__main__":
    main()
