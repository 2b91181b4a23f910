//! Registrations in batches that one call can carry.

use crate::{grpc::transport, model::Registration};

/// Maximum registrations in one `Register` call, as the contract defines it.
pub const MAX_BATCH: usize = 10_000;

/// Maximum bytes of registrations in one `Register` call: half of the maximum message size.
const MAX_BATCH_BYTES: usize = transport::MAX_MESSAGE / 2;

/// Splits registrations into batches that fit one [`IndexClient::register`](crate::index_client::IndexClient::register) call each: at most
/// [`MAX_BATCH`] registrations, and below the maximum message size. Returns at least one batch, so
/// that a peer without files still opens its lease.
pub fn batches(files: &[Registration]) -> Vec<&[Registration]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, file) in files.iter().enumerate() {
        // The record's own fields take about 120 bytes; each name adds a key and a length.
        let size = 128 + file.names.iter().map(|name| name.len() + 4).sum::<usize>();
        if index - start == MAX_BATCH || (index > start && bytes + size > MAX_BATCH_BYTES) {
            batches.push(&files[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    batches.push(&files[start..]);
    batches
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{
        FileId, Root, Sha256,
        model::{FileKind, FileRecord},
        proto::v1,
    };

    fn registration(names: usize) -> Registration {
        let root = Root([1; 32]);
        let size = u64::from(u32::MAX);
        let id = FileId::derive(size, &root);
        Registration {
            file: FileRecord {
                id,
                size,
                root,
                sha256: Some(Sha256([2; 32])),
                kind: FileKind::Collection,
            },
            names: vec!["n".repeat(255); names],
            is_complete: false,
        }
    }

    #[test]
    fn batches_fit_a_message_and_lose_nothing() {
        assert_eq!(batches(&[]), [&[]], "an empty one opens the lease");
        for (count, names, expected) in [(1, 16, 1), (10_000, 0, 1), (10_001, 0, 2), (2_000, 16, 5)] {
            let files = vec![registration(names); count];
            let batches = batches(&files);
            assert_eq!(batches.len(), expected, "{count} files with {names} names");
            assert_eq!(batches.concat(), files);
            for batch in batches {
                assert!(batch.len() <= MAX_BATCH);
                let files = batch.iter().map(Into::into).collect();
                let request = v1::RegisterRequest {
                    files,
                    ..Default::default()
                };
                assert!(request.encoded_len() < transport::MAX_MESSAGE);
            }
        }
    }
}
