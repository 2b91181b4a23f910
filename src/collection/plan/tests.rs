use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::{
    collection::{manifest::ManifestEntry, path::RelPath},
    identity::merkle::EMPTY_FILE,
};

/// The smallest size of units.
const KIB_128: u64 = 128 << 10;

fn id(n: usize) -> FileId {
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    FileId(bytes)
}

/// A manifest of files with these contents: number and size. Equal numbers are equal content.
fn manifest(contents: &[(usize, u64)]) -> Arc<Manifest> {
    let paths: Vec<String> = (0..contents.len()).map(|index| format!("{index:07}")).collect();
    let entries = paths
        .iter()
        .zip(contents)
        .map(|(path, &(content, size))| ManifestEntry {
            path: RelPath::parse(path).unwrap(),
            content: EntryContent::File {
                id: if size == 0 { EMPTY_FILE } else { id(content) },
                size,
                executable: false,
            },
        });
    Arc::new(Manifest::new(entries).unwrap())
}

fn sizes(plan: &Plan) -> Vec<u64> {
    (0..plan.unit_count()).map(|unit| plan.unit_len(unit)).collect()
}

proptest! {
    #[test]
    fn a_plan_without_some_files_has_the_same_units_with_the_other_bytes(
        files in proptest::collection::vec((0_usize..20, 0_u64..400_000), 1..60),
        left_out in proptest::collection::vec(any::<bool>(), 60),
    ) {
        let files: Vec<_> = files.iter().enumerate().map(|(n, &(_, size))| (n, size)).collect();
        let whole = Plan::of_collection(&manifest(&files));
        let mut out = Bitfield::new(whole.file_count() as u32);
        for (file, left_out) in (0..out.len()).zip(left_out) {
            out.set(file, left_out);
        }
        let plan = whole.clone().without(out.clone(), 7);
        prop_assert_eq!((plan.unit_count(), plan.written()), (whole.unit_count(), 7));
        let incomplete = plan.incomplete_units().unwrap();
        let mut total = 0;
        for unit in 0..whole.unit_count() {
            let all: Vec<_> = whole.spans(unit).collect();
            let needed: Vec<_> = plan.spans(unit).collect();
            let is_needed = |span: &PlanSpan| !out.get(span.file as u32);
            prop_assert_eq!(&needed, &all.iter().copied().filter(is_needed).collect::<Vec<_>>());
            let len = needed.iter().map(|span| span.len).sum::<u64>();
            prop_assert_eq!(plan.unit_len(unit), len);
            prop_assert_eq!(incomplete.get(unit), needed.len() < all.len());
            total += len;
        }
        prop_assert_eq!(plan.total(), total);
    }
}

/// Checks the invariants of a plan.
fn check(plan: &Plan) {
    let unit_size = piece_size(plan.total());
    // Two neighbours among the bundles are together longer than a unit, or one has the maximum
    // number of files. Each large file is longer than a unit.
    let max_units = 2 * plan.total() / unit_size + (plan.file_count() / BUNDLE_FILES) as u64 + 1;
    assert!(
        u64::from(plan.unit_count()) <= max_units,
        "{} units",
        plan.unit_count()
    );
    let mut covered: Vec<u64> = vec![0; plan.file_count()];
    for unit in 0..plan.unit_count() {
        let spans: Vec<_> = plan.spans(unit).collect();
        assert!(!spans.is_empty(), "unit {unit} is empty");
        assert!(spans.len() <= BUNDLE_FILES);
        assert_eq!(
            spans.iter().map(|span| span.len).sum::<u64>(),
            plan.unit_len(unit)
        );
        assert!(plan.unit_len(unit) <= unit_size, "unit {unit} is too large");
        let is_of_large = spans.iter().all(|span| plan.is_large(span.file));
        assert_eq!(is_of_large, unit as usize >= plan.bundles.len());
        for span in spans {
            // In order, without gap or overlap.
            assert_eq!(span.offset, covered[span.file]);
            assert!(span.len > 0);
            covered[span.file] += span.len;
            let size = plan.file(span.file).unwrap().size;
            assert_eq!(span.is_whole_file, span.len == size);
            if !span.is_whole_file {
                let layout = FileLayout::new(size).unwrap();
                assert_eq!(unit_size % layout.piece_size(), 0);
                assert_eq!(span.offset % unit_size, 0, "a part is whole pieces");
                assert!(span.len == unit_size || span.offset + span.len == size);
            }
            let end = span.offset + span.len;
            for byte in [span.offset, end - 1] {
                assert_eq!(plan.units_of(span.file, byte..byte + 1), unit..unit + 1);
            }
        }
    }
    let mut next_piece = 0;
    for (index, (file, covered)) in plan.files().zip(covered).enumerate() {
        assert_eq!(file.size, covered);
        assert_eq!(plan.find(&file.id), Some(index));
        assert!(plan.units_of(index, 5..5).is_empty());
        assert!(plan.units_of(index, file.size..u64::MAX).is_empty());
        assert_eq!(plan.units_of(index, 0..u64::MAX).is_empty(), file.size == 0);
        let has_own_units = file.size > unit_size || plan.manifest().is_none() && file.size > 0;
        assert_eq!(plan.is_large(index), has_own_units);
        let pieces = plan.pieces_of(index);
        assert_eq!(pieces.is_empty(), !has_own_units);
        if has_own_units {
            assert_eq!(
                (pieces.start, pieces.len() as u32),
                (next_piece, piece_count(file.size))
            );
            next_piece = pieces.end;
            for piece in [pieces.start, pieces.end - 1] {
                assert_eq!(plan.file_of_piece(piece), Some(index));
            }
        }
    }
    assert_eq!(plan.file_of_piece(next_piece), None);
    assert_eq!(plan.total(), sizes(plan).iter().sum::<u64>());
    assert_eq!(plan.spans(plan.unit_count()).count(), 0);
    assert_eq!(plan.unit_len(plan.unit_count()), 0);
    assert_eq!(plan.units_of(plan.file_count(), 0..1), 0..0);
}

#[test]
fn a_file_has_its_pieces() {
    let plan = Plan::of_file(id(1), 600_000).unwrap();
    assert_eq!(sizes(&plan), [131_072, 131_072, 131_072, 131_072, 75_712]);
    assert_eq!(plan.units_of(0, 131_071..131_073), 0..2);
    let only = PlanFile {
        id: id(1),
        size: 600_000,
    };
    assert_eq!(plan.files().collect::<Vec<_>>(), [only]);
    assert_eq!(plan.first_entry(0), None);
    check(&plan);
    for size in [
        0,
        1,
        131_072,
        131_073,
        1 << 30,
        crate::identity::layout::MAX_FILE_SIZE,
    ] {
        let plan = Plan::of_file(id(1), size).unwrap();
        assert_eq!(plan.unit_count(), FileLayout::new(size).unwrap().piece_count());
        assert_eq!(plan.total(), size);
    }
    assert_eq!(
        Plan::of_file(id(1), crate::identity::layout::MAX_FILE_SIZE + 1),
        None
    );
}

#[test]
fn small_files_are_bundled_first() {
    let kib = |kib: u64| kib << 10;
    let plan = Plan::of_collection(&manifest(&[
        (0, kib(32)),
        (1, kib(600)),
        (2, kib(64)),
        (3, kib(64)),
        (0, kib(32)),
        (4, 0),
    ]));
    let pieces = [128, 128, 128, 128, 88].map(kib);
    assert_eq!(sizes(&plan), [&[kib(96), kib(64)][..], &pieces].concat());
    assert_eq!(
        plan.first_entry(0),
        Some(0),
        "the same content once, at both paths"
    );
    let empty = PlanFile {
        id: EMPTY_FILE,
        size: 0,
    };
    assert_eq!((plan.file(4), plan.first_entry(4)), (Some(empty), Some(5)));
    assert_eq!(plan.units_of(1, 0..kib(600)), 2..7);
    assert_eq!(plan.units_of(3, 0..1), 1..2);
    assert_eq!(plan.large_files().collect::<Vec<_>>(), [1]);
    check(&plan);
}

#[test]
fn the_largest_bundled_file_fills_a_unit() {
    let plan = Plan::of_collection(&manifest(&[(0, KIB_128), (1, 1), (2, KIB_128 + 1)]));
    assert_eq!(sizes(&plan), [KIB_128, 1, KIB_128, 1]);
    assert_eq!(plan.large_files().collect::<Vec<_>>(), [2]);
    check(&plan);
}

/// The rule that makes a folder spread through a crowd as fast as a file of its size.
#[test]
fn a_folder_has_about_as_many_units_as_a_file_of_its_size() {
    const MIB: u64 = 1 << 20;
    // Number and size of the files, size and number of the units.
    for (files, size, unit_size, units) in [
        // A folder of small files.
        (2_000, 30 << 10, KIB_128, 500),
        // Source code.
        (100_000, 4 << 10, KIB_128, 3_125),
        // The shards of a model: large files, whose pieces are as long as the folder's units.
        (4, 128 * MIB, KIB_128, 4_096),
        // Files with pieces of 128 KiB in a large folder: eight pieces a unit.
        (400, 10 * MIB, MIB, 4_000),
        // A tebibyte in files of 512 MiB: each unit has 128 of their pieces.
        (2_048, 512 * MIB, 16 * MIB, 65_536),
    ] {
        let contents: Vec<_> = (0..files).map(|n| (n, size)).collect();
        let plan = Plan::of_collection(&manifest(&contents));
        assert_eq!((piece_size(plan.total()), plan.unit_count()), (unit_size, units));
        let file = Plan::of_file(id(0), plan.total()).unwrap();
        assert!(
            plan.unit_count() <= file.unit_count() * 11 / 10,
            "as a file of its size"
        );
        check(&plan);
    }
}

#[test]
fn a_bundle_fits_a_request() {
    let plan = Plan::of_collection(&manifest(
        &(0..2 * BUNDLE_FILES + 1).map(|n| (n, 1)).collect::<Vec<_>>(),
    ));
    assert_eq!(sizes(&plan), [BUNDLE_FILES as u64, BUNDLE_FILES as u64, 1]);
    check(&plan);
}

#[test]
fn a_hundred_thousand_files_stay_modest() {
    let plan = Plan::of_collection(&manifest(&(0..100_000).map(|n| (n, 4096)).collect::<Vec<_>>()));
    assert_eq!(plan.unit_count(), 3_125);
    check(&plan);
    let PlanFiles::Collection(manifest, firsts) = &plan.files else {
        panic!("a collection has a manifest")
    };
    assert_eq!(firsts.capacity(), 100_000, "four bytes for each file");
    assert!(manifest.bytes().len() < 5 << 20, "{}", manifest.bytes().len());
}

#[test]
fn nothing_to_fetch_is_no_unit() {
    for plan in [
        Plan::of_collection(&Arc::default()),
        Plan::of_collection(&manifest(&[(0, 0), (1, 0)])),
    ] {
        assert_eq!((plan.unit_count(), plan.total()), (0, 0));
        check(&plan);
    }
}

proptest! {
    #[test]
    fn every_byte_is_covered_once(
        contents in proptest::collection::vec((0..20_usize, prop_oneof![0..10_u64, 0..1_u64 << 18, 0..1_u64 << 32]), 0..30),
    ) {
        // One size per content.
        let sizes: std::collections::HashMap<_, _> = contents.iter().copied().collect();
        let contents: Vec<_> = contents.iter().map(|(content, _)| (*content, sizes[content])).collect();
        let manifest = manifest(&contents);
        let plan = Plan::of_collection(&manifest);
        check(&plan);
        prop_assert_eq!(&plan, &Plan::of_collection(&manifest));

        let ids: HashSet<_> = plan.files().map(|file| file.id).collect();
        prop_assert_eq!(ids.len(), plan.file_count());
        let firsts: Vec<_> = (0..plan.file_count()).filter_map(|file| plan.first_entry(file)).collect();
        prop_assert!(firsts.is_sorted());
        for (file, first) in plan.files().zip(&firsts) {
            prop_assert_eq!(manifest.with_id(&file.id).first(), Some(first));
        }
    }

    #[test]
    fn a_files_units_are_its_layouts_pieces(
        size in prop_oneof![0..1_u64 << 24, 0..crate::identity::layout::MAX_FILE_SIZE],
        unit in any::<u32>(),
    ) {
        let plan = Plan::of_file(id(0), size).unwrap();
        let layout = FileLayout::new(size).unwrap();
        let expected = layout.piece(unit % (layout.piece_count() + 1)).map(|piece| layout.range(piece));
        let span = plan.spans(unit % (layout.piece_count() + 1)).next();
        prop_assert_eq!(span.map(|span| span.offset..span.offset + span.len), expected);
    }
}

#[test]
fn what_is_written_counts_each_path_and_much_more_than_is_fetched_is_an_expansion() {
    const MIB: u64 = 1 << 20;
    let plan = |copies: usize, size| Plan::of_collection(&manifest(&vec![(1, size); copies]));
    let bomb = plan(1000, 8 * MIB);
    assert_eq!((bomb.total(), bomb.written()), (8 * MIB, 8000 * MIB));
    assert!(bomb.expands());
    assert!(!plan(128, 8 * MIB).expands(), "1 GiB is free");
    assert!(plan(129, 8 * MIB).expands());
    assert!(!plan(10, 1024 * MIB).expands(), "ten times");
    assert!(plan(11, 1024 * MIB).expands());
    let one = Plan::of_file(id(1), 5 * MIB).unwrap();
    assert_eq!((one.written(), one.expands()), (5 * MIB, false));
}
