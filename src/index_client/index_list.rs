//! The indexes that a client may use.

use std::fmt;

use crate::{
    Problem, Reason,
    grpc::transport::Endpoint,
    network::tls::{ServerIdentity, TlsContext},
};

/// Maximum indexes in a list: more than share one store in practice.
const MAX_INDEXES: usize = 16;

/// The indexes that a client may use, in order of preference; at least one. They must share a store
/// if there are several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexList(Vec<Endpoint>);

impl IndexList {
    /// Parses addresses that are separated by commas, each with `parse`.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`] for an address that is invalid, empty or listed twice, and for a
    /// list that is too long.
    pub fn parse(
        text: &str,
        parse: impl Fn(&str) -> Result<Endpoint, Problem>,
    ) -> Result<Self, Problem> {
        let bad = |why: String| {
            let message = format!("`{text}` is not a list of indexes: {why}");
            Problem::new(Reason::InvalidAddress, message)
        };
        let mut endpoints = Vec::new();
        for address in text.split(',') {
            let endpoint = parse(address.trim())?;
            if endpoints.contains(&endpoint) {
                return Err(bad(format!("{endpoint} is listed twice")));
            }
            endpoints.push(endpoint);
        }
        match endpoints.len() {
            count if count > MAX_INDEXES => {
                Err(bad(format!("{count} indexes, but the maximum is {MAX_INDEXES}")))
            }
            _ => Ok(Self(endpoints)),
        }
    }

    /// The index that is used first.
    pub fn first(&self) -> &Endpoint {
        &self.0[0]
    }

    /// The indexes, in order of preference.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.0.iter()
    }

    /// The same indexes with TLS, as the index of a network.
    ///
    /// # Errors
    /// [`Reason::InvalidAddress`] for a Unix socket.
    pub fn secured(self, tls: &TlsContext) -> Result<Self, Problem> {
        let secured = |endpoint: Endpoint| endpoint.secured(tls, ServerIdentity::Index);
        let endpoints = self.0.into_iter().map(secured);
        Ok(Self(endpoints.collect::<Result<_, _>>()?))
    }
}

impl From<Endpoint> for IndexList {
    fn from(endpoint: Endpoint) -> Self {
        Self(vec![endpoint])
    }
}

impl fmt::Display for IndexList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, endpoint) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(f, "{comma}{endpoint}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<IndexList, Problem> {
        IndexList::parse(text, str::parse)
    }

    #[test]
    fn a_list_keeps_its_order() {
        let list = parse("b.example:1, 1313,a.example:2").unwrap();
        assert_eq!(
            list.to_string(),
            "http://b.example:1,http://127.0.0.1:1313,http://a.example:2"
        );
        assert_eq!(list.first().to_string(), "http://b.example:1");
    }

    #[test]
    fn a_bad_list_is_refused() {
        let many: Vec<String> = (1..18).map(|port| port.to_string()).collect();
        for bad in ["", "1,", "1,,2", "1,127.0.0.1:1", "1,x", &many.join(",")] {
            let problem = parse(bad).unwrap_err();
            assert_eq!(problem.reason, Reason::InvalidAddress, "{bad}");
        }
    }
}
