"""Tests that need no root: `python3 -m unittest discover -s tests -t .` in this folder."""

import random
import unittest

from swarmbench import report  # First: it adds the folder of `common` to the path.
from swarmbench.scenario import SCENARIOS, SETS, Link, Scenario, Sink, Source, crowd
from swarmbench.systems.corrupting_proxy import BitTorrent, Http2
from common.units import MIB, seconds_for


class Bounds(unittest.TestCase):
    def test_equal_links_take_what_one_link_takes_whatever_the_crowd(self):
        for peers in (1, 8, 1000):
            self.assertAlmostEqual(crowd(peers, 64).bound(), 64 * MIB * 8 / 100e6)

    def test_a_crowd_that_cannot_send_waits_for_the_seed(self):
        quiet = Scenario("quiet", MIB, (Source(Link.even(100)),), (Sink(Link(0, 100e6)),) * 8)
        self.assertAlmostEqual(quiet.bound(), 8 * seconds_for(MIB, 100e6))

    def test_a_folder_is_as_large_as_its_files_and_has_no_events(self):
        for scenario in SCENARIOS.values():
            if scenario.files:
                self.assertEqual(scenario.size, sum(scenario.files))
                self.assertEqual(scenario.events, ())
        self.assertAlmostEqual(SCENARIOS["folder-8x64"].bound(), SCENARIOS["crowd-8x64"].bound())

    def test_a_peer_that_is_not_counted_does_not_set_the_bound(self):
        self.assertAlmostEqual(SCENARIOS["one-slow-peer"].bound(), SCENARIOS["crowd-8x64"].bound())

    def test_late_comers_are_measured_from_their_arrival(self):
        self.assertAlmostEqual(SCENARIOS["arrivals"].bound(), seconds_for(64 * MIB, 100e6))

    def test_sets_and_comparisons_name_scenarios(self):
        for names in SETS.values():
            self.assertLessEqual(set(names), set(SCENARIOS))
        for scenario in SCENARIOS.values():
            self.assertTrue(scenario.compare_with is None or scenario.compare_with in SCENARIOS)


def run(system: str, number: int, seconds: list[float]) -> dict:
    return {
        "scenario": "crowd-8x64", "name": system, "round": number, "size": MIB, "bound": 1.0, "sources_sent_payload": MIB,
        "frames": {"s0": {"sent": 2 * MIB, "received": 0}, "p0": {"sent": 0, "received": 0}}, "others_cpu": 0.0,
        "sinks": [{"counted": True, "seconds": s, "curve": [(s, MIB)]} for s in seconds],
        "processes": [{"role": "sink", "cpu": 1.0, "peak_anonymous": MIB, "peak_resident": MIB}],
    }


class Reports(unittest.TestCase):
    RUNS = [run("a", 0, [1.0, 2.0, 3.0]), run("b", 0, [4.0, 5.0, 6.0]), run("a", 1, [2.0, 2.0, 2.0]), run("b", 1, [1.0, 1.0, 8.0])]

    def test_medians_over_runs(self):
        row, _ = report.rows(self.RUNS)
        self.assertEqual((row.median_peer, row.slowest, row.seed_payload, row.seed_frames), (2.0, 2.5, 1.0, 2.0))

    def test_ratios_are_of_the_same_round(self):
        self.assertEqual(report.pair_ratios(self.RUNS, "a", "b"), {"crowd-8x64": [2.0, 4.0]})

    def test_a_failed_run_is_told_and_not_counted(self):
        failed = {"scenario": "crowd-8x64", "name": "a", "round": 2, "error": "it fell over"}
        table = report.table([*self.RUNS, failed], {}, "a", "b")
        self.assertIn("it fell over", table)
        self.assertIn("| crowd-8x64 | a | 2 |", table)


def split(data: bytes, dice: random.Random) -> list[bytes]:
    parts, at = [], 0
    while at < len(data):
        end = at + dice.randrange(1, 50_000)
        parts.append(data[at:end])
        at = end
    return parts


def differences(before: bytes, after: bytes) -> list[int]:
    """The positions at which two byte strings differ; fast if they are almost equal."""
    block = 4096
    starts = (at for at in range(0, len(before), block) if before[at:at + block] != after[at:at + block])
    return [i for at in starts for i in range(at, min(at + block, len(before))) if before[i] != after[i]]


class Liars(unittest.TestCase):
    def test_http2_flips_a_byte_of_content_in_about_the_share_of_pieces(self):
        frame = (16_384).to_bytes(3, "big") + bytes([0, 0, 0, 0, 0, 1]) + bytes(16_384)
        small = (10).to_bytes(3, "big") + bytes([0, 0, 0, 0, 0, 1]) + bytes(10)
        data = (frame + small) * 400
        liar = Http2(0.05, 16_384, random.Random(1))
        out = b"".join(liar.feed(part) for part in split(data, random.Random(2)))
        self.assertEqual(len(out), len(data))
        flipped = differences(data, out)
        self.assertTrue(5 < len(flipped) < 45, len(flipped))

    def test_http2_leaves_everything_else_alone(self):
        headers = (9_000).to_bytes(3, "big") + bytes([1, 4, 0, 0, 0, 1]) + bytes(9_000)
        small = (10).to_bytes(3, "big") + bytes([0, 0, 0, 0, 0, 1]) + bytes(10)
        liar = Http2(1.0, 1, random.Random(1))
        self.assertEqual(liar.feed((headers + small) * 50), (headers + small) * 50)

    def test_bittorrent_corrupts_the_same_pieces_each_time(self):
        def message(piece: int, begin: int) -> bytes:
            body = bytes([7]) + piece.to_bytes(4, "big") + begin.to_bytes(4, "big") + bytes(16_384)
            return len(body).to_bytes(4, "big") + body

        data = bytes(68) + b"".join(message(piece, begin) for piece in range(400) for begin in (0, 16_384))
        liar = BitTorrent(0.05, 0, random.Random(3))
        out = b"".join(liar.feed(part) for part in split(data, random.Random(4)))
        flipped = differences(data, out)
        self.assertEqual(len(out), len(data))
        self.assertTrue(5 < len(flipped) < 45, len(flipped))


if __name__ == "__main__":
    unittest.main()
