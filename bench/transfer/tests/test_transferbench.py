"""Tests that run no program: `python3 -m unittest discover -s tests -t .` in this folder."""

import argparse
import tempfile
import unittest
from pathlib import Path

from transferbench import bench, report, samples  # First: it adds the folder of `common` to the path.
from common.measure import Usage, _kilobytes
from common.units import MIB
from transferbench.cases import CASES
from transferbench.options import pairs, parse, size
from transferbench.slow_readers import request, varint
from transferbench.systems import SYSTEMS
from transferbench.systems.libtorrent import piece_size
from transferbench.transfer import Link, Shape, rates, fraction_of_link, values


def run(system: str, number: int, rate: float, **more) -> dict:
    return {"case": "4-to-1", "variant": "2 GiB", "note": "four give", "name": system, "round": number, "compare": ["MiB/s"], "plot": "bars",
            "values": {"MiB/s": rate}, "series": {}} | more


class Reports(unittest.TestCase):
    RUNS = [run("potluck", 0, 400), run("libtorrent", 0, 200), run("potluck", 1, 300), run("libtorrent", 1, 300)]

    def test_medians_over_rounds(self):
        self.assertEqual(report.medians(self.RUNS)["4-to-1", "2 GiB", "potluck"], {"MiB/s": 350})

    def test_ratios_are_of_the_same_round(self):
        self.assertEqual(report.pair_ratios(self.RUNS, "MiB/s", "potluck", "libtorrent"), {"2 GiB": [2.0, 1.0]})

    def test_a_round_that_only_one_finished_has_no_ratio(self):
        runs = [*self.RUNS[:3], {**run("libtorrent", 1, 0), "error": "it fell over"}]
        self.assertEqual(report.pair_ratios(runs, "MiB/s", "potluck", "libtorrent"), {"2 GiB": [2.0]})
        self.assertIn("it fell over", report.table(runs))

    def test_the_table_sets_potluck_against_all_and_builds_of_it_against_later_ones(self):
        table = report.table([*self.RUNS, run("potluck-old", 0, 100)])
        self.assertIn("| 2 GiB | potluck | 2 | 350 |", table)
        self.assertIn("| 2 GiB | potluck / libtorrent | 1.50 (2.00, 1.00) |", table)
        self.assertIn("| 2 GiB | potluck / potluck-old | 4.00 (4.00) |", table)
        self.assertNotIn("potluck-old / potluck |", table)

    def test_numbers_have_three_figures(self):
        self.assertEqual([report.number(n) for n in (0, 0.1234, 1.234, 12.34, 1234.5)], ["0", "0.123", "1.23", "12.3", "1,234"])


class Transfers(unittest.TestCase):
    def test_the_bill_is_of_all_processes_and_memory_of_the_worst_of_each_role(self):
        usages = [Usage(1, "source", 1.0, 5 * MIB), Usage(2, "source", 1.0, 7 * MIB), Usage(3, "downloader", 2.0, 9 * MIB), Usage(4, "index", 0.5)]
        found = values(Shape(2, 1 << 30), 2.0, usages, 1.0)
        self.assertEqual((found["MiB/s"], found["CPU s/GiB"], found["source anon MiB"], found["downloader anon MiB"], found["others' CPUs"]),
                         (512, 4.5, 7, 9, 0.5))

    def test_every_receiver_counts(self):
        self.assertEqual(values(Shape(1, MIB, sinks=64), 2.0, [], 0)["MiB/s"], 32)

    def test_the_start_does_not_count_for_the_share_of_a_link(self):
        points = [(0, 0), (1, 0), (2, 50), (3, 150), (4, 250), (5, 250)]
        self.assertAlmostEqual(fraction_of_link(points, 4.5, Link(rate=800, delay=0)), 1.0)
        self.assertEqual(fraction_of_link(points, 1.5, Link(rate=800, delay=0)), 0)

    def test_rates_are_between_two_looks(self):
        self.assertEqual(rates([(-1, 0), (0, 0), (1, 100), (3, 200), (9, 900)], 4), [(1, 100), (3, 50)])


class Options(unittest.TestCase):
    def test_sizes(self):
        self.assertEqual([size(text) for text in ("5", "64KiB", "2g", "1 MiB")], [5, 65536, 2 << 30, 1 << 20])
        self.assertRaises(argparse.ArgumentTypeError, size, "two")

    def test_settings(self):
        self.assertEqual(pairs("bin=/x,label=old"), {"bin": "/x", "label": "old"})
        self.assertRaises(argparse.ArgumentTypeError, pairs, "/x")

    def test_every_case_has_variants_and_names_systems_that_there_are(self):
        options = parse(list(CASES), list(SYSTEMS), Path("r"), "", ["all", "--disk-dir", "/tmp"])
        self.assertEqual(options.cases, list(CASES))
        for case in CASES.values():
            self.assertTrue(case.variants(options), case.name)


class Torrents(unittest.TestCase):
    def test_pieces_grow_with_the_file_within_bounds(self):
        self.assertEqual([piece_size(n) for n in (0, 64 * MIB, 256 * MIB, 300 * MIB, 1 << 40)], [1 << 18, 1 << 18, 1 << 20, 1 << 20, 1 << 22])


class Parsing(unittest.TestCase):
    def test_fields_of_status(self):
        text = "VmHWM:\t    2048 kB\nRssAnon:\t      12 kB\n"
        self.assertEqual((_kilobytes(text, "RssAnon:"), _kilobytes(text, "VmHWM:"), _kilobytes("", "RssAnon:")), (12, 2048, 0))

    def test_varints_and_grpc_frames(self):
        self.assertEqual([varint(n).hex() for n in (0, 127, 128, 300)], ["00", "7f", "8001", "ac02"])
        self.assertEqual(request(b"\x01\x02", 0, 5).hex(), "000000000a" + "0a08" + "0a020102" + "1000" + "1805")


class Files(unittest.TestCase):
    def test_folders_have_what_was_asked_for(self):
        with tempfile.TemporaryDirectory() as folder:
            bench.write_tree(Path(folder), 3, 100)
            sizes = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
            self.assertEqual(sizes, [100, 100, 100])

    def test_a_changed_file_changes_the_sum_of_its_folder(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            bench.write_tree(path, 2, 100)
            before = bench.sha256(path)
            (path / "000" / "file-000001.bin").write_bytes(b"x")
            self.assertNotEqual(before, bench.sha256(path))


class Samples(unittest.TestCase):
    SCRIPT = """tokio-rt-worker
	ffffffff8c tcp_sendmsg_locked ([kernel.kallsyms])
	ffffffff8d sock_write_iter ([kernel.kallsyms])
	      5581 h2::frame::write (/bin/potluck-peer)

potluck-peer
	      5582 tape_sha256::avx512::group (/bin/potluck-peer)

perf
	      5583 main (/bin/perf)
"""

    def test_samples_are_read_and_those_of_others_left_out(self):
        found = list(samples.stacks(self.SCRIPT.splitlines()))
        self.assertEqual([program for program, _ in found], ["tokio-rt-worker", "potluck-peer", "perf"])
        shares = dict(samples.shares(found, r"potluck.*|tokio-rt-worker"))
        self.assertEqual({name: share for name, share in shares.items() if share}, {samples.GROUPS[0][0]: 0.5, samples.GROUPS[1][0]: 0.5})

    def test_what_fits_nowhere_is_told(self):
        self.assertEqual(samples.group(["[unknown] (/lib/libc.so.6)"]), samples.REST)
        self.assertEqual(samples.group([]), samples.REST)
        self.assertEqual(samples.group(["clear_page_erms ([kernel.kallsyms])", "asm_exc_page_fault ([kernel.kallsyms])"]), "page faults")
        self.assertEqual(samples.group(["<hyper::proto::h2::PipeToSendStream<S>>::poll (/bin/potluck-peer)"]), "HTTP/2 and gRPC")


if __name__ == "__main__":
    unittest.main()
