//! The page against its document, and the server against strangers.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::metrics::MetricType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::names::ALL;
use super::*;
use crate::store::Store;

/// The rows of docs/METRICS.md: name, then kind, labels and what it tells.
fn documented() -> BTreeMap<String, [String; 3]> {
    let text = include_str!("../../../docs/METRICS.md");
    let rows = text.lines().filter(|line| line.starts_with("| `larder_"));
    let cells = rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, labels, tells] = cells[..] else {
            panic!("not four cells: {row}");
        };
        let labels = labels.replace(['`', ' '], "");
        (
            name.trim_matches('`').to_owned(),
            [kind.to_owned(), labels, tells.to_owned()],
        )
    });
    cells.collect()
}

const fn kind(kind: MetricType) -> &'static str {
    match kind {
        MetricType::Gauge => "gauge",
        MetricType::Counter => "counter",
        MetricType::Histogram => "histogram",
        _ => "another kind",
    }
}

/// Promise: the document has exactly the metrics there are, each with its kind, labels and meaning.
#[test]
fn the_document_lists_every_metric_and_no_other() {
    let documented = documented();
    assert_eq!(documented.len(), ALL.len(), "{documented:#?}");
    for name in ALL {
        let expected = [
            kind(name.kind).to_owned(),
            name.labels.join(","),
            name.help.to_owned(),
        ];
        assert_eq!(
            documented.get(&name.full()),
            Some(&expected),
            "{}",
            name.full()
        );
    }
}

struct World {
    metrics: Metrics,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let snapshots = Snapshots::start(store, None).await.unwrap();
        let metrics = Metrics::new(snapshots, Arc::default(), Arc::default());
        Self { metrics, dir }
    }

    /// Serves at a socket; its path.
    async fn serve(&self) -> std::path::PathBuf {
        let path = self.dir.path().join("metrics.sock");
        let address = path.to_str().unwrap().parse().unwrap();
        tokio::spawn(serve(address, self.metrics.clone()));
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        path
    }
}

async fn exchange(path: &std::path::Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that has said enough may reset what is still on its way to it.
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8(answer).unwrap()
}

/// Names in a page, of the lines that say a type.
fn typed(page: &str) -> BTreeMap<String, String> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let pairs = lines.filter_map(|line| line.split_once(' '));
    pairs
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

/// Promise: every metric is on the page under its documented name, in the text form and in
/// OpenMetrics; nothing else is.
#[tokio::test]
async fn every_metric_is_on_the_page_under_its_name() {
    let world = World::new().await;
    let metrics = &world.metrics;
    let text = typed(&metrics.page(Form::Text).unwrap());
    let expected: BTreeMap<_, _> = ALL
        .iter()
        .map(|name| (name.full(), kind(name.kind).to_owned()))
        .collect();
    assert_eq!(text, expected);
    let open = metrics.page(Form::OpenMetrics).unwrap();
    assert!(open.ends_with("# EOF\n"), "{open}");
    let open: Vec<_> = typed(&open).into_keys().collect();
    let bare = |name: &String| name.trim_end_matches("_total").to_owned();
    assert_eq!(open, expected.keys().map(bare).collect::<Vec<_>>());
}

#[tokio::test]
async fn snapshots_and_prepares_are_counted() {
    let world = World::new().await;
    let snapshots = &world.metrics.snapshots;
    let labels = || crate::snapshots::Labels::new();
    snapshots
        .prepare("default/1/a".into(), String::new(), labels())
        .await
        .unwrap();
    snapshots
        .prepare("default/2/b".into(), String::new(), labels())
        .await
        .unwrap();
    let (name, key) = ("default/3/c".to_owned(), "default/2/b".to_owned());
    snapshots
        .commit(name, key, labels(), String::new())
        .await
        .unwrap();
    let page = world.metrics.page(Form::Text).unwrap();
    for line in [
        "larder_snapshots{kind=\"committed\"} 1",
        "larder_snapshots{kind=\"active\"} 1",
        "larder_prepares_total{outcome=\"plain\",reason=\"\"} 2",
        "larder_prepare_duration_seconds_count{outcome=\"plain\"} 2",
        "larder_caching_stopped 0",
    ] {
        let found = page
            .lines()
            .any(|one| one == line || one == format!("{line}.0"));
        assert!(found, "{line} is not in\n{page}");
    }
}

/// Promise: two pages are served, by GET alone; whatever else is asked gets a short refusal.
#[tokio::test]
async fn only_two_pages_are_served_and_only_by_get() {
    let world = World::new().await;
    let path = world.serve().await;
    for (request, status) in [
        ("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", "200 OK"),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", "200 OK"),
        ("GET /metrics/ HTTP/1.1\r\nhost: x\r\n\r\n", "404 Not Found"),
        (
            "GET /../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
            "404 Not Found",
        ),
        (
            "HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
            "405 Method Not Allowed",
        ),
        (
            "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
            "405 Method Not Allowed",
        ),
        ("\0\0\0\0\r\n\r\n", "400 Bad Request"),
    ] {
        let answer = exchange(&path, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request:?}: {answer}"
        );
    }
    let long = format!(
        "GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n",
        "y".repeat(64 << 10)
    );
    let answer = exchange(&path, &long).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Promise: who connects and says nothing is closed after five seconds, and eight of them do not
/// grow into more.
#[tokio::test]
async fn silent_connections_are_few_and_end() {
    let world = World::new().await;
    let path = world.serve().await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(UnixStream::connect(&path).await.unwrap());
    }
    // They are let in one after another; the ninth finds no turn.
    let mut refused = String::from("HTTP");
    for _ in 0..100 {
        refused = exchange(&path, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        if refused.is_empty() {
            break;
        }
    }
    assert_eq!(refused, "");
    let begun = std::time::Instant::now();
    for mut stream in silent {
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    let served = exchange(&path, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(served.starts_with("HTTP/1.1 200"), "{served}");
}

/// Promise: an address that is taken is told once and tried again; it never ends the daemon.
#[tokio::test]
async fn a_port_is_served_on_loopback() {
    let world = World::new().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let serving = address.to_string().parse().unwrap();
    tokio::spawn(serve(serving, world.metrics.clone()));
    let mut stream = loop {
        match TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let request =
        "GET /metrics HTTP/1.1\r\nhost: x\r\naccept: application/openmetrics-text\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("content-type: application/openmetrics-text"),
        "{answer}"
    );
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

/// Promise: metrics are not served to other machines.
#[test]
fn only_addresses_of_this_machine_are_taken() {
    for (text, taken) in [
        ("127.0.0.1:9464", true),
        ("[::1]:9464", true),
        ("127.8.8.8:1", true),
        ("/run/larder/metrics.sock", true),
        ("unix:/run/larder/metrics.sock", true),
        ("0.0.0.0:9464", false),
        ("[::]:9464", false),
        ("10.0.0.1:9464", false),
        ("localhost:9464", false),
        (":9464", false),
        ("metrics.sock", false),
    ] {
        let address: Result<MetricsAddress, String> = text.parse();
        assert_eq!(address.is_ok(), taken, "{text}: {address:?}");
    }
    let long = format!("/{}", "x".repeat(200));
    assert!(long.parse::<MetricsAddress>().is_err());
}

/// Names of metrics in a text: words that begin with ours.
fn mentioned(text: &str) -> std::collections::BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    words.filter(|word| word.starts_with("larder_")).collect()
}

/// Promise: dashboard and alerts ask only for metrics that exist, and for each of them; their labels
/// are those that the metrics have.
#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_that_exist() {
    let dashboard = include_str!("../../../deploy/grafana-dashboard.json");
    let rules = include_str!("../../../deploy/prometheus-rules.yml");
    let mut names = std::collections::BTreeMap::new();
    for name in ALL {
        let full = name.full();
        if matches!(name.kind, MetricType::Histogram) {
            for part in ["bucket", "count", "sum"] {
                names.insert(format!("{full}_{part}"), name);
            }
        }
        names.insert(full, name);
    }
    let parsed: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let panels = parsed["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let mut expressions: Vec<_> = targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    assert!(expressions.len() > 20);
    let shown: std::collections::BTreeSet<_> = expressions
        .iter()
        .flat_map(|expression| mentioned(expression))
        .filter_map(|name| Some(names.get(name)?.full()))
        .collect();
    let all: std::collections::BTreeSet<_> = ALL.iter().map(|name| name.full()).collect();
    assert_eq!(shown, all, "what the dashboard shows");
    let said = rules.lines().map(str::trim_start);
    expressions.extend(
        said.filter(|line| line.contains("larder_"))
            .filter(|line| !line.starts_with("description") && !line.starts_with("summary"))
            .map(ToOwned::to_owned),
    );
    for expression in &expressions {
        for word in mentioned(expression) {
            let name = names
                .get(word)
                .unwrap_or_else(|| panic!("{word} in {expression}"));
            // A selector right behind the name.
            let after = expression.split_once(word).unwrap().1;
            let Some(selector) = after.strip_prefix('{') else {
                continue;
            };
            let selector = selector.split_once('}').unwrap().0;
            for matcher in selector.split(", ") {
                let label = matcher.split(['=', '!']).next().unwrap();
                let known = name.labels.contains(&label) || matches!(label, "instance" | "job");
                assert!(known, "{label} of {word} in {expression}");
            }
        }
    }
}

/// Promise: each alert is explained to the operator.
#[test]
fn every_alert_is_explained() {
    let rules = include_str!("../../../deploy/prometheus-rules.yml");
    let operations = include_str!("../../../docs/OPERATIONS.md");
    let alerts = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: Vec<_> = alerts.collect();
    assert!(alerts.len() > 5);
    for alert in alerts {
        let row = format!("| `{alert}` |");
        assert!(operations.contains(&row), "{alert} is not in OPERATIONS.md");
    }
}
