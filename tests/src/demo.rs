//! The same restart three times: without a gate, with SYNs dropped, with SYNs held.

mod report;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::listener::Watch;
use crate::load::{Load, Outcome, Request, get_once};
use crate::service::Service;
use crate::summary::Summary;
use crate::text::{duration, parse_duration};
use crate::topology::{self, INTERFACE, Side, Topology, server_v4};
use crate::{backend, exe, stop};

/// The port of the demo's backend.
const PORT: u16 = 8080;
/// From the load's start to the restart.
const CALM: Duration = Duration::from_millis(1_500);
/// What the load must leave for the time after the outage.
const REST: Duration = Duration::from_millis(500);
/// What a step may take beyond the outage.
const LIMIT: Duration = Duration::from_secs(30);

/// The command line of `gate-lab demo`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How long the backend is away
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub outage: Duration,
    /// New connections a second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// How long new connections are made in each run
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Time that the backend takes for each request
    #[arg(long, default_value = "5ms", value_parser = parse_duration)]
    pub service_time: Duration,
    /// Make only this run (repeatable)
    #[arg(long, value_enum)]
    pub only: Vec<Run>,
    /// Where to put the picture [default: demo.svg in the workspace's target folder]
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// Print JSON instead of the table
    #[arg(long)]
    pub json: bool,
}

/// What is done about the connections that come while the backend is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Run {
    /// Nothing
    None,
    /// Their SYNs are dropped, and the clients send them again
    Drop,
    /// Their SYNs are held and replayed
    Hold,
}

impl Run {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Drop => "drop",
            Self::Hold => "hold",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::None => "the backend restarts with no gate",
            Self::Drop => "the gate drops new connections' SYNs",
            Self::Hold => "the gate holds new connections' SYNs and replays them",
        }
    }
}

/// What one run came to.
struct Measured {
    run: Run,
    requests: Vec<Request>,
    /// When nothing listened, from the load's start.
    outage: Option<(Duration, Duration)>,
    summary: Summary,
}

/// Makes the runs, prints the table and draws the picture. An error if the hold run lost a request.
pub fn demo(options: &Options) -> Result<()> {
    if options.duration < CALM + options.outage + REST {
        bail!(
            "--duration must be at least {}: the restart begins after {}",
            duration(CALM + options.outage + REST),
            duration(CALM)
        );
    }
    stop::on_signal()?;
    let runs = [Run::None, Run::Drop, Run::Hold].into_iter();
    let runs: Vec<_> = runs
        .filter(|run| options.only.is_empty() || options.only.contains(run))
        .collect();
    if runs.iter().any(|&run| run != Run::None) {
        // Better said now than after the first run.
        exe::gate()?;
    }
    let mut measured = Vec::new();
    for (i, &run) in runs.iter().enumerate() {
        say(&format!(
            "run {} of {}: {}: {}",
            i + 1,
            runs.len(),
            run.name(),
            run.in_words()
        ));
        let one = measure(run, options)
            .inspect_err(|_| stop::hush())
            .with_context(|| format!("run {}", run.name()))?;
        say(&format!("  {}", report::note(&one.summary)));
        measured.push(one);
    }
    let svg = options.svg.clone().map_or_else(report::default_svg, Ok)?;
    report::draw(&measured, options, &svg)?;
    say(&format!("picture: {}", svg.display()));
    if options.json {
        println!("{}", report::json(&measured, options));
    } else {
        print!("{}", report::table(&measured));
    }
    match measured
        .iter()
        .find(|one| one.run == Run::Hold)
        .map(|one| one.summary.lost())
    {
        Some(lost) if lost > 0 => bail!("the hold run lost {lost} requests; it should lose none"),
        _ => Ok(()),
    }
}

/// One restart under load, in a topology of its own.
fn measure(run: Run, options: &Options) -> Result<Measured> {
    let stage = Stage::set(options)?;
    if run != Run::None {
        stage.gate(["up", INTERFACE])?;
    }
    say(&format!(
        "  {} new connections/s for {}",
        options.rate,
        duration(options.duration)
    ));
    let watch = Watch::start(&stage.topology, stage.target)?;
    let load = Load::new(stage.target, options.rate, options.duration).start(&stage.topology)?;
    let begin = load.begin();
    sleep((begin + CALM).saturating_duration_since(Instant::now()));
    say(&format!(
        "  restart; the backend is away for {}",
        duration(options.outage)
    ));
    stage.restart(run, options.outage)?;
    let requests = load.finish()?;
    let gaps = watch.finish()?;
    let Some(gap) = gaps.iter().max_by_key(|gap| gap.length()) else {
        bail!("the backend was never away, so nothing was measured");
    };
    Ok(Measured {
        run,
        summary: Summary::new(&requests, gap.length()),
        requests,
        outage: Some((gap.from.duration_since(begin), gap.to.duration_since(begin))),
    })
}

/// A topology with a backend that listens.
struct Stage {
    topology: Topology,
    service: Service,
    target: SocketAddr,
    limit: Duration,
}

impl Stage {
    fn set(options: &Options) -> Result<Self> {
        let target = server_v4(PORT);
        let topology = Topology::new()?;
        // Every connection of the outage comes at once when it is over.
        topology.sysctl(Side::Server, "net.core.somaxconn", "65535")?;
        topology.sysctl(Side::Server, "net.ipv4.tcp_max_syn_backlog", "65535")?;
        let service = Service::start(
            &topology,
            backend::Options {
                backlog: 65_535,
                service_time: options.service_time,
                ..backend::Options::new(target)
            },
        )?;
        say(&format!(
            "  a client and a server namespace; a backend on {target}"
        ));
        Ok(Self {
            topology,
            service,
            target,
            limit: options.outage + LIMIT,
        })
    }

    fn gate<const N: usize>(&self, args: [&str; N]) -> Result<()> {
        say(&format!("  gate {}", args.join(" ")));
        self.topology.gate(args)?.ok()?;
        Ok(())
    }

    /// Restarts the backend the way of the run, and returns when it answers again.
    fn restart(&self, run: Run, outage: Duration) -> Result<()> {
        let endpoint = self.target.to_string();
        let command = self.service.restart_command(outage)?;
        match run {
            Run::None => {
                self.command(&command)?;
                self.wait_for_answer()
            }
            Run::Drop => {
                self.gate(["drop", &endpoint, "--for", "15s"])?;
                self.command(&command)?;
                self.wait_for_answer()?;
                self.gate(["open", &endpoint])
            }
            Run::Hold => {
                let check = format!("http://{endpoint}/healthz");
                say(&format!(
                    "  gate restart {endpoint} --check {check} -- gate-lab bounce …"
                ));
                let args = ["restart", &endpoint, "--check", &check, "--"].map(OsString::from);
                let gate = self.topology.spawn_gate(args.into_iter().chain(command))?;
                gate.wait(self.limit)?.ok()?;
                Ok(())
            }
        }
    }

    fn command(&self, words: &[OsString]) -> Result<()> {
        let mut command = topology::command(words);
        self.topology
            .output(Side::Server, &mut command, self.limit)?
            .ok()?;
        Ok(())
    }

    /// Asks from the server's own namespace, which no gate on its interface affects.
    fn wait_for_answer(&self) -> Result<()> {
        let late = Instant::now() + self.limit;
        self.topology.run(Side::Server, || {
            while get_once(self.target, "/healthz", LIMIT)? != Outcome::Ok {
                if Instant::now() > late {
                    bail!(
                        "no answer from the backend {:?} after its restart",
                        self.limit
                    );
                }
                sleep(Duration::from_millis(2));
            }
            Ok(())
        })
    }
}

/// Tells what happens, unless a signal is ending it.
fn say(line: &str) {
    stop::hush();
    eprintln!("{line}");
}
