//! The clock of these tests stands still while anything can be done, and jumps to the next thing to
//! do. What is checked answers at once, or never.

use std::path::{Path, PathBuf};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A folder for sockets.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("gate-monitor-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

fn name(text: &str) -> GateName {
    text.parse().expect("a name")
}

/// A check that some process accepts connections at this socket.
fn unix(path: &Path, rise: u32, fall: u32) -> Spec {
    Spec {
        rise,
        fall,
        ..Spec::new(Check::Unix(path.to_owned()))
    }
}

/// A check that is never answered, and the socket that doesn't.
async fn mute(timeout: Duration) -> (Spec, tokio::net::TcpListener) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("bind");
    let address = listener.local_addr().expect("an address");
    let check = format!("http://{address}/").parse().expect("a check");
    let spec = Spec {
        timeout,
        ..Spec::new(check)
    };
    (spec, listener)
}

/// All that is told within a time, and when.
async fn watch(monitor: &mut Monitor, time: Duration) -> Vec<(Instant, HealthEvent)> {
    let end = Instant::now() + time;
    let mut events = Vec::new();
    while let Ok(event) = tokio::time::timeout_at(end, monitor.next()).await {
        events.push((Instant::now(), event));
    }
    events
}

/// What gates turned to, in order.
fn changes(events: &[(Instant, HealthEvent)]) -> Vec<(String, Health)> {
    let change = |(_, event): &(Instant, HealthEvent)| match event {
        HealthEvent::Changed { gate, to, .. } => Some((gate.to_string(), *to)),
        HealthEvent::Checked { .. } | HealthEvent::Unmade { .. } => None,
    };
    events.iter().filter_map(change).collect()
}

/// When the checks of a gate were begun.
fn begins(events: &[(Instant, HealthEvent)], of: &str) -> Vec<Instant> {
    let begin = |(at, event): &(Instant, HealthEvent)| match event {
        HealthEvent::Checked { gate, took, .. } if gate.to_string() == of => Some(*at - *took),
        _ => None,
    };
    events.iter().filter_map(begin).collect()
}

#[tokio::test(start_paused = true)]
async fn a_gate_is_down_after_fall_failures_and_up_after_rise_successes() {
    let folder = Folder::new("turns");
    let path = folder.socket("a");
    let mut monitor = Monitor::new(None, vec![(name("web"), vec![unix(&path, 2, 3)])]);
    assert_eq!(monitor.health(&name("web")), Health::Unknown);
    let events = watch(&mut monitor, SECOND * 10).await;
    assert_eq!(changes(&events), [("web".to_owned(), Health::Down)]);
    let (down, _) = events
        .iter()
        .find(|it| !changes(&[(*it).clone()]).is_empty())
        .expect("down");
    assert_eq!(*down, begins(&events, "web")[2]);
    let why = events.iter().find_map(|(_, event)| match event {
        HealthEvent::Changed { why, .. } => why.clone(),
        _ => None,
    });
    let why = why.expect("a reason");
    assert!(
        why.starts_with("unix:/") && why.contains("No such file"),
        "{why}"
    );
    let listener = tokio::net::UnixListener::bind(&path).expect("bind");
    let events = watch(&mut monitor, SECOND * 10).await;
    assert_eq!(changes(&events), [("web".to_owned(), Health::Up)]);
    drop(listener);
    let snapshot = monitor.snapshot();
    let check = &snapshot[0].checks[0];
    assert_eq!((snapshot[0].health, check.health), (Health::Up, Health::Up));
    assert!(check.last.is_some_and(|last| last.passed));
    let (why, ago) = check.last_failure.clone().expect("it failed before");
    assert!(
        why.contains("No such file") && ago > SECOND * 9,
        "{why} {ago:?}"
    );
    assert!(check.history.len() > 15, "{}", check.history.len());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_checks_are_spread_and_each_keeps_its_interval() {
    let folder = Folder::new("spread");
    let spec = Spec {
        interval: SECOND * 10,
        ..unix(&folder.socket("none"), 1, 1)
    };
    let gates = (0..1000).map(|at| (name(&format!("g{at}")), vec![spec.clone()]));
    let mut monitor = Monitor::new(None, gates.collect());
    let start = Instant::now();
    let events = watch(&mut monitor, SECOND * 100).await;
    let mut tenths = vec![0; 1001];
    for (at, event) in &events {
        if matches!(event, HealthEvent::Checked { .. }) {
            tenths[usize::try_from((*at - start).as_millis() / 100).expect("short")] += 1;
        }
    }
    // 10 on average; that many by chance has odds of under 1 to 10^8.
    assert!(tenths.iter().all(|count| *count < 40), "{tenths:?}");
    for at in 0..1000 {
        let begins = begins(&events, &format!("g{at}"));
        assert!(begins[0] - start <= SECOND * 10);
        for pair in begins.windows(2) {
            let millis = (pair[1] - pair[0]).as_millis();
            assert!((8_990..=11_010).contains(&millis), "{millis}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_runs_over_delays_no_other_and_is_not_started_twice() {
    let folder = Folder::new("slow");
    let (slow, listener) = mute(SECOND * 5).await;
    let gates = vec![
        (name("slow"), vec![slow]),
        (name("fast"), vec![unix(&folder.socket("none"), 1, 1)]),
    ];
    let mut monitor = Monitor::new(None, gates);
    let events = watch(&mut monitor, SECOND * 60).await;
    let slow = begins(&events, "slow");
    assert!((11..=12).contains(&slow.len()), "{}", slow.len());
    for pair in slow.windows(2) {
        assert!(pair[1] - pair[0] >= SECOND * 5);
    }
    let fast = begins(&events, "fast");
    assert!((53..=68).contains(&fast.len()), "{}", fast.len());
    for pair in fast.windows(2) {
        assert!(pair[1] - pair[0] <= Duration::from_millis(1110));
    }
    drop(listener);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_when_the_next_event_is_not_waited_for() {
    let folder = Folder::new("dropped");
    let spec = unix(&folder.socket("none"), 1, 1);
    let mut monitor = Monitor::new(None, vec![(name("web"), vec![spec; 20])]);
    let mut checked = 0;
    let end = Instant::now() + SECOND * 30;
    while Instant::now() < end {
        let short = Duration::from_millis(3);
        if let Ok(HealthEvent::Checked { .. }) = tokio::time::timeout(short, monitor.next()).await {
            checked += 1;
        }
    }
    let kept: usize = monitor.snapshot()[0]
        .checks
        .iter()
        .map(|it| it.history.len())
        .sum();
    assert!(checked >= 20 * 26, "{checked}");
    assert_eq!(checked, kept);
}

#[tokio::test(start_paused = true)]
async fn a_new_configuration_keeps_what_did_not_change() {
    let folder = Folder::new("configured");
    let listener = tokio::net::UnixListener::bind(folder.socket("a")).expect("bind");
    let good = unix(&folder.socket("a"), 1, 1);
    let bad = unix(&folder.socket("none"), 1, 1);
    let mut monitor = Monitor::new(
        None,
        vec![
            (name("web"), vec![good.clone(), bad.clone()]),
            (name("gone"), vec![good.clone()]),
            (name("same"), vec![good.clone()]),
        ],
    );
    watch(&mut monitor, SECOND * 10).await;
    let before = monitor.snapshot();
    assert_eq!(before[0].health, Health::Down);
    let other = Spec {
        interval: SECOND * 2,
        ..good.clone()
    };
    monitor.configure(vec![
        (name("same"), vec![good.clone()]),
        (name("web"), vec![other, good]),
    ]);
    let after = monitor.snapshot();
    assert_eq!(monitor.health(&name("gone")), Health::Unknown);
    assert_eq!(
        (after[0].name.clone(), after[0].health),
        (name("same"), Health::Up)
    );
    assert_eq!(after[0].since, before[2].since);
    assert_eq!(after[0].checks[0].history, before[2].checks[0].history);
    // The check that failed is gone, a new one is not decided, the third has moved.
    assert_eq!(after[1].health, Health::Unknown);
    assert_eq!(after[1].checks[0].health, Health::Unknown);
    assert_eq!(after[1].checks[1].health, Health::Up);
    assert_eq!(after[1].checks[1].history, before[0].checks[0].history);
    let events = watch(&mut monitor, SECOND * 10).await;
    let turned = [("web", Health::Unknown), ("web", Health::Up)];
    assert_eq!(
        changes(&events),
        turned.map(|(gate, to)| (gate.to_owned(), to))
    );
    assert!(begins(&events, "gone").is_empty());
    drop(listener);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_is_taken_away_while_it_runs_ends() {
    let (slow, listener) = mute(SECOND * 1000).await;
    let start = Instant::now();
    let mut monitor = Monitor::new(None, vec![(name("slow"), vec![slow])]);
    watch(&mut monitor, SECOND * 3).await;
    let (mut stream, _) = listener.accept().await.expect("a connection");
    monitor.configure(Vec::new());
    watch(&mut monitor, SECOND * 3).await;
    let mut bytes = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes).await;
    // However it was closed, it was long before the check's own timeout.
    drop(read);
    assert!(start.elapsed() < SECOND * 10, "{:?}", start.elapsed());
    assert!(monitor.running.is_empty());
}

#[tokio::test(start_paused = true)]
async fn checks_can_be_made_at_once() {
    let folder = Folder::new("hurried");
    let spec = Spec {
        interval: SECOND * 3600,
        ..unix(&folder.socket("none"), 1, 1)
    };
    let mut monitor = Monitor::new(None, vec![(name("web"), vec![spec.clone(), spec])]);
    let start = Instant::now();
    monitor.hurry(&name("web"));
    monitor.hurry(&name("other"));
    let events = watch(&mut monitor, SECOND).await;
    assert_eq!(begins(&events, "web"), [start, start]);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_this_host_cannot_make_says_nothing_of_the_backend() {
    let check = "https://127.0.0.1:1/".parse().expect("a check");
    let spec = Spec {
        verify: super::super::Verify::Against("/no/such/file".into()),
        ..Spec::new(check)
    };
    let mut monitor = Monitor::new(None, vec![(name("web"), vec![spec])]);
    let events = watch(&mut monitor, SECOND * 10).await;
    assert!(events.len() >= 8, "{events:?}");
    for (_, event) in events {
        let HealthEvent::Unmade { why, .. } = event else {
            panic!("{event:?}");
        };
        assert!(why.contains("/no/such/file"), "{why}");
    }
    assert_eq!(monitor.health(&name("web")), Health::Unknown);
}
