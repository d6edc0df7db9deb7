//! What health checks cost: makes the same check a hundred times a second, as many gates would, and
//! prints the processor time and the memory of this process.
//!
//! ```text
//! checks COUNT SECONDS CHECK...     COUNT of each CHECK, each once a second, by gate's monitor
//! checks COUNT SECONDS --floor ADDRESS   connect, close: what any check costs the kernel
//! ```

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use gate_userspace::gates::GateName;
use gate_userspace::health::{HealthEvent, Monitor, Spec, Verify};
use gate_userspace::pins::Pins;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [count, seconds, what @ ..] = words.as_slice() else {
        bail!("checks COUNT SECONDS CHECK... | checks COUNT SECONDS --floor ADDRESS");
    };
    let (count, time) = (count.parse()?, Duration::from_secs(seconds.parse()?));
    let made = match what {
        [flag, address] if flag == "--floor" => floor(address.parse()?, count, time)?,
        checks => monitor(checks, count, time)?,
    };
    println!("{made} in {time:?}");
    Ok(())
}

fn floor(address: SocketAddr, a_second: u32, time: Duration) -> Result<String> {
    let start = Instant::now();
    let before = used()?;
    let mut made = 0;
    while start.elapsed() < time {
        drop(TcpStream::connect(address)?);
        made += 1;
        let next = start + Duration::from_secs(1) * made / a_second;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    told(made.into(), 0, before, time)
}

fn monitor(checks: &[String], count: u32, time: Duration) -> Result<String> {
    let mut gates: Vec<(GateName, Vec<Spec>)> = Vec::new();
    for check in checks {
        let spec = Spec {
            verify: Verify::Nothing,
            rise: 2,
            fall: 3,
            ..Spec::new(check.parse()?)
        };
        for _ in 0..count {
            let name = format!("gate{}", gates.len());
            gates.push((name.parse()?, vec![spec.clone()]));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let watch = async move {
        let mut monitor = Monitor::new(Pins::here().ok(), gates);
        // The first round is warming up.
        let _warm = run(&mut monitor, Duration::from_secs(3)).await;
        let before = used()?;
        let (passed, failed) = run(&mut monitor, time).await;
        told(passed, failed, before, time)
    };
    // A task is woken without a system call, the future that a runtime blocks on by an eventfd.
    let told = runtime.block_on(async { tokio::spawn(watch).await })??;
    runtime.shutdown_background();
    Ok(told)
}

/// How many checks passed, and how many did not.
async fn run(monitor: &mut Monitor, time: Duration) -> (u64, u64) {
    let end = tokio::time::Instant::now() + time;
    let (mut passed, mut failed) = (0, 0);
    while let Ok(event) = tokio::time::timeout_at(end, monitor.next()).await {
        match event {
            HealthEvent::Checked { result: Ok(()), .. } => passed += 1,
            HealthEvent::Checked { .. } | HealthEvent::Unmade { .. } => failed += 1,
            HealthEvent::Changed { .. } => {}
        }
    }
    (passed, failed)
}

/// User and system time, in microseconds.
fn used() -> Result<(i64, i64)> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |time: nix::sys::time::TimeVal| time.num_microseconds();
    Ok((micros(usage.user_time()), micros(usage.system_time())))
}

fn told(passed: u64, failed: u64, before: (i64, i64), time: Duration) -> Result<String> {
    let after = used()?;
    let (user, system) = (after.0 - before.0, after.1 - before.1);
    let micros = i64::try_from(time.as_micros())?;
    let made = i64::try_from(passed + failed)?.max(1);
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    Ok(format!(
        "{passed} passed, {failed} failed; user {} us, system {} us a check; {}.{:02} % of a core; {}",
        user / made,
        system / made,
        (user + system) * 100 / micros,
        (user + system) * 10_000 / micros % 100,
        line.unwrap_or_default(),
    ))
}
