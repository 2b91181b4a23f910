//! Assembly: listener, services, limits and an orderly end.

use std::{io::Write as _, net::SocketAddr};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Config, Options, OptionsError};

/// Why an index ended otherwise than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener failed.
    #[error("serving failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Why `potluck-index` ended otherwise than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The flags make no configuration.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Standard output is closed.
    #[error("cannot say where the index listens: {0}")]
    Output(std::io::Error),
    /// The index could not be opened or failed while it ran.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves an index on `listener` until `shutdown`, then ends within the configured grace.
///
/// # Errors
/// [`ServeError`] where the store cannot be opened or the listener fails.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let _ = (listener, config);
    shutdown.cancelled().await;
    Ok(())
}

/// Binds, says `listening on ADDR` on standard output when ready, and serves until `shutdown`.
///
/// # Errors
/// [`RunError`], each with what to do about it.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), RunError> {
    let config = options.config()?;
    let listen = |source| RunError::Listen {
        address: options.listen,
        source,
    };
    let listener = TcpListener::bind(options.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    writeln!(std::io::stdout(), "listening on {address}").map_err(RunError::Output)?;
    Ok(serve(listener, config, shutdown).await?)
}
