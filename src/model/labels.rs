//! Where a machine is: its zone and its rack, as its owner names them.

use std::{fmt, str::FromStr};

/// Maximum length of a name, in bytes.
pub const MAX_LABEL_LEN: usize = 32;

/// How near another peer is, as far as labels say. The order is the order of preference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// In the same rack, or there is nothing to compare.
    #[default]
    Rack,
    /// In the same zone.
    Zone,
    /// In another zone, or in one that it does not name.
    Elsewhere,
}

/// The name of a zone or a rack: 1 to [`MAX_LABEL_LEN`] letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelValue(Box<str>);

impl LabelValue {
    /// The name, if it is valid.
    pub fn parse(text: &str) -> Option<Self> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_valid = (1..=MAX_LABEL_LEN).contains(&text.len()) && text.chars().all(is_allowed);
        is_valid.then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LabelValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One label, as `zone=NAME` or `rack=NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineLabel {
    /// The zone: between zones, bytes cost money or take long.
    Zone(LabelValue),
    /// The rack within its zone.
    Rack(LabelValue),
}

impl FromStr for MachineLabel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, name) = text.split_once('=').unwrap_or((text, ""));
        let label = match key {
            "zone" => Self::Zone,
            "rack" => Self::Rack,
            _ => return Err("a label is zone=NAME or rack=NAME".to_owned()),
        };
        LabelValue::parse(name).map(label).ok_or_else(|| {
            format!(
                "the name of a {key} has 1 to {MAX_LABEL_LEN} letters, digits, `-`, `_` and `.`, \
                 as in {key}=a"
            )
        })
    }
}

impl fmt::Display for MachineLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zone(name) => write!(f, "zone={name}"),
            Self::Rack(name) => write!(f, "rack={name}"),
        }
    }
}

/// The labels of a machine. What another peer says of itself is a claim, which only decides whom to
/// prefer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// The zone.
    pub zone: Option<LabelValue>,
    /// The rack within the zone.
    pub rack: Option<LabelValue>,
}

impl Labels {
    /// The labels of this list.
    ///
    /// # Errors
    /// A key is there twice.
    pub fn of(list: &[MachineLabel]) -> Result<Self, String> {
        let mut labels = Self::default();
        for label in list {
            let (key, field, name) = match label {
                MachineLabel::Zone(name) => ("zone", &mut labels.zone, name),
                MachineLabel::Rack(name) => ("rack", &mut labels.rack, name),
            };
            if let Some(other) = field.replace(name.clone()) {
                return Err(format!(
                    "a machine has one {key}: give {key}={other} or {key}={name}"
                ));
            }
        }
        Ok(labels)
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.zone.is_none() && self.rack.is_none()
    }

    /// How near a peer with these labels is. Without a zone here, all zones are the same.
    pub fn distance_to(&self, peer: &Self) -> Distance {
        let is_same_zone = self.zone.is_none() || self.zone == peer.zone;
        let is_same_rack = self.rack.is_none() || self.rack == peer.rack;
        match (is_same_zone, is_same_rack) {
            (false, _) => Distance::Elsewhere,
            (true, false) => Distance::Zone,
            (true, true) => Distance::Rack,
        }
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.zone.clone().map(MachineLabel::Zone);
        let labels = zone.into_iter().chain(self.rack.clone().map(MachineLabel::Rack));
        let words: Vec<String> = labels.map(|label| label.to_string()).collect();
        f.write_str(&words.join(" "))
    }
}

/// Whether two zones are the same, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameZone {
    /// Both name the same zone.
    Yes,
    /// They name different zones.
    No,
    /// At least one names none.
    Unknown,
}

impl SameZone {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Yes, Self::No, Self::Unknown];

    /// Compares two zones.
    pub fn of(own: Option<&LabelValue>, other: Option<&LabelValue>) -> Self {
        match (own, other) {
            (Some(own), Some(other)) if own == other => Self::Yes,
            (Some(_), Some(_)) => Self::No,
            _ => Self::Unknown,
        }
    }

    /// The value as a word of a metric.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(words: &[&str]) -> Result<Labels, String> {
        let list: Result<Vec<MachineLabel>, String> =
            words.iter().map(|word| word.parse()).collect();
        Labels::of(&list?)
    }

    #[test]
    fn only_short_names_of_a_zone_and_a_rack_are_accepted() {
        let all = labels(&["zone=eu-1.b", "rack=R_7"]).unwrap();
        assert_eq!(all.to_string(), "zone=eu-1.b rack=R_7");
        let long = format!("zone={}", "x".repeat(MAX_LABEL_LEN + 1));
        for wrong in ["", "zone", "zone=", "zone=a b", "zone=ü", "rack=a/b", &long] {
            let error = labels(&[wrong]).unwrap_err();
            assert!(error.contains("zone=") || error.contains("rack="), "{error}");
        }
        assert!(
            labels(&["region=eu"])
                .unwrap_err()
                .contains("zone=NAME or rack=NAME")
        );
        assert!(labels(&["zone=a", "zone=b"]).unwrap_err().contains("one zone"));
    }

    #[test]
    fn a_rack_is_nearer_than_a_zone_and_nothing_is_far_without_labels() {
        let distance =
            |own: &[&str], peer: &[&str]| labels(own).unwrap().distance_to(&labels(peer).unwrap());
        use Distance::{Elsewhere, Rack, Zone};
        for (own, peer, expected) in [
            (&[][..], &["zone=b", "rack=1"][..], Rack),
            (&["zone=a"], &["zone=a", "rack=1"], Rack),
            (&["zone=a"], &["zone=b"], Elsewhere),
            (&["zone=a"], &[], Elsewhere),
            (&["zone=a", "rack=1"], &["zone=a", "rack=1"], Rack),
            (&["zone=a", "rack=1"], &["zone=a", "rack=2"], Zone),
            (&["zone=a", "rack=1"], &["zone=a"], Zone),
            (&["zone=a", "rack=1"], &["zone=b", "rack=1"], Elsewhere),
            (&["rack=1"], &["rack=2"], Zone),
        ] {
            assert_eq!(distance(own, peer), expected, "{own:?} and {peer:?}");
        }
        assert!(Rack < Zone && Zone < Elsewhere);
    }
}
