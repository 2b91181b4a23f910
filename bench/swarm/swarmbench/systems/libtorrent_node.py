"""One libtorrent session in a process of its own, told what to do on stdin and telling what happens on stdout, a JSON object a line.

Its settings are the best found for a crowd on one switch; what was tried is in the README. No rate limit, no discovery, TCP only.
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

SETTINGS = {
    # Nothing but the peers it is told of.
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False,
    # No encryption: a peer of the same swarm on a LAN.
    "in_enc_policy": 2, "out_enc_policy": 2,
    # Everyone may have a slot, at once, and connecting is not rationed.
    "unchoke_slots_limit": -1, "connection_speed": 1000, "torrent_connect_boost": 255, "connections_limit": 1000,
    "smooth_connects": False, "unchoke_interval": 1, "optimistic_unchoke_interval": 2,
    "listen_queue_size": 200, "min_reconnect_time": 1, "peer_turnover": 0,
    # Enough in flight for the link, and no more disk queue than that needs.
    "max_out_request_queue": 32, "max_allowed_in_request_queue": 4000, "request_queue_time": 1,
    "send_buffer_watermark": 1024 * 1024, "send_buffer_watermark_factor": 150, "send_buffer_low_watermark": 64 * 1024,
    "max_queued_disk_bytes": 64 * 1024 * 1024,
    # Rarest first from the first piece on, end game without waiting.
    "initial_picker_threshold": 0, "strict_end_game_mode": True, "piece_extent_affinity": False, "whole_pieces_threshold": 1,
    "prioritize_partial_pieces": False, "predictive_piece_announce": 0,
    "rate_limit_ip_overhead": False, "mixed_mode_algorithm": 0,
    "aio_threads": 2, "hashing_threads": 1, "close_redundant_connections": True,
}


def say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    config = json.loads(sys.argv[1])
    settings = dict(lt.default_settings())
    known = {name: value for name, value in SETTINGS.items() if name in settings}
    for name, text in config["settings"].items():
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
    os._exit(0)  # Nobody is left to talk to.


def follow(session: lt.session, torrent: lt.torrent_handle, seed: bool) -> None:
    piece = torrent.torrent_file().piece_length()
    size = torrent.torrent_file().total_size()
    told = -1
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
            if done != told:
                told = done
                say(event="progress", t=time.monotonic(), bytes=done)


if __name__ == "__main__":
    main()
