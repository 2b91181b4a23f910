//! Whether the index can connect to a peer.

/// The result of a check by the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reachability {
    /// The peer answered.
    Reachable,
    /// The connection was refused.
    Refused,
    /// Nothing answered in time.
    TimedOut,
    /// Something answered that is not this peer.
    NotThisPeer,
    /// The peer did not answer; the index gives no details.
    Unreachable,
    /// The index does not check this peer.
    NotChecked,
}

impl Reachability {
    /// Whether the peer can be reached; `None` if that is not known.
    pub const fn is_reachable(self) -> Option<bool> {
        match self {
            Self::Reachable => Some(true),
            Self::Refused | Self::TimedOut | Self::NotThisPeer | Self::Unreachable => Some(false),
            Self::NotChecked => None,
        }
    }

    /// What the index found at an address that it cannot reach; `None` if there is nothing to say.
    pub const fn finding(self) -> Option<&'static str> {
        match self {
            Self::Refused => Some("the connection was refused"),
            Self::TimedOut => Some("nothing answered"),
            Self::NotThisPeer => Some("another program or peer answered"),
            Self::Reachable | Self::Unreachable | Self::NotChecked => None,
        }
    }
}
