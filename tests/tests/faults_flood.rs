//! A million SYNs a second from spoofed sources at a gate that holds: what it keeps is bounded, who is
//! connected notices nothing but a busy machine, and a client still gets in. Needs root.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use common::{
    Connected, Dial, ENDPOINT, Ended, LIMIT, MS, PORT, connect_many, count, dial, gate,
    gate_status, listen, tcp_info,
};
use gate_common::abi::{Counter, DEFAULT_HELD};
use gate_common::flow::Address;
use gate_common::shares::Room;
use gate_tests::extent::Extent;
use gate_tests::flood::{Flood, Sent, Sources};
use gate_tests::require::{Feature, has};
use gate_tests::topology::{CLIENT_V4, INTERFACE, SERVER_V4, Side, Topology, server_v4};
use gate_userspace::pins::Pins;
use gate_userspace::sys;
use gate_userspace::tables::{MAPS, Tables};
use nix::sys::resource::{UsageWho, getrusage};

/// SYNs a second.
const RATE: u64 = 1_000_000;

/// Connections that ask and are answered all the time.
const ESTABLISHED: usize = 8;

/// Most memory that any command may take, in KiB, however much it finds.
const COMMAND: i64 = 64 << 10;

/// Most that the kernel's own memory may grow by during a flood, in KiB: 60 s of it, all kept, would take
/// a thousand times that.
const GROWTH: u64 = 16 << 10;

fn duration() -> Duration {
    Duration::from_secs(Extent::wanted().pick(2, 60))
}

/// Round trips over connections that were there before.
struct Pings {
    wanted: Arc<AtomicBool>,
    threads: Vec<JoinHandle<anyhow::Result<Vec<Duration>>>>,
}

impl Pings {
    /// Asks over each of these, a hundred times a second.
    fn start(topology: &Topology, connections: &[Connected]) -> Self {
        let wanted = Arc::new(AtomicBool::new(true));
        let mut threads = Vec::new();
        for connection in connections {
            let mut backend = connection.backend.try_clone().unwrap();
            let client = connection.client.try_clone().unwrap();
            let mine = Arc::clone(&wanted);
            let ask = move || ask(client, &mine);
            threads.push(topology.start(Side::Client, ask).unwrap());
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while backend.read_exact(&mut bytes).is_ok() && backend.write_all(&bytes).is_ok() {}
            });
        }
        Self { wanted, threads }
    }

    /// The times of all round trips; none may have failed.
    fn finish(self) -> Vec<Duration> {
        self.wanted.store(false, Ordering::Relaxed);
        let each = self.threads.into_iter();
        let mut all: Vec<Duration> = each.flat_map(|it| it.join().unwrap().unwrap()).collect();
        all.sort();
        all
    }
}

fn ask(mut client: TcpStream, wanted: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(LIMIT))?;
    let mut times = Vec::new();
    let mut bytes = [7; 64];
    while wanted.load(Ordering::Relaxed) {
        let begin = Instant::now();
        client.write_all(&bytes)?;
        client.read_exact(&mut bytes)?;
        times.push(begin.elapsed());
        sleep(10 * MS);
    }
    Ok(times)
}

/// The bytes of memory that the gate's maps take, as the kernel counts them.
fn memory(topology: &Topology) -> Vec<(&'static str, u64)> {
    let read = || {
        let pins = Pins::here()?;
        MAPS.into_iter()
            .map(|name| {
                let map = sys::open_pin(&pins.map(name))?;
                let path = format!("/proc/thread-self/fdinfo/{}", map.as_raw_fd());
                let text = std::fs::read_to_string(path)?;
                let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
                let bytes = line.map_or(Ok(0), |it| it.trim().parse())?;
                Ok((name, bytes))
            })
            .collect()
    };
    topology.run(Side::Server, read).unwrap()
}

/// A server with the gate up at this hook and holding, and connections that were made before.
fn held(hook: &str) -> (Topology, TcpListener, Vec<Connected>) {
    let topology = Topology::new().unwrap();
    gate(&topology, &["up", "--hook", hook, INTERFACE]);
    // Without an XDP program the device takes redirected frames only with it.
    topology.enable_gro(Side::Server).unwrap();
    let listener = listen(&topology, server_v4(PORT));
    let connections = connect_many(
        &topology,
        Side::Client,
        server_v4(PORT),
        &listener,
        ESTABLISHED,
    );
    gate(&topology, &["hold", ENDPOINT, "--for", "10m"]);
    (topology, listener, connections)
}

/// SYNs that were held, refreshed, or had no room.
fn judged(topology: &Topology) -> u64 {
    let counts = gate_status(topology, ENDPOINT).stats.counts;
    let all = [Counter::Held, Counter::Refreshed, Counter::Overflowed];
    all.iter().map(|counter| counts[*counter as usize]).sum()
}

/// The KiB of memory that the kernel took for its own objects, maps among them: what is free of it and
/// what is a cache is left out.
fn of_the_kernel() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let of = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let words = line.and_then(|line| line.split_whitespace().next());
        words.unwrap().parse().unwrap()
    };
    of("SUnreclaim:") + of("VmallocUsed:") + of("Percpu:")
}

/// Looks ten times in this time.
fn look(time: Duration) -> Vec<u64> {
    let looks = (0..10).map(|_| {
        sleep(time / 10);
        of_the_kernel()
    });
    looks.collect()
}

/// Segments that these connections have sent again, at either end.
fn sent_again(connections: &[Connected]) -> u32 {
    let ends = connections.iter().flat_map(|it| [&it.client, &it.backend]);
    ends.map(|end| tcp_info(end).tcpi_total_retrans).sum()
}

/// Held by each test: two floods at once would share a machine that makes one.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(hook: &str, sent: Sent, before: &[Duration], during: &[Duration]) {
    let at = |times: &[Duration], part: f64| times[(part * (times.len() - 1) as f64) as usize];
    let ratio = |part| at(during, part).as_secs_f64() / at(before, part).as_secs_f64();
    println!(
        "{hook}: {:.0} SYNs a second for {:.1?}; round trips of {ESTABLISHED} connections took {:.2} \
         times what they took without (median), {:.2} times (p99); {} of {}",
        sent.rate(),
        sent.took,
        ratio(0.5),
        ratio(0.99),
        during.len(),
        before.len()
    );
}

/// The flood is what it is named for: at least half of that comes to be judged, where there is nothing
/// else to do. A short one meets whatever else is tested.
fn assert_rate(hook: &str, judged: u64, sent: Sent) {
    let rate = judged as f64 / sent.took.as_secs_f64();
    println!("{hook}: {rate:.0} SYNs judged a second");
    let least = Extent::wanted().pick(0.0, RATE as f64 / 2.0);
    assert!(
        rate >= least,
        "only {rate:.0} SYNs were judged a second: {sent:?}"
    );
}

/// Of what the established connections sent nothing is lost but what the device lost: SYNs and data come
/// by the same queue of 256 frames, so of the requests as large a part may go there as of the SYNs. A short
/// flood runs beside other tests, which may keep an answer for as long as a retransmission takes: a few more.
fn assert_unharmed(hook: &str, (judged, sent): (u64, Sent), requests: usize, again: u32) {
    let lost = sent.syns.saturating_sub(judged) as f64 / sent.syns as f64;
    let slack = Extent::wanted().pick(requests as f64 / 50.0, 0.0);
    let most = (lost * requests as f64 + slack).ceil();
    println!(
        "{hook}: {requests} requests, all answered; {again} segments sent again, {most} may be: the \
         device lost {:.2} % of all",
        lost * 100.0
    );
    assert!(requests > ESTABLISHED, "{hook}");
    assert!(
        f64::from(again) <= most,
        "{again} were sent again, {most} may be"
    );
}

/// A flood from anywhere, with all that must hold.
fn flood_from_anywhere(hook: &str) {
    let (topology, _listener, connections) = held(hook);
    let pings = Pings::start(&topology, &connections);
    let kernel = look(duration().min(10 * Duration::from_secs(1)));
    let before = pings.finish();
    let taken = memory(&topology);
    let again = sent_again(&connections);
    let pings = Pings::start(&topology, &connections);
    let flood = Flood {
        sources: Sources::Anywhere,
        destination: (SERVER_V4, PORT),
        rate: RATE,
    };
    let flood = flood.start(&topology).unwrap();
    sleep(duration() / 2);
    let client = dial(&topology, Side::Client, Dial::to(server_v4(PORT)));
    let later = look(duration() / 2);
    let sent = flood.finish().unwrap();
    let during = pings.finish();
    tell(hook, sent, &before, &during);

    // A queue between the devices may be full now and then, but the flood did arrive.
    let judged = judged(&topology);
    let retries = LIMIT.as_secs() + sent.took.as_secs();
    // Many times what the table has room for; what the device's queue lost was never judged.
    let many = u64::from(DEFAULT_HELD) * 4;
    let is_credible = (many..=sent.syns + retries).contains(&judged);
    assert!(is_credible, "{judged} of {sent:?}");
    assert_rate(hook, judged, sent);
    let again = sent_again(&connections) - again;
    assert_unharmed(hook, (judged, sent), during.len(), again);
    // The least of many looks, and the most: others take memory, too, and give it back.
    let grown = later
        .iter()
        .min()
        .unwrap()
        .saturating_sub(*kernel.iter().max().unwrap());
    println!("{hook}: the kernel's own memory grew by {grown} KiB");
    assert!(
        grown < GROWTH,
        "the kernel's own memory grew by {grown} KiB"
    );
    let held = gate_status(&topology, ENDPOINT).waiting.held;
    // A few spare entries for each CPU.
    assert!(
        (held as u64).abs_diff(u64::from(DEFAULT_HELD)) < 512,
        "{held}"
    );
    assert_eq!(memory(&topology), taken, "what the maps take");

    gate(&topology, &["open", ENDPOINT]);
    assert_eq!(client.finish(), Ended::Connected, "{hook}");
    let later = dial(&topology, Side::Client, Dial::to(server_v4(PORT)));
    assert_eq!(later.finish(), Ended::Connected, "{hook}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    assert!(
        usage.max_rss() < COMMAND,
        "a command took {} KiB",
        usage.max_rss()
    );
    assert!(connections.iter().all(common::is_alive), "{hook}");
}

#[test]
fn a_million_spoofed_syns_a_second_harm_nobody_who_is_connected_and_a_client_gets_in_after_it() {
    if !has(Feature::LiveFrames) {
        return;
    }
    let _alone = alone();
    for hook in ["xdp", "tc-ingress"] {
        flood_from_anywhere(hook);
    }
}

/// The sources of what is held.
fn sources(topology: &Topology) -> Vec<Address> {
    let held = || Ok(Tables::open(&Pins::here()?)?.held()?);
    let held = topology.run(Side::Server, held).unwrap();
    held.into_iter().map(|(flow, _)| flow.source).collect()
}

/// A prefix whose hash is not that of the client's: those two would have one share.
fn apart_from_the_client(topology: &Topology) -> [u8; 3] {
    let room = topology.run(Side::Server, || {
        let map = MapData::from_pin(Pins::here()?.map("ROOM"))?;
        let map: Array<_, Room> = Map::Array(map).try_into()?;
        Ok(map.get(&0, 0)?)
    });
    let room = room.unwrap();
    let share = |octets| room.share_of(&Address::from_v4(octets));
    let prefixes = [[192, 0, 2], [198, 51, 100], [203, 0, 113]];
    prefixes
        .into_iter()
        .find(|[a, b, c]| share([*a, *b, *c, 1]) != share(CLIENT_V4.octets()))
        .unwrap()
}

#[test]
fn a_flood_from_one_prefix_keeps_nobody_elsewhere_from_being_held_and_let_in() {
    if !has(Feature::LiveFrames) {
        return;
    }
    let _alone = alone();
    for hook in ["xdp", "tc-ingress"] {
        let (topology, _listener, connections) = held(hook);
        let prefix = apart_from_the_client(&topology);
        let flood = Flood {
            sources: Sources::Prefix(prefix),
            destination: (SERVER_V4, PORT),
            rate: RATE,
        };
        let flood = flood.start(&topology).unwrap();
        sleep(duration() / 2);
        // In the thick of it, when the prefix has all that it can get.
        let client = dial(&topology, Side::Client, Dial::to(server_v4(PORT)));
        let own = Address::from_v4(CLIENT_V4.octets());
        common::wait_until("the client is held", || {
            sources(&topology).iter().any(|it| it.is(&own))
        });
        sleep(duration() / 2);
        let sent = flood.finish().unwrap();
        let (own, others): (Vec<Address>, Vec<Address>) =
            sources(&topology).into_iter().partition(|it| it.is(&own));
        // CPUs that look at the same moment may each take the last place.
        let share = DEFAULT_HELD as usize / 8 * 7;
        let most = share + std::thread::available_parallelism().unwrap().get();
        assert!((share..=most).contains(&others.len()), "{hook}, {sent:?}");
        assert_eq!(own.len(), 1, "{hook}, {sent:?}");
        assert!(others.iter().all(|it| it.v4_octets()[..3] == prefix));
        gate(&topology, &["open", ENDPOINT]);
        assert_eq!(client.finish(), Ended::Connected, "{hook}");
        assert_eq!(
            count(&topology, ENDPOINT, Counter::Released) as usize,
            others.len() + 1
        );
        assert!(connections.iter().all(common::is_alive), "{hook}");
    }
}
