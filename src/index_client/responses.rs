//! Limits of the lists in the index's responses, checked before a response is decoded.

use prost::Message;

use crate::{
    Problem, Reason, grpc::counting_codec::list_items, index_client::limits::MAX_BATCH, proto::v1,
};

/// Maximum files in a page and maximum providers of a file, as the contract defines them.
const MAX_PAGE: usize = 1_000;

/// Maximum names per file in a response: several times the contract's limit.
const MAX_NAMES: usize = 64;

/// Minimum encoded size of a provider in bytes: a 32-byte id with its key and length.
const MIN_PROVIDER: usize = 34;

/// A response whose lists are checked before decoding.
pub(crate) trait CountedResponse: Message + Default + 'static {
    /// Checks the lengths of all lists in the encoded message. [`Reason::NotPotluck`] if a list is
    /// too long or an item is invalid.
    fn check_counts(message: &[u8]) -> Result<(), Problem>;
}

/// Checks that the list field has at most `max` items.
fn check_len(message: &[u8], list: u32, max: usize, items: &str) -> Result<(), Problem> {
    match list_items(message, list).nth(max) {
        None => Ok(()),
        Some(_) => Err(Problem::new(
            Reason::NotPotluck,
            format!("the index sent more than {max} {items}"),
        )),
    }
}

/// Checks the number of providers and the minimum size of each. An empty provider takes fifty
/// times its encoded size in memory.
fn check_providers(message: &[u8], list: u32) -> Result<(), Problem> {
    check_len(message, list, MAX_PAGE, "providers")?;
    match list_items(message, list).all(|provider| provider.len() >= MIN_PROVIDER) {
        true => Ok(()),
        false => Err(Problem::new(
            Reason::NotPotluck,
            "the index sent a provider without a peer id",
        )),
    }
}

impl CountedResponse for v1::QueryResponse {
    fn check_counts(message: &[u8]) -> Result<(), Problem> {
        check_len(message, 1, MAX_PAGE, "files")?;
        for file in list_items(message, 1) {
            check_len(file, 2, MAX_NAMES, "names of one file")?;
            check_providers(file, 4)?;
        }
        Ok(())
    }
}

impl CountedResponse for v1::SearchResponse {
    fn check_counts(message: &[u8]) -> Result<(), Problem> {
        check_len(message, 1, MAX_PAGE, "files")?;
        list_items(message, 1)
            .try_for_each(|file| check_len(file, 2, MAX_NAMES, "names of one file"))
    }
}

impl CountedResponse for v1::ListPeersResponse {
    fn check_counts(message: &[u8]) -> Result<(), Problem> {
        check_providers(message, 1)
    }
}

impl CountedResponse for v1::WatchProvidersResponse {
    fn check_counts(message: &[u8]) -> Result<(), Problem> {
        list_items(message, 1).try_for_each(|snapshot| check_providers(snapshot, 1))
    }
}

impl CountedResponse for v1::RegisterResponse {
    fn check_counts(message: &[u8]) -> Result<(), Problem> {
        check_len(message, 6, MAX_BATCH, "file ids")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider() -> v1::Provider {
        v1::Provider {
            peer_id: vec![1; 32].into(),
            ..Default::default()
        }
    }

    /// A message with `times` copies of `item` in field `list`.
    fn repeated(list: u8, item: &[u8], times: usize) -> Vec<u8> {
        let field = [&[list << 3 | 2, item.len() as u8], item].concat();
        field.repeat(times)
    }

    #[test]
    fn valid_responses_pass() {
        let names = vec!["x".repeat(255); 16];
        let query = v1::QueryResponse {
            files: vec![
                v1::QueryResult {
                    names: names.clone(),
                    providers: vec![provider(); MAX_PAGE],
                    ..Default::default()
                };
                MAX_PAGE
            ],
            ..Default::default()
        };
        assert_eq!(v1::QueryResponse::check_counts(&query.encode_to_vec()), Ok(()));
        let search = v1::SearchResponse {
            files: vec![
                v1::SearchResult {
                    names,
                    ..Default::default()
                };
                MAX_PAGE
            ],
            ..Default::default()
        };
        assert_eq!(v1::SearchResponse::check_counts(&search.encode_to_vec()), Ok(()));
        use v1::watch_providers_response::Event;
        let snapshot = v1::ProviderSnapshot {
            providers: vec![provider(); MAX_PAGE],
            ..Default::default()
        };
        for event in [
            Event::Snapshot(snapshot),
            Event::Joined(provider()),
            Event::Left(vec![1; 32].into()),
        ] {
            let watch = v1::WatchProvidersResponse { event: Some(event) };
            assert_eq!(
                v1::WatchProvidersResponse::check_counts(&watch.encode_to_vec()),
                Ok(())
            );
        }
        let register = v1::RegisterResponse {
            file_ids: vec![vec![1; 32].into(); MAX_BATCH],
            ..Default::default()
        };
        assert_eq!(
            v1::RegisterResponse::check_counts(&register.encode_to_vec()),
            Ok(())
        );
    }

    #[test]
    fn longer_lists_and_empty_providers_are_rejected() {
        let reason = |checked: Result<(), Problem>| checked.unwrap_err().reason;
        let too_many = repeated(1, &[], MAX_PAGE + 1);
        assert_eq!(
            reason(v1::QueryResponse::check_counts(&too_many)),
            Reason::NotPotluck
        );
        assert_eq!(
            reason(v1::SearchResponse::check_counts(&too_many)),
            Reason::NotPotluck
        );
        let names = repeated(1, &repeated(2, &[], MAX_NAMES + 1)[..], 1);
        // The length needs a varint of two bytes here.
        let names = [&[0x0a, 0x82, 0x01], &names[2..]].concat();
        assert_eq!(
            reason(v1::QueryResponse::check_counts(&names)),
            Reason::NotPotluck
        );
        assert_eq!(
            reason(v1::SearchResponse::check_counts(&names)),
            Reason::NotPotluck
        );
        let empty = repeated(1, &repeated(4, &[], 1), 1);
        assert_eq!(
            reason(v1::QueryResponse::check_counts(&empty)),
            Reason::NotPotluck
        );
        let empty = repeated(1, &repeated(1, &[], 1), 1);
        assert_eq!(
            reason(v1::WatchProvidersResponse::check_counts(&empty)),
            Reason::NotPotluck
        );
        let ids = repeated(6, &[], MAX_BATCH + 1);
        assert_eq!(
            reason(v1::RegisterResponse::check_counts(&ids)),
            Reason::NotPotluck
        );
    }
}
