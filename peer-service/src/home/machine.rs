//! Identifies the machine, as far as possible.
//!
//! The id is the machine id of systemd and D-Bus (machine-id(5)). It is created when the operating
//! system is installed, and again for a properly cloned machine. It is not used in a container,
//! whose id may change at each start, nor if the id is valid for the current boot only.

use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Paths of the id; the second is for systems without systemd.
const FILES: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// Exists if systemd's machine id is valid for the current boot only.
const TRANSIENT: &str = "/run/machine-id";

/// Signs of a container: Docker, Podman, systemd-nspawn, Kubernetes and others.
const CONTAINER_FILES: [&str; 3] = ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"];
const CONTAINER_VARIABLES: [&str; 2] = ["container", "KUBERNETES_SERVICE_HOST"];

/// Maximum bytes of the id that are read: 32 digits, with a reserve.
const MAX_LEN: u64 = 256;

/// A hash of the machine id, as 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MachineId(String);

impl MachineId {
    /// The id of this machine; `None` if it has no permanent one.
    pub(crate) fn of_this() -> Option<Self> {
        let is_container = CONTAINER_FILES.iter().any(|path| Path::new(path).exists())
            || CONTAINER_VARIABLES
                .iter()
                .any(|name| std::env::var_os(name).is_some());
        if is_container || Path::new(TRANSIENT).exists() {
            return None;
        }
        FILES.iter().find_map(|path| {
            use std::io::Read as _;
            let mut text = String::new();
            let file = std::fs::File::open(path).ok()?;
            file.take(MAX_LEN).read_to_string(&mut text).ok()?;
            Self::from_text(text.trim())
        })
    }

    /// Hashes the contents of the id file. machine-id(5) forbids exposing the id itself, and asks
    /// for an application-specific hash.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        // systemd writes this on a machine that has no id yet.
        if text.is_empty() || text == "uninitialized" {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(b"potluck/machine/v1\0");
        hash.update(text.as_bytes());
        Some(Self(hex::encode(hash.finalize())))
    }

    /// Whether a text has the format of a [`MachineId`].
    pub(crate) fn is_valid(text: &str) -> bool {
        text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_ids_differ_and_do_not_reveal_the_source() {
        let [a, b] = ["a", "b"].map(|text| MachineId::from_text(text).unwrap());
        assert_ne!(a, b);
        assert!(MachineId::is_valid(a.as_str()) && !MachineId::is_valid("a"));
        for none in ["", "uninitialized"] {
            assert_eq!(MachineId::from_text(none), None);
        }
    }
}
