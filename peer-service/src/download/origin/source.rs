//! An origin that a run reads from.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use potluck_core::Problem;
use potluck_origins::{OriginClient, OriginError, OriginFile, OriginSettings};
use potluck_swarm::{Failure, PeerKey};

use crate::download::{
    engine::chunk_list::ChunkList,
    origin::{checks::CheckPlan, spec::OriginSpec},
};

/// The origin among the providers of a swarm. No peer has this key: they are numbered from 0.
pub(crate) const ORIGIN: PeerKey = PeerKey(u64::MAX);

/// The client of all origins, which is made when it is first needed.
#[derive(Debug, Default)]
pub struct Origins {
    client: OnceLock<Result<OriginClient, OriginError>>,
}

impl Origins {
    /// The client.
    ///
    /// # Errors
    /// As [`OriginClient::new`].
    pub fn client(&self) -> Result<OriginClient, Problem> {
        let made = self
            .client
            .get_or_init(|| OriginClient::new(OriginSettings::default()));
        made.clone().map_err(Into::into)
    }
}

/// The origin of one run.
#[derive(Debug)]
pub(crate) struct OriginSource {
    pub(crate) spec: OriginSpec,
    pub(crate) client: OriginClient,
    pub(crate) file: OriginFile,
    /// Which pieces of peers are compared; `None` if the pieces have known hashes.
    checks: Option<Mutex<CheckPlan>>,
}

impl OriginSource {
    /// The origin of a run. `is_provisional`: pieces of peers must be compared with it.
    pub(crate) fn new(spec: OriginSpec, client: OriginClient, is_provisional: bool) -> Arc<Self> {
        let mut file = OriginFile::new(
            spec.url.clone(),
            spec.size,
            Some(spec.sha256),
            spec.authorization.clone(),
        );
        file.validator.clone_from(&spec.validator);
        Arc::new(Self {
            checks: is_provisional.then(|| Mutex::new(CheckPlan::new(spec.size))),
            file,
            client,
            spec,
        })
    }

    /// The range of the file to compare, of a unit at `offset` that a peer sent.
    pub(crate) fn choose_check(
        &self,
        peer: PeerKey,
        unit: Range<u64>,
        receivers: u64,
    ) -> Option<Range<u64>> {
        let mut plan = self.checks.as_ref()?.lock();
        let range = plan.choose(peer, unit.end - unit.start, receivers, rand::random())?;
        Some(unit.start + range.start..unit.start + range.end)
    }

    /// Whether the origin has these bytes at `range`; `data` begins at `start`. If it does not
    /// answer, the SHA-256 at the end decides.
    pub(crate) async fn agrees(&self, range: Range<u64>, start: u64, data: &ChunkList) -> bool {
        let Ok(mut body) = self.client.open(&self.file, range.clone()).await else {
            return true;
        };
        // Fits: inside a unit.
        let mut at = (range.start - start) as usize;
        loop {
            match body.next().await {
                Ok(Some(chunk)) => {
                    let end = at + chunk.len();
                    if end > data.len() || *data.contiguous(at..end) != chunk[..] {
                        return false;
                    }
                    at = end;
                }
                Ok(None) | Err(_) => return true,
            }
        }
    }
}

/// What an error of the origin means for the scheduler; `None` if asking again cannot help.
pub(crate) fn failure_of(error: &OriginError) -> Option<Failure> {
    match error {
        OriginError::Busy { retry_after, .. } => Some(Failure::Busy {
            retry_after: *retry_after,
        }),
        OriginError::TimedOut { .. } => Some(Failure::TimedOut),
        OriginError::Unreachable { .. } => Some(Failure::Disconnected),
        _ => None,
    }
}
