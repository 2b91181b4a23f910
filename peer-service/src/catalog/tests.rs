use std::collections::{BTreeMap, BTreeSet};

use potluck_core::{
    Root,
    collection::{
        manifest::{EntryContent, Manifest, ManifestEntry},
        path::RelPath,
    },
    identity::{hash::hash_bytes, merkle::FileTree},
};
use proptest::prelude::*;

use super::*;
use crate::catalog::{record::record_of, row::Members};

/// Sizes of the test contents: below and above a leaf and a piece.
const SIZES: [u64; 6] = [10, 11, 20_000, 20_001, 300_000, 300_001];

fn content(n: usize) -> FileRecord {
    let tree = FileTree {
        size: SIZES[n],
        root: Root([n as u8 + 1; 32]),
        piece_hashes: Vec::new(),
    };
    record_of(&tree, FileKind::File)
}

fn path(n: usize) -> Arc<Path> {
    Path::new("/shared").join(format!("p{n}")).into()
}

/// An item: a file, or a folder whose entries have these contents.
fn item(at: usize, contents: &[usize], is_folder: bool) -> NewItem {
    let contents: Vec<FileRecord> = contents.iter().map(|&n| content(n)).collect();
    let layered = contents.iter().filter(|record| has_layer(record.size));
    let layers = layered.map(|record| (record.id, Arc::from([[0; 32]; 3])));
    let (record, body) = match (is_folder, &contents[..]) {
        (false, [only]) => (*only, ItemBody::File(Stamp::default())),
        _ => {
            let names: Vec<String> = (0..contents.len()).map(|n| format!("e{n}")).collect();
            let entries = names.iter().zip(&contents).map(|(name, record)| ManifestEntry {
                path: RelPath::parse(name).unwrap(),
                content: EntryContent::File {
                    id: record.id,
                    size: record.size,
                    executable: false,
                },
            });
            let manifest = Manifest::new(entries).unwrap();
            let record = record_of(&hash_bytes(manifest.bytes()), FileKind::Collection);
            let members = Members {
                stamps: vec![Stamp::default(); contents.len()],
                roots: contents.iter().map(|record| record.root).collect(),
            };
            let folder = SharedCollection::new(Arc::new(manifest), members);
            assert!(folder.ids_match_roots());
            (record, ItemBody::Collection(Arc::new(folder)))
        }
    };
    NewItem {
        path: path(at),
        is_unrequested: false,
        label: None,
        options: None,
        record,
        body,
        sha256s: BTreeMap::new(),
        layers: layers.collect(),
    }
}

#[derive(Debug, Clone)]
enum CatalogOp {
    File(usize, usize),
    Folder(usize, Vec<usize>),
    Remove(usize),
    Invalidate(usize, usize),
    Offline(usize),
    Online(usize),
    SetSha256(usize),
}

fn op() -> impl Strategy<Value = CatalogOp> {
    let contents = proptest::collection::vec(0..SIZES.len(), 1..5);
    prop_oneof![
        (0..3_usize, 0..SIZES.len()).prop_map(|(at, n)| CatalogOp::File(at, n)),
        (0..3_usize, contents).prop_map(|(at, contents)| CatalogOp::Folder(at, contents)),
        (0..3_usize).prop_map(CatalogOp::Remove),
        (0..3_usize, 0..4_usize).prop_map(|(at, entry)| CatalogOp::Invalidate(at, entry)),
        (0..3_usize).prop_map(CatalogOp::Offline),
        (0..3_usize).prop_map(CatalogOp::Online),
        (2..SIZES.len()).prop_map(CatalogOp::SetSha256),
    ]
}

/// The model of an item: its contents with their names, and the trusted ones.
#[derive(Debug, Default)]
struct ModelItem {
    manifest: Option<FileId>,
    names: Vec<(usize, String)>,
    invalidated: BTreeSet<usize>,
    is_stale: bool,
}

#[derive(Debug, Default)]
struct Model {
    items: BTreeMap<usize, ModelItem>,
    sha256s: BTreeSet<usize>,
}

impl Model {
    /// The names of each content that has a trusted copy.
    fn present(&self) -> BTreeMap<usize, BTreeSet<String>> {
        let mut there: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for model_item in self.items.values() {
            let mut seen = BTreeSet::new();
            for (n, name) in &model_item.names {
                if !model_item.invalidated.contains(n) && seen.insert(n) {
                    there.entry(*n).or_default().insert(name.clone());
                }
            }
        }
        there
    }

    fn manifests(&self) -> BTreeSet<FileId> {
        let items = self.items.values().filter(|model_item| !model_item.is_stale);
        items.filter_map(|model_item| model_item.manifest).collect()
    }
}

fn apply(catalog: &mut Catalog, model: &mut Model, op: &CatalogOp) -> Delta {
    let mut delta = Delta::default();
    match op {
        CatalogOp::File(at, n) => {
            let new = item(*at, &[*n], false);
            catalog.put(new, &mut delta);
            let names = vec![(*n, format!("p{at}"))];
            model.items.insert(
                *at,
                ModelItem {
                    names,
                    ..ModelItem::default()
                },
            );
        }
        CatalogOp::Folder(at, contents) => {
            let new = item(*at, contents, true);
            let names = (0..).zip(contents).map(|(entry, &n)| (n, format!("e{entry}")));
            let model_item = ModelItem {
                manifest: Some(new.record.id),
                names: names.collect(),
                ..ModelItem::default()
            };
            catalog.put(new, &mut delta);
            model.items.insert(*at, model_item);
        }
        CatalogOp::Remove(at) => {
            if let Some(number) = catalog.item_at(&path(*at)) {
                catalog.remove(number, &mut delta);
            }
            model.items.remove(at);
        }
        CatalogOp::Invalidate(at, entry) => {
            if let (Some(item), Some(model_item)) =
                (catalog.item_at(&path(*at)), model.items.get_mut(at))
            {
                let entry = match model_item.manifest {
                    Some(_) => *entry as EntryIndex % model_item.names.len() as EntryIndex,
                    None => WHOLE_ITEM,
                };
                catalog.invalidate(Location { item, entry }, &mut delta);
                let index = if entry == WHOLE_ITEM { 0 } else { entry as usize };
                model_item.invalidated.insert(model_item.names[index].0);
                model_item.is_stale = true;
            }
        }
        CatalogOp::Offline(at) => {
            if let (Some(number), Some(model_item)) =
                (catalog.item_at(&path(*at)), model.items.get_mut(at))
            {
                catalog.set_offline(number, &mut delta);
                model_item
                    .invalidated
                    .extend(model_item.names.iter().map(|(content, _)| *content));
                model_item.is_stale = true;
            }
        }
        CatalogOp::Online(at) => {
            if let Some(number) = catalog.item_at(&path(*at)) {
                catalog.set_online(number);
            }
        }
        CatalogOp::SetSha256(n) => {
            // Also for files that were removed while their SHA-256 was computed.
            catalog.set_sha256(content(*n).id, Sha256([*n as u8; 32]), &mut delta);
            model.sha256s.insert(*n);
        }
    }
    // A file without a copy loses its SHA-256.
    let there = model.present();
    model.sha256s.retain(|n| there.contains_key(n));
    delta
}

proptest! {
    /// After any operations, the files, their names and the announced registrations equal those of
    /// a plain list of the items.
    #[test]
    fn the_catalog_equals_a_plain_list_of_its_items(ops in proptest::collection::vec(op(), 0..40)) {
        let (mut catalog, mut model) = (Catalog::default(), Model::default());
        let mut announced: BTreeMap<FileId, Option<Registration>> = BTreeMap::new();
        for op in ops {
            let delta = apply(&mut catalog, &mut model, &op);
            let effects = catalog.effects_of(delta);
            announced.extend(effects.present.iter().map(|id| (*id, catalog.registration(id))));
            announced.retain(|id, _| !effects.removed.contains(id));
            let there = model.present();
            for n in 0..SIZES.len() {
                let record = catalog.record(&content(n).id);
                prop_assert_eq!(record.is_some(), there.contains_key(&n), "content {}", n);
                let Some(record) = record else { continue };
                let expected = (SIZES[n], content(n).root, FileKind::File);
                prop_assert_eq!((record.size, record.root, record.kind), expected);
                if SIZES[n] <= LEAF_SIZE as u64 {
                    prop_assert_eq!(record.sha256, small_file_sha256(record.size, &record.root));
                }
                let names = catalog.registration(&record.id).unwrap().names;
                let names: BTreeSet<_> = names.into_iter().collect();
                prop_assert_eq!(&names, &there[&n]);
            }
            let mut ids: BTreeSet<_> = there.keys().map(|&n| content(n).id).collect();
            let totals = catalog.totals();
            prop_assert_eq!(totals.files as usize, ids.len());
            prop_assert_eq!(totals.bytes, there.keys().map(|&n| SIZES[n]).sum::<u64>());
            ids.extend(model.manifests());
            let known = ids.into_iter().map(|id| (id, catalog.registration(&id))).collect();
            prop_assert_eq!(&announced, &known, "the announced registrations");
            let without_sha256 = catalog.without_sha256(None, usize::MAX).into_iter();
            let without_sha256: BTreeSet<_> = without_sha256.map(|(_, id)| id).collect();
            let needs_sha256 = |n: usize| SIZES[n] > LEAF_SIZE as u64 && !model.sha256s.contains(&n);
            let expected = there.keys().filter(|&&n| needs_sha256(n));
            let expected: BTreeSet<_> = expected.map(|&n| content(n).id).collect();
            prop_assert!(without_sha256.is_subset(&expected), "{:?} {:?}", without_sha256, expected);
        }
    }
}

#[test]
fn a_layer_is_removed_with_the_last_copy() {
    let mut catalog = Catalog::default();
    let mut delta = Delta::default();
    let first = catalog.put(item(0, &[4], false), &mut delta);
    let second = catalog.put(item(1, &[4, 4, 0], true), &mut delta);
    let removed = |effects: &DeltaEffects| {
        let layers = effects.changes.iter().filter_map(|change| match change {
            CatalogChange::RemoveLayer(id) => Some(*id),
            _ => None,
        });
        layers.collect::<Vec<_>>()
    };
    let mut delta = Delta::default();
    catalog.remove(first, &mut delta);
    assert!(removed(&catalog.effects_of(delta)).is_empty());
    let mut delta = Delta::default();
    catalog.remove(second, &mut delta);
    let effects = catalog.effects_of(delta);
    assert_eq!(removed(&effects), [content(4).id]);
    assert_eq!(effects.manifests.len(), 1);
    assert_eq!(catalog.totals(), Totals::default());
}

#[test]
fn an_offline_item_keeps_its_layers_until_it_is_unshared_or_replaced() {
    let mut catalog = Catalog::default();
    let lost = |catalog: &Catalog, delta| {
        let DeltaEffects {
            changes, manifests, ..
        } = catalog.effects_of(delta);
        let layers = changes.iter().filter_map(|change| match change {
            CatalogChange::RemoveLayer(id) => Some(*id),
            _ => None,
        });
        (layers.collect::<Vec<_>>(), manifests)
    };
    let folder = item(0, &[0, 4], true);
    let number = catalog.put(folder.clone(), &mut Delta::default());
    let other = catalog.put(item(1, &[4], false), &mut Delta::default());
    let mut delta = Delta::default();
    assert!(catalog.set_offline(number, &mut delta) && catalog.is_stale(number));
    assert!(!catalog.set_offline(number, &mut delta), "it is offline already");
    assert_eq!(lost(&catalog, delta), (vec![], vec![]));
    let mut delta = Delta::default();
    catalog.remove(other, &mut delta);
    assert_eq!(
        lost(&catalog, delta),
        (vec![], vec![]),
        "the offline item needs it"
    );
    assert_eq!(catalog.record(&content(4).id), None);
    // It is online again and unchanged: put from the known records.
    let below = path(0).join("e1");
    assert_eq!(catalog.known_file(&below, &Stamp::default()), Some(content(4)));
    let again = NewItem {
        layers: HashMap::new(),
        ..folder
    };
    assert!(catalog.set_online(number) && !catalog.lacks_layer(&again));
    let mut delta = Delta::default();
    catalog.put(again.clone(), &mut delta);
    assert_eq!(lost(&catalog, delta), (vec![], vec![]));
    assert_eq!(catalog.record(&content(4).id), Some(content(4)));
    assert!(!catalog.is_stale(number));
    // Another file at its path, and an unshared item: the old records are gone.
    let mut delta = Delta::default();
    catalog.set_offline(number, &mut delta);
    catalog.put(item(0, &[0], false), &mut delta);
    let all = (vec![content(4).id], vec![again.record.id]);
    assert_eq!(lost(&catalog, delta), all);
    assert!(!catalog.is_offline(number) && catalog.known_file(&below, &Stamp::default()).is_none());
    let mut delta = Delta::default();
    catalog.put(item(0, &[0, 4], true), &mut delta);
    catalog.set_offline(number, &mut delta);
    catalog.remove(number, &mut delta);
    assert_eq!(lost(&catalog, delta), all);
    assert!(catalog.offline_copies.is_empty() && catalog.offline.is_empty());
}

#[test]
fn putting_an_unchanged_item_changes_nothing() {
    let mut catalog = Catalog::default();
    let folder = item(0, &[0, 2, 4], true);
    let number = catalog.put(folder.clone(), &mut Delta::default());
    let mut delta = Delta::default();
    assert_eq!(catalog.put(folder.clone(), &mut delta), number);
    assert!(delta.is_empty());
    catalog.invalidate(
        Location {
            item: number,
            entry: 0,
        },
        &mut Delta::default(),
    );
    catalog.put(folder, &mut delta);
    assert!(!delta.is_empty() && !catalog.is_stale(number));
}

#[test]
fn only_the_changed_files_of_a_folder_are_announced() {
    let mut catalog = Catalog::default();
    let announced = |catalog: &mut Catalog, new: NewItem| {
        let mut delta = Delta::default();
        catalog.put(new, &mut delta);
        let DeltaEffects {
            present: there,
            removed,
            ..
        } = catalog.effects_of(delta);
        let sorted = |ids: Vec<FileId>| ids.into_iter().collect::<BTreeSet<_>>();
        (sorted(there), sorted(removed))
    };
    let ids = |contents: &'static [usize]| contents.iter().map(|&n| content(n).id);
    let [before, after] = [&[0, 1, 2][..], &[0, 3, 2][..]].map(|contents| item(0, contents, true));
    let [first, second] = [&before, &after].map(|new| new.record.id);
    let all = ids(&[0, 1, 2]).chain([first]).collect();
    assert_eq!(announced(&mut catalog, before), (all, BTreeSet::new()));
    let new = ids(&[3]).chain([second]).collect();
    let gone = ids(&[1]).chain([first]).collect();
    assert_eq!(announced(&mut catalog, after.clone()), (new, gone));
    // A withdrawn file is announced again.
    let entry = |entry| Location { item: 0, entry };
    let mut delta = Delta::default();
    catalog.invalidate(entry(2), &mut delta);
    assert_eq!(catalog.effects_of(delta).removed.len(), 2);
    let back = ids(&[2]).chain([second]).collect();
    assert_eq!(announced(&mut catalog, after), (back, BTreeSet::new()));
}

#[test]
fn an_item_lacks_a_layer_once_it_is_removed() {
    let mut catalog = Catalog::default();
    let mut without = item(1, &[4], true);
    without.layers.clear();
    assert!(catalog.lacks_layer(&without));
    let number = catalog.put(item(0, &[4], false), &mut Delta::default());
    assert!(!catalog.lacks_layer(&without));
    catalog.remove(number, &mut Delta::default());
    assert!(catalog.lacks_layer(&without));
}

#[test]
fn no_file_is_known_outside_of_items() {
    let mut catalog = Catalog::default();
    assert!(!catalog.may_know(Path::new("/shared"), 1));
    catalog.put(item(0, &[0, 1], true), &mut Delta::default());
    // The item itself, a path below it, and a path above it.
    for folder in ["/shared/p0", "/shared/p0/below", "/shared", "/"] {
        assert!(catalog.may_know(Path::new(folder), 1), "{folder}");
    }
    for folder in ["/shared/p", "/shared/p00", "/other"] {
        assert!(!catalog.may_know(Path::new(folder), 1), "{folder}");
        assert!(catalog.may_know(Path::new(folder), 0), "it is not looked up");
    }
}
