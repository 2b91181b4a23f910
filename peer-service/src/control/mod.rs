//! The control service, for the peer's owner.
//!
//! Invariant: it is never served on the open port.
//!
//! Non-goals: it only translates calls; the library, the downloads and the limits do the work.

mod cache;
mod convert;
pub mod listener;

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use potluck_core::{
    PeerId, Problem, Reason,
    convert::{file_id, labels_message},
    proto::v1::{self, control_service_server::ControlService},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    announce::registrar::Registrar,
    download::{
        context::DownloadContext,
        manager::{DownloadManager, DownloadWatch},
        status::{DownloadSpec, LimitsUpdate},
        task::reading::FileReader,
    },
    library::{CheckTarget, UnshareTarget},
    upload::UploadCounters,
};

/// Interval of the status messages of a fetch: several per second, as the contract specifies.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum buffered share events for a slow caller.
const SHARE_EVENTS: usize = 64;

/// Number of omitted entries to list if the caller gives none, as the contract specifies.
const DEFAULT_OMISSIONS: usize = 10;

/// Number of items per page if the caller gives no page size, as the contract specifies.
const DEFAULT_PAGE: usize = 100;

/// Maximum library items per page, as the contract specifies.
const MAX_ITEMS: usize = 1_000;

/// Maximum transfers per page, as the contract specifies. With all its peers, each takes several
/// KiB of the message.
const MAX_TRANSFERS: usize = 200;

/// Maximum time to wait for a registration.
const MAX_REGISTRATION_WAIT: Duration = Duration::from_secs(600);

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The control service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlApi {
    /// The parts of the peer.
    pub context: Arc<DownloadContext>,
    /// The peer's downloads.
    pub transfers: DownloadManager,
    /// The registrar; `None` without an index.
    pub registrar: Option<Registrar>,
    /// The upload counters.
    pub counters: Arc<UploadCounters>,
    /// The home folder.
    pub home: PathBuf,
    /// The previous peer id, if this start found the home on another machine.
    pub previous_peer_id: Option<PeerId>,
    /// When the peer started.
    pub started: Instant,
    /// Cancelled when the peer stops; streams then end.
    pub shutdown: CancellationToken,
}

impl ControlApi {
    /// Ends a stream with `SHUTTING_DOWN` when the peer stops.
    fn until_shutdown<T: Send + 'static>(
        &self,
        answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> ResponseStream<T> {
        let stopping = Problem::new(
            Reason::ShuttingDown,
            "the peer is shutting down: the downloaded data is kept",
        );
        let shutdown = self.shutdown.clone().cancelled_owned();
        Box::pin(stream::unfold(
            (Box::pin(answers), Box::pin(shutdown), Some(stopping)),
            |state| async move {
                let (mut answers, mut shutdown, mut stopping) = state;
                stopping.as_ref()?;
                // Cancel-safe: `next` takes an item completely or not at all.
                let item = tokio::select! {
                    biased;
                    item = answers.next() => item?,
                    () = &mut shutdown => Err(stopping.take()?.into()),
                };
                Some((item, (answers, shutdown, stopping)))
            },
        ))
    }
}

fn transfer(status: &crate::download::status::DownloadStatus) -> Option<v1::Transfer> {
    Some(status.into())
}

/// Streams the status of a download: first the current status, then every [`STATUS_INTERVAL`], and
/// finally when the download settles.
fn status_stream(
    watching: DownloadWatch,
) -> impl Stream<Item = Result<v1::StartTransferResponse, Status>> + Send {
    stream::unfold(
        (watching, true, false),
        |(mut watching, first, ended)| async move {
            if ended {
                return None;
            }
            if !first {
                let settled = async {
                    watching
                        .status
                        .wait_for(|status| status.state.is_settled())
                        .await
                        .is_ok()
                };
                if tokio::time::timeout(STATUS_INTERVAL, settled).await == Ok(false) {
                    // The sender is gone, so the status no longer changes; repeat it at the usual
                    // interval.
                    tokio::time::sleep(STATUS_INTERVAL).await;
                }
            }
            let status = watching.status.borrow_and_update().clone();
            let ended = status.state.is_settled();
            Some((
                Ok(v1::StartTransferResponse {
                    transfer: transfer(&status),
                }),
                (watching, false, ended),
            ))
        },
    )
}

/// Streams the chunks of a file, and its status every [`STATUS_INTERVAL`].
fn read_stream(
    reader: FileReader,
) -> impl Stream<Item = Result<v1::ReadFileResponse, Status>> + Send {
    use v1::read_file_response::Event;
    let interval = tokio::time::interval(STATUS_INTERVAL);
    stream::unfold(Some((reader, interval)), |state| async move {
        let (mut reader, mut interval) = state?;
        // Cancel-safe: a channel and a timer lose nothing if the other completes.
        let event = tokio::select! {
            chunk = reader.chunks.recv() => match chunk {
                Some(Ok(data)) => Event::Data(data),
                Some(Err(problem)) => return Some((Err(problem.into()), None)),
                None => {
                    let last = Event::Transfer((&*reader.status.borrow()).into());
                    return Some((Ok(v1::ReadFileResponse { event: Some(last) }), None));
                }
            },
            _ = interval.tick() => Event::Transfer((&*reader.status.borrow()).into()),
        };
        let response = v1::ReadFileResponse { event: Some(event) };
        Some((Ok(response), Some((reader, interval))))
    })
}

#[tonic::async_trait]
impl ControlService for ControlApi {
    type ShareStream = ResponseStream<v1::ShareResponse>;
    type StartTransferStream = ResponseStream<v1::StartTransferResponse>;
    type ReadFileStream = ResponseStream<v1::ReadFileResponse>;
    type CheckStream = ResponseStream<v1::CheckResponse>;

    async fn share(
        &self,
        request: Request<v1::ShareRequest>,
    ) -> Result<Response<Self::ShareStream>, Status> {
        let request = request.into_inner();
        let paths = request.paths;
        if paths.is_empty() {
            return Err(Problem::new(Reason::InvalidArgument, "name at least one path")
                .field("paths")
                .into());
        }
        if self.context.local.address.is_none() {
            let message = "this peer only downloads, and serves nobody: start it without \
                           --download-only to share";
            return Err(Problem::new(Reason::DownloadOnly, message).into());
        }
        let paths: Vec<PathBuf> = paths
            .iter()
            .map(|path| convert::path(path, "paths"))
            .collect::<Result<_, _>>()?;
        let options = request.options.unwrap_or_default().try_into()?;
        let max_omissions = match request.max_omissions {
            0 => DEFAULT_OMISSIONS,
            max => max as usize,
        };
        let (sender, events) = mpsc::channel(SHARE_EVENTS);
        let library = self.context.library.clone();
        self.context
            .tracker
            .spawn(async move { library.share(paths, options, sender).await });
        let events = ReceiverStream::new(events)
            .flat_map(move |event| stream::iter(convert::share_responses(event, max_omissions)))
            .map(Ok);
        Ok(Response::new(self.until_shutdown(events)))
    }

    async fn await_registration(
        &self,
        request: Request<v1::AwaitRegistrationRequest>,
    ) -> Result<Response<v1::AwaitRegistrationResponse>, Status> {
        let timeout = Duration::from_millis(request.into_inner().timeout_ms);
        let Some(registrar) = &self.registrar else {
            return Ok(Response::new(v1::AwaitRegistrationResponse::default()));
        };
        let announced = registrar.announced(timeout.min(MAX_REGISTRATION_WAIT)).await;
        Ok(Response::new(v1::AwaitRegistrationResponse {
            registered: announced.is_ok(),
            failure: announced.err().as_ref().map(convert::failure),
        }))
    }

    async fn unshare(
        &self,
        request: Request<v1::UnshareRequest>,
    ) -> Result<Response<v1::UnshareResponse>, Status> {
        use v1::unshare_request::Target as Wanted;
        let target = match request.into_inner().target {
            Some(Wanted::FileId(id)) => UnshareTarget::Id(file_id(&id, "file_id")?),
            Some(Wanted::Path(path)) => UnshareTarget::Path(convert::path(&path, "path")?),
            None => return Err(missing_field("target").into()),
        };
        let removed = self.context.library.unshare(target).await?;
        Ok(Response::new(v1::UnshareResponse {
            removed: removed.iter().map(Into::into).collect(),
        }))
    }

    async fn list_library(
        &self,
        request: Request<v1::ListLibraryRequest>,
    ) -> Result<Response<v1::ListLibraryResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size, MAX_ITEMS);
        let (items, next) = self.context.library.list(size, &request.page_token)?;
        Ok(Response::new(v1::ListLibraryResponse {
            items: items.iter().map(Into::into).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn check(
        &self,
        request: Request<v1::CheckRequest>,
    ) -> Result<Response<Self::CheckStream>, Status> {
        let request = request.into_inner();
        let targets = match request.paths.is_empty() {
            true => vec![CheckTarget::All],
            false => request
                .paths
                .iter()
                .map(|path| convert::path(path, "paths").map(CheckTarget::Path))
                .collect::<Result<_, _>>()?,
        };
        let (sender, events) = mpsc::channel(SHARE_EVENTS);
        let library = self.context.library.clone();
        let rate = request.max_bytes_per_second;
        self.context
            .tracker
            .spawn(async move { library.check(targets, rate, sender).await });
        let events = ReceiverStream::new(events).map(|event| Ok(event.into()));
        Ok(Response::new(self.until_shutdown(events)))
    }

    async fn start_transfer(
        &self,
        request: Request<v1::StartTransferRequest>,
    ) -> Result<Response<Self::StartTransferStream>, Status> {
        let spec = DownloadSpec::try_from(request.into_inner())?;
        let watching = self.transfers.start_download(spec).await?;
        Ok(Response::new(self.until_shutdown(status_stream(watching))))
    }

    async fn read_file(
        &self,
        request: Request<v1::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let spec = DownloadSpec::try_from(request.into_inner())?;
        let reader = self.transfers.read(spec);
        Ok(Response::new(self.until_shutdown(read_stream(reader))))
    }

    async fn list_transfers(
        &self,
        request: Request<v1::ListTransfersRequest>,
    ) -> Result<Response<v1::ListTransfersResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size, MAX_TRANSFERS);
        let (transfers, next) = self.transfers.list(size, &request.page_token)?;
        Ok(Response::new(v1::ListTransfersResponse {
            transfers: transfers.into_iter().map(convert::summarized).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn pause_transfer(
        &self,
        request: Request<v1::PauseTransferRequest>,
    ) -> Result<Response<v1::PauseTransferResponse>, Status> {
        let status = self.transfers.pause(request.into_inner().transfer_id).await?;
        Ok(Response::new(v1::PauseTransferResponse {
            transfer: transfer(&status),
        }))
    }

    async fn resume_transfer(
        &self,
        request: Request<v1::ResumeTransferRequest>,
    ) -> Result<Response<v1::ResumeTransferResponse>, Status> {
        let status = self.transfers.resume(request.into_inner().transfer_id).await?;
        Ok(Response::new(v1::ResumeTransferResponse {
            transfer: transfer(&status),
        }))
    }

    async fn cancel_transfer(
        &self,
        request: Request<v1::CancelTransferRequest>,
    ) -> Result<Response<v1::CancelTransferResponse>, Status> {
        let status = self.transfers.cancel(request.into_inner().transfer_id).await?;
        Ok(Response::new(v1::CancelTransferResponse {
            transfer: transfer(&status),
        }))
    }

    async fn adjust_transfer(
        &self,
        request: Request<v1::AdjustTransferRequest>,
    ) -> Result<Response<v1::AdjustTransferResponse>, Status> {
        let request = request.into_inner();
        let update = LimitsUpdate::try_from(&request)?;
        let status = self.transfers.adjust(request.transfer_id, update).await?;
        tracing::info!(
            transfer = status.number,
            name = status.name,
            bytes_per_second = status.limits.max_bytes_per_second,
            priority = status.limits.priority.get(),
            "limits of a download changed"
        );
        Ok(Response::new(v1::AdjustTransferResponse {
            transfer: transfer(&status),
        }))
    }

    async fn explain_transfer(
        &self,
        request: Request<v1::ExplainTransferRequest>,
    ) -> Result<Response<v1::ExplainTransferResponse>, Status> {
        use v1::explain_transfer_request::Target as Wanted;
        let status = match request.into_inner().target {
            Some(Wanted::FileId(id)) => self.transfers.get_by_file(file_id(&id, "file_id")?)?,
            Some(Wanted::TransferId(number)) => self.transfers.get(number)?,
            None => return Err(missing_field("target").into()),
        };
        let error = status.error.iter().map(|problem| problem.message.clone());
        let findings = error.chain(status.findings.iter().cloned()).collect();
        Ok(Response::new(v1::ExplainTransferResponse {
            missing: status.missing.iter().map(Into::into).collect(),
            map: Some((&status.map).into()),
            findings,
            transfer: transfer(&status),
        }))
    }

    async fn get_limits(
        &self,
        _request: Request<v1::GetLimitsRequest>,
    ) -> Result<Response<v1::GetLimitsResponse>, Status> {
        Ok(Response::new(v1::GetLimitsResponse {
            limits: Some((&self.context.resources.limits).into()),
        }))
    }

    async fn set_limits(
        &self,
        request: Request<v1::SetLimitsRequest>,
    ) -> Result<Response<v1::SetLimitsResponse>, Status> {
        let requested = request
            .into_inner()
            .limits
            .ok_or_else(|| missing_field("limits"))?;
        let limits = &self.context.resources.limits;
        if let Some(rate) = requested.upload_bytes_per_second {
            limits.set_upload_rate(rate);
        }
        if let Some(rate) = requested.download_bytes_per_second {
            limits.set_download_rate(rate);
        }
        if let Some(slots) = requested.upload_slots {
            limits.set_upload_slots(slots);
        }
        tracing::info!(
            upload_bytes_per_second = requested.upload_bytes_per_second,
            download_bytes_per_second = requested.download_bytes_per_second,
            upload_slots = requested.upload_slots,
            "limits changed"
        );
        Ok(Response::new(v1::SetLimitsResponse {
            limits: Some(limits.into()),
        }))
    }

    async fn list_cache(
        &self,
        request: Request<v1::ListCacheRequest>,
    ) -> Result<Response<v1::ListCacheResponse>, Status> {
        let request = request.into_inner();
        let cache = &self.context.cache;
        Ok(Response::new(cache::list(
            cache,
            page_size(request.page_size, MAX_ITEMS),
            &request.page_token,
        )))
    }

    async fn collect_cache(
        &self,
        request: Request<v1::CollectCacheRequest>,
    ) -> Result<Response<v1::CollectCacheResponse>, Status> {
        let cache = &self.context.cache;
        let removed = cache.collect(request.into_inner().max_bytes).await?;
        Ok(Response::new(cache::collected(cache, &removed)))
    }

    async fn pin_cache(
        &self,
        request: Request<v1::PinCacheRequest>,
    ) -> Result<Response<v1::PinCacheResponse>, Status> {
        let request = request.into_inner();
        if request.names.is_empty() || request.names.len() > MAX_ITEMS {
            let message = format!("name 1 to {MAX_ITEMS} entries");
            return Err(Problem::new(Reason::InvalidArgument, message)
                .field("names")
                .into());
        }
        let cache = &self.context.cache;
        let entries = cache.set_pinned(request.names, request.pinned).await?;
        Ok(Response::new(v1::PinCacheResponse {
            entries: entries.iter().map(|entry| cache::message(cache, entry)).collect(),
        }))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let context = &self.context;
        let registrar = self.registrar.as_ref().map(Registrar::status).unwrap_or_default();
        let totals = context.library.totals();
        Ok(Response::new(v1::GetStatusResponse {
            peer_id: context.local.id.to_bytes(),
            listening: context.local.address.as_ref().map(Into::into),
            advertised: registrar.advertised.as_ref().map(Into::into),
            index: context
                .index
                .as_ref()
                .map(|index| index.list().to_string())
                .unwrap_or_default(),
            registered: registrar.registered,
            index_error: registrar.error.as_ref().map(convert::failure),
            items: totals.items,
            files: totals.files,
            bytes: totals.bytes,
            uploaded_bytes: self.counters.uploaded_bytes.load(Ordering::Relaxed),
            downloaded_bytes: context.downloaded_bytes.load(Ordering::Relaxed),
            transfers: u32::try_from(self.transfers.unfinished_count()).unwrap_or(u32::MAX),
            paused_transfers: u32::try_from(self.transfers.paused()).unwrap_or(u32::MAX),
            home: self.home.to_string_lossy().into_owned(),
            files_folder: context.files_folder.to_string_lossy().into_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            reachability: self
                .registrar
                .as_ref()
                .and_then(Registrar::reachability)
                .map_or(v1::Reachability::Unspecified, Into::into)
                .into(),
            download_only: context.local.address.is_none(),
            labels: labels_message(&context.local.outgoing.locality.labels()),
            warnings: context.store.warning().into_iter().collect(),
            damaged_items: totals.damaged,
            previous_peer_id: self.previous_peer_id.map(|id| id.to_bytes()).unwrap_or_default(),
        }))
    }
}

/// The size of a page: the default for 0, and at most `max` (AIP-158).
fn page_size(requested: u32, max: usize) -> usize {
    match requested as usize {
        0 => DEFAULT_PAGE,
        size => size.min(max),
    }
}

fn missing_field(field: &str) -> Problem {
    Problem::new(Reason::InvalidArgument, format!("`{field}` is missing")).field(field)
}
