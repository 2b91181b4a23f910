//! The metrics of one service, and their text for Prometheus.
//!
//! Counters on the way of data are plain atomics; everything else is read when Prometheus asks
//! ([`Gather`]). Invariant: labels have few values, known in advance; no names, ids or addresses.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Metric, Registry},
};

/// The beginning of all names.
const PREFIX: &str = "potluck";

/// The metrics of a service. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix(PREFIX))))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Reads values of a part of a service when Prometheus asks.
pub trait Gather: fmt::Debug + Send + Sync + 'static {
    /// Adds the values.
    ///
    /// # Errors
    /// Passes on those of `values`.
    fn gather(&self, values: &mut Values<'_>) -> fmt::Result;
}

impl Metrics {
    /// Adds a counter, histogram or family of them. `name` is without the prefix `potluck_`, and for
    /// counters without `_total`; `help` without a full stop.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.0.lock().register(name, help, metric);
    }

    /// Adds values that are read when Prometheus asks.
    pub fn gather_from(&self, source: impl Gather) {
        self.0.lock().register_collector(Box::new(Gathered(source)));
    }

    /// All metrics in Prometheus's text format, version 0.0.4.
    pub fn text(&self) -> String {
        let mut open_metrics = String::new();
        text::encode(&mut open_metrics, &self.0.lock()).expect("a string takes any text");
        prometheus_text(&open_metrics)
    }
}

/// Where [`Gather::gather`] puts values.
#[derive(Debug)]
pub struct Values<'a>(DescriptorEncoder<'a>);

impl Values<'_> {
    /// Adds a value that can go up and down. `name` is without the prefix `potluck_`, and `help`
    /// without a full stop.
    ///
    /// # Errors
    /// Only if there is no memory for text.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.add(name, help, &ConstGauge::new(value))
    }

    /// Adds a value that only grows. `name` is without `potluck_` and `_total`.
    ///
    /// # Errors
    /// As [`Self::gauge`].
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.add(name, help, &ConstCounter::new(value))
    }

    /// Adds a value that only grows and has a fraction, such as seconds.
    ///
    /// # Errors
    /// As [`Self::gauge`].
    pub fn counter_f64(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.add(name, help, &ConstCounter::new(value))
    }

    /// Adds values that can go up and down. One label distinguishes them.
    ///
    /// # Errors
    /// As [`Self::gauge`].
    pub fn gauges<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, f64)>,
    ) -> fmt::Result {
        let values = values
            .into_iter()
            .map(|(word, value)| (word, ConstGauge::new(value)));
        self.family(name, help, label, values)
    }

    /// Adds values that only grow. One label distinguishes them. `name` is without `potluck_` and
    /// `_total`.
    ///
    /// # Errors
    /// As [`Self::gauge`].
    pub fn counters<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let values = values
            .into_iter()
            .map(|(word, value)| (word, ConstCounter::new(value)));
        self.family(name, help, label, values)
    }

    fn family<'v, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'v str, M)>,
    ) -> fmt::Result {
        let mut values = values.peekable();
        let Some((_, first)) = values.peek() else {
            return Ok(());
        };
        let (help, kind) = (format!("{help}."), first.metric_type());
        let mut family = self.0.encode_descriptor(name, &help, None, kind)?;
        for (word, metric) in values {
            metric.encode(family.encode_family(&[(label, word)])?)?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        let help = format!("{help}.");
        let encoder = self
            .0
            .encode_descriptor(name, &help, None, metric.metric_type())?;
        metric.encode(encoder)
    }
}

#[derive(Debug)]
struct Gathered<T>(T);

impl<T: Gather> Collector for Gathered<T> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.gather(&mut Values(encoder))
    }
}

/// OpenMetrics text as Prometheus text 0.0.4, which more programs read: there, a counter has the
/// name of its samples in `HELP` and `TYPE` too, and there is no end mark.
fn prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let name_of = |line: &'_ str, mark: &str| {
            let rest = line.strip_prefix(mark)?;
            rest.split_once(' ')
                .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        };
        let (mark, name, rest) = match (name_of(line, "# HELP "), name_of(line, "# TYPE ")) {
            (Some((name, rest)), _) => {
                let is_counter = lines.peek() == Some(&&*format!("# TYPE {name} counter"));
                let suffix = if is_counter { "_total" } else { "" };
                ("# HELP", name + suffix, rest)
            }
            (_, Some((name, kind))) => {
                let suffix = if kind == "counter" { "_total" } else { "" };
                ("# TYPE", name + suffix, kind)
            }
            _ if line.starts_with("# EOF") || line.starts_with("# UNIT") => continue,
            _ => {
                text.push_str(line);
                text.push('\n');
                continue;
            }
        };
        writeln!(text, "{mark} {name} {rest}").expect("a string takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

    use super::*;

    #[derive(Debug)]
    struct Tank;

    impl Gather for Tank {
        fn gather(&self, values: &mut Values<'_>) -> fmt::Result {
            values.gauge("level_ratio", "How full the tank is", 0.5)?;
            values.counter("drops", "Drops so far", 7)?;
            values.gauges("valves", "Valves", "state", [("open", 2.0), ("closed", 0.0)])
        }
    }

    #[test]
    fn metrics_are_prometheus_text() {
        let metrics = Metrics::default();
        let counter = Counter::<u64>::default();
        metrics.register("calls", "Calls", counter.clone());
        metrics.register("seconds", "Time", Histogram::new([1.0]));
        metrics.gather_from(Tank);
        counter.inc_by(3);
        let expected = "\
            # HELP potluck_calls_total Calls.\n\
            # TYPE potluck_calls_total counter\n\
            potluck_calls_total 3\n\
            # HELP potluck_seconds Time.\n\
            # TYPE potluck_seconds histogram\n\
            potluck_seconds_sum 0.0\n\
            potluck_seconds_count 0\n\
            potluck_seconds_bucket{le=\"1.0\"} 0\n\
            potluck_seconds_bucket{le=\"+Inf\"} 0\n\
            # HELP potluck_level_ratio How full the tank is.\n\
            # TYPE potluck_level_ratio gauge\n\
            potluck_level_ratio 0.5\n\
            # HELP potluck_drops_total Drops so far.\n\
            # TYPE potluck_drops_total counter\n\
            potluck_drops_total 7\n\
            # HELP potluck_valves Valves.\n\
            # TYPE potluck_valves gauge\n\
            potluck_valves{state=\"open\"} 2.0\n\
            potluck_valves{state=\"closed\"} 0.0\n";
        assert_eq!(metrics.text(), expected);
    }
}
