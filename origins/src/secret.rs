//! A token that no log shows.

use std::fmt;

use zeroize::Zeroizing;

/// The value of an `Authorization` header. `Debug` hides it, and its memory is cleared.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A bearer token.
    pub fn bearer(token: &str) -> Self {
        Self(Zeroizing::new(format!("Bearer {}", token.trim())))
    }

    /// A value as it stands in the header.
    pub fn header(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// Whether it is a bearer token.
    pub fn is_bearer(&self) -> bool {
        let scheme = self.0.get(..7);
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer "))
    }

    /// The value of the header.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
