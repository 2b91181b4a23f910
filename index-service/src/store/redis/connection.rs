//! The connection to a Redis Cluster, and what is checked before it is used.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use potluck_core::{durable, model::ClusterId};
use redis::{
    Client, ErrorKind, Pipeline, RedisError, TlsCertificates, Value,
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr},
};

use super::keys::{LAYOUT, META};

/// Oldest version with everything that the scripts use: before, a script had to ask for the
/// replication of its effects.
const OLDEST: (u32, u32) = (7, 0);

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait for one answer: longer than the slowest script, which registers 10,000 files.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Deadline of one command with its repetitions: shorter than the 8 seconds for which a caller waits.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(4);

/// How long to wait at the start for a cluster that is still forming.
const FORMING: Duration = Duration::from_secs(20);

/// File in the data folder with the id of the cluster that the index used last.
const REMEMBERED: &str = "redis-cluster-id";

/// How to reach a Redis Cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Addresses of some nodes, as `redis://HOST:PORT`, or `rediss://HOST:PORT` with TLS.
    pub nodes: Vec<String>,
    /// The user of Redis's access control lists; `None` for the default user.
    pub user: Option<String>,
    /// The password; `None` if Redis wants none.
    pub password: Option<String>,
    /// The CA of the nodes' certificates in PEM; `None` for those that the system trusts.
    pub ca: Option<PathBuf>,
    /// The folder where the index remembers which cluster it uses; `None` to accept any.
    pub folder: Option<PathBuf>,
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("nodes", &self.nodes)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "secret"))
            .field("ca", &self.ca)
            .field("folder", &self.folder)
            .finish()
    }
}

/// The reason why a Redis Cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RedisOpenError {
    /// No node answers.
    #[error(
        "no node of the Redis Cluster answers ({reason}): start the cluster, or correct --store"
    )]
    Unreachable {
        /// What each node said.
        reason: String,
    },
    /// The password is missing or wrong.
    #[error(
        "Redis at {node} refuses the password ({reason}): give the right one with \
         --store-password-file or POTLUCK_INDEX_STORE_PASSWORD"
    )]
    Password {
        /// The node.
        node: String,
        /// Its message.
        reason: String,
    },
    /// A single server.
    #[error(
        "Redis at {node} is not a cluster: start its nodes with `cluster-enabled yes` and join them \
         with `redis-cli --cluster create`"
    )]
    NotACluster {
        /// The node.
        node: String,
    },
    /// Too old.
    #[error(
        "Redis at {node} has version {version}, but the index needs {}.{} or later, or Valkey: \
         upgrade it", OLDEST.0, OLDEST.1
    )]
    Version {
        /// The node.
        node: String,
        /// Its version.
        version: String,
    },
    /// Not all slots are served.
    #[error(
        "the Redis Cluster is not ready ({state}): repair it with `redis-cli --cluster check {node}`"
    )]
    NotReady {
        /// The node, as HOST:PORT.
        node: String,
        /// `CLUSTER INFO`, in short.
        state: String,
    },
    /// The data is of another version of Potluck.
    #[error(
        "the registrations in this Redis Cluster have the layout {found}, but this index uses \
         {LAYOUT}: run the version of potluck that wrote them, or give the index an empty cluster"
    )]
    Layout {
        /// The layout found.
        found: String,
    },
    /// Another cluster than last time.
    #[error(
        "this Redis Cluster has the cluster id {found}, but this index used {expected} before: correct \
         --store, or delete {} to use the new one", file.display()
    )]
    OtherCluster {
        /// The id found.
        found: ClusterId,
        /// The id that the index remembers.
        expected: ClusterId,
        /// Where it remembers that.
        file: PathBuf,
    },
    /// The remembered id cannot be read or written.
    #[error("cannot use {}: {source}", file.display())]
    Remember {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The CA's certificate cannot be read.
    #[error("cannot read the certificate {}: {source}; correct --store-ca", file.display())]
    Ca {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Redis failed while it was read.
    #[error("the Redis Cluster failed: {0}")]
    Failed(#[from] RedisError),
    /// The stored data is invalid.
    #[error("{0}; delete the keys `potluck:*` to start again")]
    Damaged(String),
}

/// Connects and checks the cluster. Waits a while for one that is still forming.
///
/// # Errors
/// [`RedisOpenError`].
pub(super) async fn connect(
    config: &RedisConfig,
) -> Result<(ClusterConnection, ClusterId), RedisOpenError> {
    let certificates = match &config.ca {
        None => None,
        Some(file) => {
            let pem = std::fs::read(file).map_err(|source| RedisOpenError::Ca {
                file: file.clone(),
                source,
            })?;
            Some(TlsCertificates {
                client_tls: None,
                root_cert: Some(pem),
            })
        }
    };
    let deadline = tokio::time::Instant::now() + FORMING;
    loop {
        match check_nodes(config, certificates.as_ref()).await {
            Ok(()) => break,
            Err(RedisOpenError::NotReady { node, state })
                if tokio::time::Instant::now() < deadline =>
            {
                tracing::info!(node, state, "waits for the Redis Cluster to be ready");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(error),
        }
    }
    let mut builder = ClusterClient::builder(config.nodes.iter().map(String::as_str))
        .connection_timeout(CONNECT_TIMEOUT)
        .response_timeout(RESPONSE_TIMEOUT)
        .overall_response_timeout(Some(COMMAND_TIMEOUT))
        .retries(2)
        .min_retry_wait(50)
        .max_retry_wait(300);
    if let Some(user) = &config.user {
        builder = builder.username(user);
    }
    if let Some(password) = &config.password {
        builder = builder.password(password);
    }
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    let mut connection = builder.build()?.get_async_connection().await?;
    let id = identify(&mut connection, config.folder.as_deref()).await?;
    Ok((connection, id))
}

/// Checks the first node that answers.
async fn check_nodes(
    config: &RedisConfig,
    certificates: Option<&TlsCertificates>,
) -> Result<(), RedisOpenError> {
    let mut reasons = Vec::new();
    for node in &config.nodes {
        match check_node(config, node, certificates).await {
            Err(RedisOpenError::Failed(error)) if is_refused(&error) => {
                return Err(RedisOpenError::Password {
                    node: node.clone(),
                    reason: error.to_string(),
                });
            }
            Err(RedisOpenError::Failed(error)) => reasons.push(format!("{node}: {error}")),
            checked => return checked,
        }
    }
    Err(RedisOpenError::Unreachable {
        reason: reasons.join("; "),
    })
}

fn is_refused(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

async fn check_node(
    config: &RedisConfig,
    node: &str,
    certificates: Option<&TlsCertificates>,
) -> Result<(), RedisOpenError> {
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(node, certificates.clone())?,
        None => Client::open(node)?,
    };
    let timeout = |_| RedisError::from((ErrorKind::Io, "it does not answer in time"));
    let connecting = client.get_multiplexed_async_connection();
    let mut connection = tokio::time::timeout(CONNECT_TIMEOUT * 2, connecting)
        .await
        .map_err(timeout)??;
    if let Some(password) = &config.password {
        let mut auth = redis::cmd("AUTH");
        if let Some(user) = &config.user {
            auth.arg(user);
        }
        let () = auth.arg(password).query_async(&mut connection).await?;
    }
    let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
    let node = node.to_owned();
    if field(&info, "cluster_enabled") != Some("1") {
        return Err(RedisOpenError::NotACluster { node });
    }
    let version = field(&info, "redis_version").unwrap_or_default();
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST {
        let version = version.to_owned();
        return Err(RedisOpenError::Version { node, version });
    }
    let mut info = redis::cmd("CLUSTER");
    let state: String = info.arg("INFO").query_async(&mut connection).await?;
    if field(&state, "cluster_state") != Some("ok") {
        let slots = field(&state, "cluster_slots_ok").unwrap_or("0");
        return Err(RedisOpenError::NotReady {
            node: node.rsplit('/').next().unwrap_or_default().to_owned(),
            state: format!("{slots} of 16384 slots are served"),
        });
    }
    Ok(())
}

/// The value of a field in the answer to `INFO`.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let line = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':').map(str::trim);
    info.lines().find_map(line)
}

/// Reads or sets the layout and the cluster id, and compares the id with that of the last start.
async fn identify(
    connection: &mut ClusterConnection,
    folder: Option<&Path>,
) -> Result<ClusterId, RedisOpenError> {
    let file = folder.map(|folder| folder.join(REMEMBERED));
    let remembered = match &file {
        None => None,
        Some(file) => read_remembered(file)?,
    };
    let id = claim(connection, remembered.unwrap_or_else(ClusterId::generate)).await?;
    let Some(file) = file else { return Ok(id) };
    match remembered {
        Some(expected) if expected != id => Err(RedisOpenError::OtherCluster {
            found: id,
            expected,
            file,
        }),
        Some(_) => Ok(id),
        None => {
            let folder = file.parent().unwrap_or_else(|| Path::new("."));
            durable::create_folders(folder, 0o700)
                .and_then(|()| durable::write(&file, format!("{id}\n").as_bytes(), 0o600))
                .map_err(|source| RedisOpenError::Remember { file, source })?;
            Ok(id)
        }
    }
}

fn read_remembered(file: &Path) -> Result<Option<ClusterId>, RedisOpenError> {
    let failed = |source| RedisOpenError::Remember {
        file: file.to_owned(),
        source,
    };
    match std::fs::read_to_string(file) {
        Ok(text) => match ClusterId::from_hex(text.trim()) {
            Some(id) => Ok(Some(id)),
            None => Err(failed(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "it does not contain a cluster id: delete it",
            ))),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Gives an empty cluster this layout and this id, and returns the id that it has now.
pub(super) async fn claim(
    connection: &mut ClusterConnection,
    id: ClusterId,
) -> Result<ClusterId, RedisOpenError> {
    let id = id.to_string();
    for (name, value) in [("layout", LAYOUT), ("cluster_id", &id)] {
        let mut set = redis::cmd("HSETNX");
        set.arg(META).arg(name).arg(value);
        let _: i64 = set.query_async(connection).await?;
    }
    let mut get = redis::cmd("HMGET");
    get.arg(META).arg("layout").arg("cluster_id");
    let (layout, found): (Option<String>, Option<String>) = get.query_async(connection).await?;
    let layout = layout.unwrap_or_default();
    if layout != LAYOUT {
        return Err(RedisOpenError::Layout { found: layout });
    }
    let found = found.unwrap_or_default();
    ClusterId::from_hex(&found)
        .ok_or_else(|| RedisOpenError::Damaged(format!("`{found}` is not a cluster id")))
}

/// Ranges of slots, each with the name of its primary.
#[derive(Debug, Clone, Default)]
pub(super) struct Topology {
    ranges: Vec<(u16, u16, String)>,
}

impl Topology {
    /// Asks a primary.
    pub(super) async fn read(connection: &mut ClusterConnection) -> Result<Self, RedisError> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let route =
            redis::cluster_routing::RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
        let answer = connection.route_command(slots, route).await?;
        let Value::Array(ranges) = answer else {
            return Err(malformed());
        };
        let range = |range: Value| {
            let Value::Array(parts) = range else {
                return None;
            };
            let (Value::Int(from), Value::Int(to), Value::Array(primary)) =
                (parts.first()?, parts.get(1)?, parts.get(2)?)
            else {
                return None;
            };
            let name = format!("{:?}{:?}", primary.first()?, primary.get(1)?);
            Some((u16::try_from(*from).ok()?, u16::try_from(*to).ok()?, name))
        };
        let ranges: Option<Vec<_>> = ranges.into_iter().map(range).collect();
        Ok(Self {
            ranges: ranges.ok_or_else(malformed)?,
        })
    }

    /// The name of the primary of a slot, if it has one.
    pub(super) fn primary_of(&self, slot: u16) -> Option<&str> {
        let range = self
            .ranges
            .iter()
            .find(|(from, to, _)| (*from..=*to).contains(&slot))?;
        Some(&range.2)
    }
}

/// Sends a pipeline of `count` commands to the primary of a slot.
pub(super) async fn run_at_primary(
    connection: &mut ClusterConnection,
    slot: u16,
    pipe: Pipeline,
    count: usize,
) -> Result<Vec<Value>, RedisError> {
    let primary = SingleNodeRoutingInfo::SpecificNode(Route::new(slot, SlotAddr::Master));
    let answers = connection.route_pipeline(pipe, 0, count, primary).await?;
    answers.into_iter().map(Value::extract_error).collect()
}

/// The error of an answer that is not as documented.
pub(super) fn malformed() -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "an answer of an unknown form"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_from_info() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:ab\r\n\r\n# Cluster\r\ncluster_enabled:1\r\n";
        assert_eq!(field(info, "redis_version"), Some("7.0.15"));
        assert_eq!(field(info, "cluster_enabled"), Some("1"));
        assert_eq!(field(info, "cluster"), None);
    }

    #[test]
    fn the_password_is_not_shown() {
        let config = RedisConfig {
            nodes: Vec::new(),
            user: None,
            password: Some("hunter2".to_owned()),
            ca: None,
            folder: None,
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
