//! `/metrics`: the engine's counts in Prometheus's text format 0.0.4.

use std::fmt::Write as _;

use crate::engine::{Engine, Histogram, ModelMetrics};
use crate::os::process;

/// Collects lines; a name's help and type come once, before its first line.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0 += name;
        for (i, (label, text)) in labels.iter().enumerate() {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{escaped}\"", if i == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.line(name, &[], value);
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

type Labels = &'static [(&'static str, &'static str)];
type OfModel = (&'static str, &'static str, &'static str, Labels, fn(&ModelMetrics) -> u64);

/// Gauges and counters of a model: name, type, help, labels beside the model, value.
const OF_MODEL: &[OfModel] = &[
    ("sotto_generations_total", "counter", "Answers that ended, by reason.", &[("finish", "stop")], |m| {
        m.finished[0].get()
    }),
    ("sotto_generations_total", "", "", &[("finish", "length")], |m| m.finished[1].get()),
    ("sotto_generations_total", "", "", &[("finish", "error")], |m| m.finished[2].get()),
    ("sotto_prompt_tokens_total", "counter", "Tokens of prompts.", &[("source", "computed")], |m| {
        m.prompt_computed.get()
    }),
    ("sotto_prompt_tokens_total", "", "", &[("source", "cached")], |m| m.prompt_cached.get()),
    ("sotto_completion_tokens_total", "counter", "Tokens of answers.", &[], |m| m.completion.get()),
    ("sotto_model_resident_bytes", "gauge", "Weights of a loaded model.", &[], |m| m.weight_bytes.get()),
    ("sotto_kv_bytes", "gauge", "Keys and values that are kept.", &[], |m| m.kv_bytes.get()),
];

type TimesOf = fn(&ModelMetrics) -> &Histogram;

const TIMES: &[(&str, &str, TimesOf)] = &[
    ("sotto_queue_wait_seconds", "From a request to its place.", |m| &m.queue_wait),
    ("sotto_time_to_first_token_seconds", "From a request to its first text.", |m| &m.first_token),
    ("sotto_inter_token_seconds", "Between two tokens of an answer.", |m| &m.inter_token),
    ("sotto_model_load_seconds", "Loading a model.", |m| &m.load),
];

/// The page.
pub(super) fn page(engine: &Engine) -> String {
    let (metrics, status) = (engine.metrics(), engine.status());
    let mut page = Page(String::with_capacity(16 << 10));
    page.head("sotto_build_info", "gauge", "1; the version is a label.");
    page.line("sotto_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.head("sotto_requests_total", "counter", "Requests, by what their answer began with.");
    metrics.each_request(|[door, route, code], n| {
        page.line("sotto_requests_total", &[("door", door), ("route", route), ("code", code)], n);
    });
    for (name, kind, help, labels, value) in OF_MODEL {
        if !kind.is_empty() {
            page.head(name, kind, help);
        }
        metrics.each_model(|id, model| {
            let all: Vec<(&str, &str)> = [("model", id)].into_iter().chain(labels.iter().copied()).collect();
            page.line(name, &all, value(model));
        });
    }
    for (name, help, times) in TIMES {
        page.head(name, "histogram", help);
        metrics.each_model(|id, model| histogram(&mut page, name, id, times(model)));
    }
    page.head("sotto_errors_total", "counter", "Faults that were told to callers.");
    metrics.each_error(|code, n| page.line("sotto_errors_total", &[("code", code.as_str())], n));
    page.head("sotto_queue_length", "gauge", "Requests that wait.");
    for (class, n) in [("interactive", status.queue_interactive), ("background", status.queue_background)] {
        page.line("sotto_queue_length", &[("class", class)], n);
    }
    page.one("sotto_active_sequences", "gauge", "Answers under way.", status.active_generations);
    let mut prefix = 0;
    metrics.each_model(|_, model| prefix += model.prefix_bytes.get());
    page.one("sotto_prefix_cache_bytes", "gauge", "Beginnings that are kept for later requests.", prefix);
    let busy = seconds(metrics.busy_us.get());
    page.one("sotto_engine_busy_seconds_total", "counter", "Time in which steps ran.", busy);
    page.head("sotto_paused_seconds_total", "counter", "Time in which answers rested.");
    page.line("sotto_paused_seconds_total", &[("cause", "reader")], seconds(metrics.reader_us.get()));
    page.line("sotto_paused_seconds_total", &[("cause", "thermal")], seconds(metrics.heat_us.get()));
    page.one("sotto_bus_connected", "gauge", "1 while on the bus.", u8::from(metrics.bus()));
    let usage = process::usage().unwrap_or_default();
    page.one("process_resident_memory_bytes", "gauge", "Resident memory.", usage.rss_bytes);
    page.one("process_cpu_seconds_total", "counter", "Processor time, user and system.", usage.cpu_s);
    page.one("process_open_fds", "gauge", "Open file descriptors.", usage.n_fds);
    page.0
}

fn histogram(page: &mut Page, name: &str, model: &str, times: &Histogram) {
    let (counts, n, sum_us) = times.cumulated();
    let bucket = format!("{name}_bucket");
    for (bound, count) in Histogram::BOUNDS_US.iter().zip(counts) {
        page.line(&bucket, &[("model", model), ("le", &seconds(*bound).to_string())], count);
    }
    page.line(&bucket, &[("model", model), ("le", "+Inf")], n);
    page.line(&format!("{name}_sum"), &[("model", model)], seconds(sum_us));
    page.line(&format!("{name}_count"), &[("model", model)], n);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut page = Page(String::new());
        page.line("x", &[("a", "b\"\\\n"), ("c", "d")], 1.5);
        page.line("y", &[], 2);
        assert_eq!(page.0, "x{a=\"b\\\"\\\\\\n\",c=\"d\"} 1.5\ny 2\n");
    }
}
