//! What clients of real software see when a backend is away, with a gate and by other ways: the
//! figures of `docs/recipes`.

mod rotation;

use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::haproxy::{Release, Retries};
use crate::recipes::apache::{self, Backend, Case, Hosts, Reuse};
use crate::recipes::balancer::{self, Connect, Death};
use crate::recipes::{Run, Schedule, crash, group};
use crate::summary::Summary;
use crate::text::{duration, grouped, ms, parse_duration, table};

/// The command line of `gate-lab bench recipes`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Which; all, if none is given
    #[arg(value_enum)]
    pub recipes: Vec<Recipe>,
    /// Restarts in each row
    #[arg(long, default_value_t = 5)]
    pub times: u32,
    /// Requests a second
    #[arg(long, default_value_t = 200)]
    pub rate: u32,
    /// How long HAProxy's servers are away: by default, longer than it retries
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub upgrade: Duration,
    /// Have Apache and its backend on one host
    #[arg(long)]
    pub one_host: bool,
}

/// One of the scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Recipe {
    /// A backend behind Apache is restarted
    Apache,
    /// A member of mod_proxy_balancer dies
    Balancer,
    /// Three servers behind HAProxy are upgraded at once
    Haproxy,
    /// gunicorn behind nginx is killed
    Gunicorn,
    /// One of the names behind Apache gets another backend, and then the first again
    Handover,
    /// A server behind HAProxy with sticky cookies is taken out of rotation, restarted, brought back
    SoftStop,
}

/// From the backend's return to the next restart; Apache takes a second to stop.
const REST: Duration = Duration::from_millis(2_500);
/// How long a client of the balancer waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs them and prints a table of each.
pub fn recipes(options: &Options) -> Result<()> {
    let all = Recipe::value_variants();
    let chosen = if options.recipes.is_empty() {
        all
    } else {
        &options.recipes
    };
    for recipe in chosen {
        match recipe {
            Recipe::Apache => apache(options)?,
            Recipe::Balancer => balancer(options)?,
            Recipe::Haproxy => haproxy(options)?,
            Recipe::Gunicorn => gunicorn(options)?,
            Recipe::Handover => rotation::handover(options),
            Recipe::SoftStop => rotation::soft_stop(options),
        }
    }
    Ok(())
}

fn schedule(options: &Options, outage: Duration) -> Schedule {
    Schedule {
        times: options.times,
        outage,
        rest: REST,
        rate: options.rate,
    }
}

/// The ways to restart a backend behind Apache, and what they are called.
fn apache_cases(hosts: Hosts) -> Vec<(&'static str, Case)> {
    use apache::How::{Gate, Iptables, Nothing};
    let plain = Gate(&[]);
    let drain = Gate(&["--drain", "5s"]);
    [
        (
            "Apache, kept: restart",
            Backend::Apache,
            Reuse::Kept,
            Nothing,
        ),
        (
            "Apache, kept: iptables",
            Backend::Apache,
            Reuse::Kept,
            Iptables,
        ),
        ("Apache, kept: gate", Backend::Apache, Reuse::Kept, plain),
        ("Apache, ping=1: gate", Backend::Apache, Reuse::Ping, plain),
        (
            "Apache, not kept: restart",
            Backend::Apache,
            Reuse::Never,
            Nothing,
        ),
        (
            "Apache, not kept: iptables",
            Backend::Apache,
            Reuse::Never,
            Iptables,
        ),
        (
            "Apache, not kept: gate",
            Backend::Apache,
            Reuse::Never,
            plain,
        ),
        (
            "Apache, kept but for the restart: iptables",
            Backend::Apache,
            Reuse::Drained,
            Iptables,
        ),
        (
            "Apache, kept but for the restart: gate --drain",
            Backend::Apache,
            Reuse::Drained,
            drain,
        ),
        ("nginx, kept: restart", Backend::Nginx, Reuse::Kept, Nothing),
        (
            "nginx, kept: iptables",
            Backend::Nginx,
            Reuse::Kept,
            Iptables,
        ),
        ("nginx, kept: gate", Backend::Nginx, Reuse::Kept, plain),
        ("nginx, not kept: gate", Backend::Nginx, Reuse::Never, plain),
        (
            "nginx, kept but for the restart: gate --drain",
            Backend::Nginx,
            Reuse::Drained,
            drain,
        ),
    ]
    .map(|(name, backend, reuse, how)| {
        let case = Case {
            hosts,
            backend,
            reuse,
            how,
        };
        (name, case)
    })
    .to_vec()
}

fn apache(options: &Options) -> Result<()> {
    let hosts = if options.one_host {
        Hosts::One
    } else {
        Hosts::Two
    };
    let mut rows = vec![head("backend, its connections: way")];
    for (name, case) in apache_cases(hosts) {
        let run = case.run(schedule(options, Duration::from_millis(300)));
        rows.push(row(name, run));
    }
    let title = format!("A backend behind Apache, restarted {} times", options.times);
    print(&title, &rows);
    Ok(())
}

fn haproxy(options: &Options) -> Result<()> {
    use group::How::{Gate, Maxconn, Nothing};
    let mut rows = vec![head("way")];
    for (name, how) in [
        ("nothing", Nothing),
        (
            "one gate, --drain 5s --flush-idle 100ms",
            Gate(group::DRAIN),
        ),
        (
            "maxconn 0, HAProxy of this system",
            Maxconn(Release::System),
        ),
        ("maxconn 0, HAProxy of Debian 13", Maxconn(Release::Three)),
    ] {
        let run = group::run(how, Retries::Default, schedule(options, options.upgrade));
        rows.push(row(name, run));
    }
    let title = format!(
        "Three servers behind HAProxy, upgraded {} times, away for {} each",
        options.times,
        duration(options.upgrade)
    );
    print(&title, &rows);
    Ok(())
}

fn gunicorn(options: &Options) -> Result<()> {
    use crash::How::{Guard, Nothing, Watch};
    let mut rows = vec![head("way")];
    rows[0].extend(["refused", "cut off"].map(str::to_owned));
    for (name, how) in [
        ("nothing", Nothing),
        ("gate guard", Guard),
        ("gate guard --watch", Watch),
    ] {
        match crash::run(how, schedule(options, Duration::from_secs(1))) {
            Ok(crashes) => {
                let mut row = row(name, Ok(crashes.run));
                row.extend([grouped(crashes.refused), grouped(crashes.cut_off)]);
                rows.push(row);
            }
            Err(error) => rows.push(row(name, Err(error))),
        }
    }
    let title = format!("gunicorn behind nginx, killed {} times", options.times);
    print(&title, &rows);
    Ok(())
}

fn balancer(options: &Options) -> Result<()> {
    let names = [
        "death, connectiontimeout: way",
        "requests",
        "failed",
        "of those due after",
        "longest after",
        "connections",
        "after",
    ];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    for (death, death_name) in [(Death::Killed, "SIGKILL"), (Death::Silent, "silent host")] {
        for (connect, connect_name) in [(Connect::Default, "default"), (Connect::Short, "200ms")] {
            for (how, name) in [
                (balancer::How::Nothing, "nothing"),
                (balancer::How::Flush, "flush"),
                (balancer::How::RejectAndFlush, "reject and flush"),
            ] {
                let after = balancer::run(death, connect, how, options.rate, PATIENCE)?;
                rows.push(vec![
                    format!("{death_name}, {connect_name}: {name}"),
                    grouped(after.summary.requests),
                    failed(&after.summary),
                    grouped(after.lost_after),
                    ms(after.longest_after),
                    grouped(after.connections_before),
                    grouped(after.connections_after),
                ]);
            }
        }
    }
    print("One of two members of mod_proxy_balancer dies", &rows);
    Ok(())
}

fn head(first: &str) -> Vec<String> {
    let names = [first, "requests", "failed", "p50", "p99", "max", "outage"];
    names.map(str::to_owned).to_vec()
}

fn row(name: &str, run: Result<Run>) -> Vec<String> {
    let summary = match run {
        Ok(run) => run.summary,
        Err(error) => return vec![format!("{name}: {error:#}")],
    };
    let time = |time: Option<Duration>| time.map_or("n/a".to_owned(), ms);
    vec![
        name.to_owned(),
        grouped(summary.requests),
        failed(&summary),
        time(summary.p50),
        time(summary.p99),
        time(summary.max),
        ms(summary.outage),
    ]
}

fn failed(summary: &Summary) -> String {
    match summary.lost() {
        0 => "0".to_owned(),
        _ => summary.errors_in_words(),
    }
}

fn print(title: &str, rows: &[Vec<String>]) {
    println!("{title}\n\n{}", table(rows));
}
