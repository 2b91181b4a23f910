//! The ways in which the server misbehaves: chosen by the query of a request, which a client keeps
//! with each range, or by a plan of the test.

use std::fmt;

use parking_lot::Mutex;
use serde::Deserialize;

/// A fault, and its parameter.
#[derive(Debug, Default, Clone, Deserialize)]
pub struct FaultQuery {
    /// The fault.
    #[serde(default)]
    pub fault: Fault,
    /// Its parameter: an address for redirects, seconds for `Retry-After`, an offset for damage.
    #[serde(default)]
    pub at: String,
    /// Maximum bytes per second of each response; 0: no limit.
    #[serde(default)]
    pub rate: u64,
}

/// How a response differs from a right one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Not at all.
    #[default]
    None,
    /// Ranges are ignored: 200 with the whole file.
    NoRanges,
    /// Other bytes than the ones asked for, with a truthful `Content-Range`.
    OtherRange,
    /// More bytes than `Content-Range` says.
    TooMuch,
    /// The connection ends in the middle of the body.
    TooLittle,
    /// `Content-Encoding: gzip`.
    Gzip,
    /// A validator that differs in each response.
    Changes,
    /// A size that differs from that of the file.
    OtherSize,
    /// One byte of the file is wrong, at the offset `at`.
    Damaged,
    /// A redirect to `at`.
    Redirect,
    /// 429, with `Retry-After` of `at` seconds.
    Busy,
    /// 503.
    Broken,
    /// 401.
    Denied,
    /// Never an answer.
    Silent,
}

/// Chooses the fault of a request for content by its path.
type Chooser = Box<dyn FnMut(&str) -> FaultQuery + Send>;

/// Faults that a test chooses while the server runs.
#[derive(Default)]
pub struct FaultPlan(Mutex<Option<Chooser>>);

impl FaultPlan {
    /// From now on `choose` is asked for each request for content without a fault of its own.
    pub fn set(&self, choose: impl FnMut(&str) -> FaultQuery + Send + 'static) {
        *self.0.lock() = Some(Box::new(choose));
    }

    /// No faults from now on.
    pub fn clear(&self) {
        *self.0.lock() = None;
    }

    pub(crate) fn choose(&self, path: &str, query: FaultQuery) -> FaultQuery {
        match (query.fault, &mut *self.0.lock()) {
            (Fault::None, Some(choose)) => choose(path),
            _ => query,
        }
    }
}

impl fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultPlan")
    }
}
