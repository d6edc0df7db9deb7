use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use gate_common::abi::{Counter, GateStats};
use gate_common::handover::Steered;
use gate_common::state::Mode;

use super::*;
use crate::attach::Attachment;
use crate::endpoint::Endpoint;
use crate::events::{Event, What};
use crate::handover::{HandoverStatus, ToStatus};
use crate::health::{CheckHealth, Health, HealthEvent, Sample as Check};
use crate::hooks::Slot;
use crate::status::{GateStatus, GuardStatus, Waiting};

/// OpenMetrics 1.0 text, read strictly: what its ABNF and its rules for names, suffixes, order and
/// buckets don't allow is an error.
mod openmetrics;

fn endpoint(text: &str) -> Endpoint {
    text.parse().expect(text)
}

fn gate(id: u32, name: Option<&str>, at: &str) -> GateStatus {
    let mut stats = GateStats::default();
    for (n, (counter, _)) in Counter::ALL.iter().enumerate() {
        stats.counts[*counter as usize] = u64::from(id) * 100 + n as u64;
    }
    GateStatus {
        stats,
        ..GateStatus::example(id, name, at)
    }
}

/// One of each that there can be.
fn everything() -> Scrape {
    let held = GateStatus {
        mode: Mode::Hold,
        lease: Some(Duration::from_millis(12_500)),
        waiting: Waiting {
            held: 3,
            longest: Duration::from_millis(1_250),
        },
        ..gate(1, Some("web"), "10.0.0.5:8080")
    };
    let guarded = GateStatus {
        guard: Some(GuardStatus {
            lease: Duration::from_secs(30),
            missing: vec![(endpoint("10.0.0.5:81"), Duration::from_secs(2))],
        }),
        handover: Some(HandoverStatus {
            hook: Steered::Lookup,
            to: vec![ToStatus {
                backend: endpoint("127.0.0.1:8082"),
                weight: 3,
                is_own: false,
                listening: Some(1),
            }],
        }),
        ..gate(2, None, "[fd00::5]:81")
    };
    let mut holds = Holds::default();
    for ms in [1, 2, 30, 700, 61_000] {
        holds.add(ms * 1_000_000);
    }
    Scrape {
        status: Some(Status {
            attachments: vec![
                Attachment::example(2, Some("eth0"), Slot::Xdp),
                Attachment::example(7, None, Slot::TcIngress),
            ],
            is_temporary: false,
            gates: vec![held, guarded],
            held_max: 16_384,
            unparsed: 5,
        }),
        holds: BTreeMap::from([(GateId(1), holds)]),
        connections: BTreeMap::from([(GateId(1), 17)]),
        daemon: Some(daemon()),
    }
}

fn daemon() -> OfDaemon {
    let mut tally = Tally::default();
    tally.event(&Event {
        at: SystemTime::UNIX_EPOCH,
        gate: Some("web".to_owned()),
        what: What::Expired,
    });
    let name = || "web".parse().expect("a name");
    let checked = |result| HealthEvent::Checked {
        gate: name(),
        index: 0,
        result,
        took: Duration::from_millis(2),
        turned: None,
    };
    tally.health(&checked(Ok(())));
    tally.health(&checked(Err("refused".to_owned())));
    let check = CheckHealth {
        check: "exec:secret".parse().expect("a check"),
        health: Health::Down,
        since: Duration::ZERO,
        last: Some(Check::new(false, Duration::from_millis(2))),
        last_ago: None,
        streak: 1,
        last_failure: None,
        history: Vec::new(),
    };
    OfDaemon {
        tally,
        health: vec![GateHealth {
            name: name(),
            health: Health::Down,
            since: Duration::ZERO,
            checks: vec![check],
        }],
        process: Process {
            cpu: Duration::from_millis(1_500),
            resident: 1 << 24,
            open_fds: 12,
            start: Duration::from_secs(1_763_750_000),
        },
    }
}

fn value(text: &str, series: &str) -> f64 {
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in:\n{text}"))
        .parse()
        .expect("a number")
}

#[test]
fn what_is_rendered_is_openmetrics() {
    let text = render(everything());
    let families = openmetrics::parse(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    // Every family has its samples.
    assert_eq!(
        families.len(),
        families::GATE.len() + families::PROCESS.len()
    );
    for scrape in [
        Scrape::default(),
        Scrape {
            daemon: None,
            ..everything()
        },
    ] {
        let text = render(scrape);
        openmetrics::parse(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    }
}

#[test]
fn the_strict_reader_refuses_what_is_wrong() {
    let head = "# HELP a_seconds b\n# TYPE a_seconds gauge\n# UNIT a_seconds seconds\n";
    for (text, why) in [
        (format!("{head}a_seconds 1\n"), "EOF"),
        (format!("{head}a_seconds 1\na_seconds 2\n# EOF\n"), "twice"),
        (format!("{head}b 1\n# EOF\n"), "family"),
        (format!("{head}a_seconds_total 1\n# EOF\n"), "family"),
        (format!("{head}a_seconds{{x=\"1}} 1\n# EOF\n"), "label"),
        (format!("{head}a_seconds{{x=\"1\",x=\"2\"}} 1\n# EOF\n"), "label"),
        (format!("{head}a_seconds one\n# EOF\n"), "number"),
        ("# TYPE c counter\nc 1\n# EOF\n".to_owned(), "family"),
        ("# TYPE c counter\nc_total -1\n# EOF\n".to_owned(), "negative"),
        ("# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n# EOF\n".to_owned(), "bucket"),
        ("# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n# EOF\n".to_owned(), "bucket"),
        (format!("{head}a_seconds 1\n# TYPE b gauge\nb 1\na_seconds{{x=\"1\"}} 1\n# EOF\n"), "family"),
    ] {
        let error = openmetrics::parse(&text).expect_err(&text);
        assert!(error.contains(why), "{error}: {text}");
    }
}

#[test]
fn the_figures_are_those_of_the_status() {
    let text = render(everything());
    for (series, expected) in [
        ("gate_up", 1.0),
        (r#"gate_mode{gate="web",mode="hold"}"#, 1.0),
        (r#"gate_mode{gate="web",mode="open"}"#, 0.0),
        (r#"gate_lease_seconds{gate="web"}"#, 12.5),
        (r#"gate_lease_seconds{gate="[fd00::5]:81"}"#, 0.0),
        (r#"gate_held{gate="web"}"#, 3.0),
        (r#"gate_held_longest_seconds{gate="web"}"#, 1.25),
        ("gate_held_max", 16_384.0),
        (r#"gate_hold_seconds_bucket{le="0.0025",gate="web"}"#, 2.0),
        (r#"gate_hold_seconds_bucket{le="60.0",gate="web"}"#, 4.0),
        (r#"gate_hold_seconds_bucket{le="+Inf",gate="web"}"#, 5.0),
        (r#"gate_hold_seconds_count{gate="web"}"#, 5.0),
        (r#"gate_hold_seconds_sum{gate="web"}"#, 61.733),
        (r#"gate_syns_total{gate="web",verdict="held"}"#, 102.0),
        (r#"gate_syns_total{gate="web",verdict="allowed"}"#, 112.0),
        (r#"gate_overflows_total{gate="[fd00::5]:81"}"#, 206.0),
        (r#"gate_replays_total{gate="web"}"#, 109.0),
        (r#"gate_lease_expiries_total{gate="web"}"#, 1.0),
        (r#"gate_lease_expiries_total{gate="[fd00::5]:81"}"#, 0.0),
        (r#"gate_guarded{gate="[fd00::5]:81"}"#, 1.0),
        (r#"gate_listener_missing{gate="[fd00::5]:81"}"#, 1.0),
        (r#"gate_drain_connections{gate="web"}"#, 17.0),
        (
            r#"gate_backend_weight{gate="[fd00::5]:81",backend="127.0.0.1:8082",own="false"}"#,
            3.0,
        ),
        (r#"gate_health{gate="web"}"#, 0.0),
        (
            r#"gate_health_check_up{gate="web",check="0",kind="exec"}"#,
            0.0,
        ),
        (
            r#"gate_health_check_duration_seconds{gate="web",check="0",kind="exec"}"#,
            0.002,
        ),
        (
            r#"gate_health_checks_total{gate="web",check="0",result="failed"}"#,
            1.0,
        ),
        (
            r#"gate_attached{interface="eth0",hook="xdp",by="xdp"}"#,
            1.0,
        ),
        (
            r#"gate_attached{interface="7",hook="tc-ingress",by="xdp"}"#,
            0.0,
        ),
        ("gate_unparsed_total", 5.0),
        (r#"gate_events_total{event="lease_over"}"#, 1.0),
        ("process_cpu_seconds_total", 1.5),
        ("process_resident_memory_bytes", 16_777_216.0),
    ] {
        assert!((value(&text, series) - expected).abs() < 1e-9, "{series}");
    }
    assert!(!text.contains("secret"), "a command is no label");
}

#[test]
fn nothing_up_is_told_as_such() {
    let text = render(Scrape::default());
    assert!((value(&text, "gate_up")).abs() < 1e-9);
    assert!(text.contains("gate_build_info{version=\""));
    assert!(!text.contains("gate_mode"));
}

#[test]
fn a_label_is_escaped() {
    let mut scrape = everything();
    if let Some(status) = &mut scrape.status {
        status.attachments = vec![Attachment::example(2, Some("a\"b\\c\nd"), Slot::Xdp)];
    }
    let text = render(scrape);
    assert!(text.contains(r#"interface="a\"b\\c\nd""#), "{text}");
    openmetrics::parse(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
}

#[test]
fn a_thousand_gates_are_rendered_whole() {
    let mut scrape = everything();
    if let Some(status) = &mut scrape.status {
        let at = |n: u32| format!("10.0.0.5:{}", 1000 + n);
        status.gates = (1..=1000)
            .map(|n| gate(n, Some(&format!("gate-{n}")), &at(n)))
            .collect();
    }
    let text = render(scrape);
    openmetrics::parse(&text).unwrap();
    assert_eq!(text.matches("gate_held{").count(), 1000);
}

#[test]
fn the_documentation_has_the_table() {
    let doc = include_str!("../../../docs/metrics.md");
    let table = table();
    assert!(
        doc.contains(&table),
        "docs/metrics.md should have:\n{table}"
    );
}

/// The names that series can have.
fn series() -> BTreeSet<String> {
    let text = render(everything());
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| line.split(['{', ' ']).next().unwrap_or_default().to_owned();
    samples.map(name).collect()
}

/// The labels that a series can have.
fn labels(of: &str) -> BTreeSet<String> {
    let text = render(everything());
    let families = openmetrics::parse(&text).expect("OpenMetrics");
    let mut samples = families.iter().flat_map(|family| &family.samples);
    let sample = samples.find(|sample| sample.name == of).expect(of);
    sample.labels.iter().map(|(name, _)| name.clone()).collect()
}

/// Checks what can be checked of an expression without Prometheus: brackets, the series' names, and
/// the labels that are selected.
#[track_caller]
fn check_expression(expression: &str) {
    let mut open = Vec::new();
    let mut quoted = false;
    for letter in expression.chars() {
        match letter {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '{' | '[' => open.push(letter),
            ')' => assert_eq!(open.pop(), Some('('), "{expression}"),
            '}' => assert_eq!(open.pop(), Some('{'), "{expression}"),
            ']' => assert_eq!(open.pop(), Some('['), "{expression}"),
            _ => {}
        }
    }
    assert!(open.is_empty() && !quoted, "{expression}");
    let known = series();
    let mut found = 0;
    let mut rest = expression;
    while let Some(at) = rest.find(|letter: char| letter.is_ascii_alphabetic()) {
        rest = &rest[at..];
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | ':');
        let end = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        if name.starts_with("gate_") || name.starts_with("process_") {
            assert!(known.contains(name), "{name} is no series: {expression}");
            found += 1;
            if let Some((selected, _)) = after.strip_prefix('{').and_then(|it| it.split_once('}')) {
                for selector in selected.split(',').filter(|it| !it.trim().is_empty()) {
                    let label = selector.split(['=', '!']).next().unwrap_or_default().trim();
                    let is_scrapes = matches!(label, "job" | "instance");
                    assert!(
                        is_scrapes || labels(name).contains(label),
                        "{label}: {expression}"
                    );
                }
            }
        }
        // What is quoted has no names.
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').map_or(quoted.len(), |at| at + 1);
            rest = &quoted[end..];
        }
    }
    assert!(
        found > 0 || expression.contains("up{"),
        "no series: {expression}"
    );
}

#[test]
fn the_dashboard_uses_series_that_there_are() {
    let text = include_str!("../../../contrib/grafana/gate.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let mut expressions = Vec::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
        assert!(
            panel["gridPos"]["w"].as_u64().is_some_and(|w| w <= 24),
            "{panel}"
        );
        for target in panel["targets"].as_array().into_iter().flatten() {
            expressions.push(target["expr"].as_str().expect("an expression").to_owned());
        }
    }
    assert!(expressions.len() >= 10, "{}", expressions.len());
    for variable in dashboard["templating"]["list"]
        .as_array()
        .expect("variables")
    {
        if let Some(query) = variable["query"]
            .as_str()
            .filter(|it| it.contains("label_values"))
        {
            expressions.push(query.to_owned());
        }
    }
    for expression in &expressions {
        // What Grafana fills in.
        check_expression(&expression.replace("$__rate_interval", "5m"));
    }
}

#[test]
fn the_alert_rules_use_series_that_there_are() {
    let text = include_str!("../../../contrib/prometheus/gate.rules.yml");
    let lines = || text.lines().map(str::trim);
    let expressions: Vec<&str> = lines()
        .filter_map(|line| line.strip_prefix("expr: "))
        .collect();
    let alerts = lines().filter(|line| line.starts_with("- alert: ")).count();
    assert!(alerts >= 6 && alerts == expressions.len(), "{alerts}");
    for expression in expressions {
        check_expression(expression.trim_matches('\''));
    }
    assert_eq!(
        lines().filter(|line| line.starts_with("summary: ")).count(),
        alerts
    );
    assert!(!text.contains('\t'), "YAML has no tabs");
}
