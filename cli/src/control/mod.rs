//! Client of a peer's `ControlService`. Requests and responses are domain types, and every call has
//! a deadline.

pub(crate) mod cache;
pub(crate) mod model;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use potluck_core::{
    FileId, Problem, Reason, Sha256,
    grpc::transport::{Endpoint, MAX_MESSAGE},
    model::Address,
    process::traces::TraceContext,
    proto::v1::{self, control_service_client::ControlServiceClient},
};
use potluck_origins::OriginFile;
use potluck_peer::library::{LinkPolicy, ShareOptions};
use tonic::{
    Request, Status as GrpcStatus,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::arguments::seed::Seed;

use self::model::{
    CheckEvent, Explanation, Item, Limits, LimitsUpdate, ReadEvent, Registration, ShareEvent,
    Status, Transfer,
};

/// Timeout of a call, or of the start of a stream. The peer answers from memory.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Timeout of a removal, for which the peer may rewrite a large library.
const SLOW_CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Page size when listing the library, in items.
const PAGE: u32 = 1000;

/// The content to download, and the options.
#[derive(Debug, Clone)]
pub(crate) struct DownloadRequest {
    pub(crate) file: FileId,
    /// File name if the target is empty or a folder. `None`: the name that the peers use.
    pub(crate) name: Option<String>,
    /// Absolute path. `None`: the peer's files folder.
    pub(crate) target: Option<PathBuf>,
    /// Expected SHA-256 of the whole file.
    pub(crate) sha256: Option<Sha256>,
    /// Peers to ask in addition to those that the index lists.
    pub(crate) providers: Vec<Address>,
    /// Where bytes come from that no peer has.
    pub(crate) origin: Option<RequestedOrigin>,
    /// Whether the download continues after the client disconnects.
    pub(crate) detach: bool,
    /// Whether a collection may write many times the size of its distinct content.
    pub(crate) allow_expansion: bool,
    /// Globs of the paths in a collection to download; empty: all.
    pub(crate) include: Vec<String>,
    /// Globs of the paths in a collection to leave out.
    pub(crate) exclude: Vec<String>,
    /// How long the finished download is served. `None`: as long as the peer shares it.
    pub(crate) seed: Option<Seed>,
    /// Bytes per second; 0: no limit. `None`: no limit, or the limit of the transfer that this
    /// request joins.
    pub(crate) limit: Option<u64>,
    /// 1 to 100. `None`: the default, or the priority of the transfer that this request joins.
    pub(crate) priority: Option<u32>,
}

/// A file at an origin.
#[derive(Debug, Clone)]
pub(crate) struct RequestedOrigin {
    /// The file, as it was looked up.
    pub(crate) file: Arc<OriginFile>,
    /// Whether content that needs credentials is shared.
    pub(crate) share_gated: bool,
}

impl From<&RequestedOrigin> for v1::TransferOrigin {
    fn from(origin: &RequestedOrigin) -> Self {
        let file = &origin.file;
        Self {
            url: file.url.to_string(),
            size: file.size,
            validator: file.validator.clone().unwrap_or_default(),
            authorization: file
                .authorization
                .as_ref()
                .map(|secret| secret.expose().to_owned())
                .unwrap_or_default(),
            share_gated: origin.share_gated,
        }
    }
}

/// Identifies a shared item.
#[derive(Debug, Clone)]
pub(crate) enum SharedTarget {
    /// By file id.
    File(FileId),
    /// By absolute path.
    Path(String),
}

/// A connection to a peer's control service. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ControlClient {
    endpoint: Endpoint,
    client: ControlServiceClient<InterceptedService<Channel, TokenInterceptor>>,
}

/// Adds the control token to each request, if there is one, and the context of the current span.
#[derive(Debug, Clone)]
struct TokenInterceptor(Option<MetadataValue<Ascii>>);

impl Interceptor for TokenInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, GrpcStatus> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        TraceContext.call(request)
    }
}

impl ControlClient {
    /// Connects. `token` is required by a control service on TCP.
    pub(crate) async fn connect(endpoint: &Endpoint, token: Option<&str>) -> Result<Self, Problem> {
        let bearer = token
            .map(|token| {
                let mut value: MetadataValue<Ascii> =
                    format!("Bearer {token}").parse().map_err(|_| {
                        Problem::new(
                            Reason::InvalidToken,
                            "the control token contains characters that are not allowed in a token",
                        )
                    })?;
                value.set_sensitive(true);
                Ok::<_, Problem>(value)
            })
            .transpose()?;
        let channel = endpoint.connect().await?;
        let client = ControlServiceClient::with_interceptor(channel, TokenInterceptor(bearer))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self {
            endpoint: endpoint.clone(),
            client,
        })
    }

    /// The address of the control service.
    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn call<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, GrpcStatus>>,
    ) -> Result<T, Problem> {
        let response = tokio::time::timeout(limit, answer).await.map_err(|_| {
            Problem::new(
                Reason::TimedOut,
                format!(
                    "the peer at {} did not answer within {} s",
                    self.endpoint,
                    limit.as_secs()
                ),
            )
        })?;
        response
            .map(tonic::Response::into_inner)
            .map_err(|status| self.endpoint.problem(status, "peer"))
    }

    /// Converts a stream of messages to a stream of domain events.
    fn events<M, T>(
        &self,
        messages: tonic::Streaming<M>,
        convert: impl Fn(M) -> Result<T, Problem> + Send,
    ) -> impl Stream<Item = Result<T, Problem>> + Send {
        let endpoint = self.endpoint.clone();
        messages.map(move |message| match message {
            Ok(message) => convert(message),
            Err(status) => Err(endpoint.problem(status, "peer")),
        })
    }

    /// Shares files in place. `paths` are absolute. Lists at most `max_omissions` entries that are
    /// left out of each folder.
    pub(crate) async fn share(
        &self,
        paths: Vec<String>,
        options: ShareOptions,
        max_omissions: usize,
    ) -> Result<impl Stream<Item = Result<ShareEvent, Problem>> + Send, Problem> {
        let request = v1::ShareRequest {
            paths,
            options: Some(v1::ShareOptions {
                links: match options.links {
                    LinkPolicy::Keep => v1::LinkPolicy::Keep,
                    LinkPolicy::Follow => v1::LinkPolicy::Follow,
                    LinkPolicy::Skip => v1::LinkPolicy::Skip,
                }
                .into(),
                strict: options.is_strict,
                exclude: options.exclude,
            }),
            max_omissions: u32::try_from(max_omissions).unwrap_or(u32::MAX),
        };
        let messages = self
            .call(CALL_TIMEOUT, self.client.clone().share(request))
            .await?;
        Ok(self.events(messages, ShareEvent::try_from))
    }

    /// Waits until the index has the peer's complete list of files, registration fails, or
    /// `timeout` passes.
    pub(crate) async fn await_registration(
        &self,
        timeout: Duration,
    ) -> Result<Registration, Problem> {
        let request = v1::AwaitRegistrationRequest {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let limit = timeout.saturating_add(CALL_TIMEOUT);
        let answer = self
            .call(limit, self.client.clone().await_registration(request))
            .await?;
        Ok(answer.into())
    }

    /// Rehashes what is shared at these absolute paths; an empty list means everything. 0 bytes per
    /// second: no limit.
    pub(crate) async fn check(
        &self,
        paths: Vec<String>,
        max_bytes_per_second: u64,
    ) -> Result<impl Stream<Item = Result<CheckEvent, Problem>> + Send, Problem> {
        let request = v1::CheckRequest {
            paths,
            max_bytes_per_second,
        };
        let messages = self
            .call(CALL_TIMEOUT, self.client.clone().check(request))
            .await?;
        Ok(self.events(messages, CheckEvent::try_from))
    }

    /// Stops sharing an item. Returns the removed items.
    pub(crate) async fn unshare(&self, target: SharedTarget) -> Result<Vec<Item>, Problem> {
        use v1::unshare_request::Target;
        let target = match target {
            SharedTarget::File(id) => Target::FileId(id.to_bytes()),
            SharedTarget::Path(path) => Target::Path(path),
        };
        let request = v1::UnshareRequest { target: Some(target) };
        let answer = self
            .call(SLOW_CALL_TIMEOUT, self.client.clone().unshare(request))
            .await?;
        answer.removed.into_iter().map(TryInto::try_into).collect()
    }

    /// Returns a page of the library and the token of the next page.
    pub(crate) async fn library(
        &self,
        page: Option<String>,
    ) -> Result<(Vec<Item>, Option<String>), Problem> {
        let request = v1::ListLibraryRequest {
            page_size: PAGE,
            page_token: page.unwrap_or_default(),
        };
        let answer = self
            .call(CALL_TIMEOUT, self.client.clone().list_library(request))
            .await?;
        let items = answer
            .items
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<_, _>>()?;
        Ok((
            items,
            Some(answer.next_page_token).filter(|token| !token.is_empty()),
        ))
    }

    /// Starts a download and streams its status until it ends.
    pub(crate) async fn download(
        &self,
        request: &DownloadRequest,
    ) -> Result<impl Stream<Item = Result<Transfer, Problem>> + Send, Problem> {
        let message = v1::StartTransferRequest {
            file_id: request.file.to_bytes(),
            name: request.name.clone().unwrap_or_default(),
            target: request
                .target
                .as_deref()
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            sha256: request.sha256.map(Sha256::to_bytes).unwrap_or_default(),
            providers: request.providers.iter().map(Into::into).collect(),
            detach: request.detach,
            allow_expansion: request.allow_expansion,
            include: request.include.clone(),
            exclude: request.exclude.clone(),
            seed: request.seed.map(model::seed_limit),
            max_bytes_per_second: request.limit,
            priority: request.priority,
            origin: request.origin.as_ref().map(Into::into),
        };
        let messages = self
            .call(CALL_TIMEOUT, self.client.clone().start_transfer(message))
            .await?;
        Ok(self.events(messages, |message| model::transfer(message.transfer)))
    }

    /// Streams the bytes of a file in order, and the status of the transfer. Ignores the target,
    /// the name and the globs of the request.
    pub(crate) async fn read_file(
        &self,
        request: &DownloadRequest,
    ) -> Result<impl Stream<Item = Result<ReadEvent, Problem>> + Send, Problem> {
        let message = v1::ReadFileRequest {
            file_id: request.file.to_bytes(),
            sha256: request.sha256.map(Sha256::to_bytes).unwrap_or_default(),
            providers: request.providers.iter().map(Into::into).collect(),
            max_bytes_per_second: request.limit,
            priority: request.priority,
        };
        let messages = self
            .call(CALL_TIMEOUT, self.client.clone().read_file(message))
            .await?;
        Ok(self.events(messages, ReadEvent::try_from))
    }

    /// Lists running, paused, and recently ended transfers.
    pub(crate) async fn transfers(&self) -> Result<Vec<Transfer>, Problem> {
        let mut transfers = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListTransfersRequest {
                page_size: 0,
                page_token: page_token.clone(),
            };
            let page = self
                .call(CALL_TIMEOUT, self.client.clone().list_transfers(request))
                .await?;
            for transfer in page.transfers {
                transfers.push(transfer.try_into()?);
            }
            if page.next_page_token.is_empty() || page.next_page_token == page_token {
                return Ok(transfers);
            }
            page_token = page.next_page_token;
        }
    }

    /// Pauses a transfer.
    pub(crate) async fn pause(&self, transfer_id: u64) -> Result<Transfer, Problem> {
        let request = v1::PauseTransferRequest { transfer_id };
        model::transfer(
            self.call(CALL_TIMEOUT, self.client.clone().pause_transfer(request))
                .await?
                .transfer,
        )
    }

    /// Resumes a paused or failed transfer.
    pub(crate) async fn resume(&self, transfer_id: u64) -> Result<Transfer, Problem> {
        let request = v1::ResumeTransferRequest { transfer_id };
        model::transfer(
            self.call(CALL_TIMEOUT, self.client.clone().resume_transfer(request))
                .await?
                .transfer,
        )
    }

    /// Cancels a transfer and removes its partial content.
    pub(crate) async fn cancel(&self, transfer_id: u64) -> Result<Transfer, Problem> {
        let request = v1::CancelTransferRequest { transfer_id };
        model::transfer(
            self.call(CALL_TIMEOUT, self.client.clone().cancel_transfer(request))
                .await?
                .transfer,
        )
    }

    /// Changes a transfer's rate limit (bytes per second; 0: no limit) and priority (1 to 100).
    /// `None` leaves a value as it is.
    pub(crate) async fn adjust(
        &self,
        transfer_id: u64,
        max_bytes_per_second: Option<u64>,
        priority: Option<u32>,
    ) -> Result<Transfer, Problem> {
        let request = v1::AdjustTransferRequest {
            transfer_id,
            max_bytes_per_second,
            priority,
        };
        model::transfer(
            self.call(CALL_TIMEOUT, self.client.clone().adjust_transfer(request))
                .await?
                .transfer,
        )
    }

    /// Explains what a transfer is doing and why.
    pub(crate) async fn explain(&self, transfer_id: u64) -> Result<Explanation, Problem> {
        use v1::explain_transfer_request::Target;
        let request = v1::ExplainTransferRequest {
            target: Some(Target::TransferId(transfer_id)),
        };
        self.call(CALL_TIMEOUT, self.client.clone().explain_transfer(request))
            .await?
            .try_into()
    }

    /// Returns the peer's limits.
    pub(crate) async fn limits(&self) -> Result<Limits, Problem> {
        let request = v1::GetLimitsRequest {};
        let answer = self
            .call(CALL_TIMEOUT, self.client.clone().get_limits(request))
            .await?;
        model::limits(answer.limits)
    }

    /// Changes some of the peer's limits and returns all limits then in force.
    pub(crate) async fn set_limits(&self, update: LimitsUpdate) -> Result<Limits, Problem> {
        let request = v1::SetLimitsRequest {
            limits: Some(update.into()),
        };
        let answer = self
            .call(CALL_TIMEOUT, self.client.clone().set_limits(request))
            .await?;
        model::limits(answer.limits)
    }

    /// Returns the peer's status.
    pub(crate) async fn status(&self) -> Result<Status, Problem> {
        let request = v1::GetStatusRequest {};
        self.call(CALL_TIMEOUT, self.client.clone().get_status(request))
            .await?
            .try_into()
    }
}
