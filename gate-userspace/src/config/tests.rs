//! Good and bad configurations, by their files.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::*;

mod any;

/// A folder of its own for each test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gate-config-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(path.join("conf.d")).expect("a folder");
        Self(path)
    }

    fn with(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        fs::write(self.0.join(name), text).expect(name);
        self
    }

    fn main(&self) -> PathBuf {
        self.0.join("gate.toml")
    }

    fn load(&self) -> Result<Config, ConfigError> {
        load(&self.main())
    }

    /// The problems, without the folder's own path.
    #[track_caller]
    fn problems(&self) -> Vec<String> {
        let error = self.load().expect_err("wrong");
        let text = error
            .to_string()
            .replace(&format!("{}/", self.0.display()), "");
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _left = fs::remove_dir_all(&self.0);
    }
}

fn main_file(text: impl AsRef<[u8]>) -> Folder {
    Folder::new().with("gate.toml", text)
}

#[track_caller]
fn assert_problems(folder: &Folder, expected: &[&str]) {
    assert_eq!(folder.problems(), expected);
}

const EXAMPLE: &str = include_str!("../../../docs/gate.toml");

#[test]
fn the_example_is_right_and_says_what_it_means() {
    let config = main_file(EXAMPLE).load().expect("right");
    assert_eq!(config.daemon.held, Some(16_384));
    assert_eq!(
        config.daemon.metrics,
        Some("127.0.0.1:9464".parse().expect("an address"))
    );
    let gate = |name: &str| &config.gates[&name.parse::<GateName>().expect(name)];
    let web = gate("web");
    assert_eq!(web.endpoints.len(), 2);
    assert_eq!(web.mode, DefaultMode::Guard);
    assert_eq!(web.max_hold, Duration::from_secs(30));
    assert_eq!(
        web.interfaces,
        Interfaces::Named(["eth0".to_owned()].into())
    );
    assert_eq!(web.checks.len(), 2);
    assert_eq!(web.checks[0].host.as_deref(), Some("www.example.org"));
    assert_eq!(web.checks[1].timeout, Duration::from_secs(5));
    assert_eq!(web.on_up.rate, Some("500/s".parse().expect("a rate")));
    let shop = gate("shop");
    let weights: Vec<u32> = shop.backends.iter().map(|it| it.weight).collect();
    assert_eq!(weights, [3, 1]);
    assert_eq!(shop.max_hold, Duration::from_secs(15));
    assert_eq!(shop.on_down.new, Down::Nothing);
    let db = gate("db");
    assert_eq!((db.on_down.new, db.on_down.flush), (Down::Reject, true));
    assert_eq!(db.interfaces, Interfaces::Auto);
}

#[test]
fn the_least_that_can_be_said_is_enough() {
    let config = main_file("").load().expect("right");
    assert_eq!(config.daemon, DaemonConfig::default());
    assert!(config.gates.is_empty());
    let config = main_file("[gate.a]\nendpoints = ['*:80']\n[[gate.a.check]]\ntcp = 'db:80'\n")
        .load()
        .expect("right");
    let gate = config.gates.values().next().expect("a gate");
    assert_eq!(gate.hook, HookChoice::Auto);
    assert_eq!(gate.mode, DefaultMode::Open);
    assert_eq!(gate.on_down.new, Down::Hold);
    assert!(gate.on_up.release);
    assert_eq!((gate.checks[0].rise, gate.checks[0].fall), (2, 3));
}

#[test]
fn what_a_gate_does_not_say_the_defaults_do() {
    let text = "[defaults]\nmax_hold = '1m'\nmode = 'guard'\nhook = 'tc'\nallow = ['10.0.0.7']\n\
                [gate.a]\nendpoints = ['*:80']\n\
                [gate.b]\nendpoints = ['*:81']\nmax_hold = '2s'\nmode = 'open'\nallow = []\n";
    let config = main_file(text)
        .with("conf.d/c.toml", "[gate.c]\nendpoints = ['*:82']\n")
        .load()
        .expect("right");
    let all: Vec<_> = config
        .gates
        .values()
        .map(|it| (it.max_hold.as_secs(), it.mode, it.hook, it.allow.len()))
        .collect();
    let own = (2, DefaultMode::Open, HookChoice::Tc, 0);
    let other = (60, DefaultMode::Guard, HookChoice::Tc, 1);
    assert_eq!(all, [other, own, other]);
}

#[test]
fn every_mistake_is_told_with_its_place_and_the_remedy() {
    let text = "\
[daemon]
sockt = '/run/x'
held = 0
[gate.web]
endpoints = ['10.0.0.5:80', '10.0.0.5:80', '10.0.0.5', 80]
hook = 'xpd'
mode = 1
max_hold = '25h'
'mäx' = 1
[gate.2nd]
[gate.db]
endpoints = '10.0.0.6:80'
backends = [{ weight = 2 }]
";
    assert_problems(
        &main_file(text),
        &[
            "gate.toml:2:1: unknown key `sockt` in daemon: did you mean `socket`?",
            "gate.toml:3:8: `daemon.held` is out of range: write 1 to 1048576",
            "gate.toml:5:29: 10.0.0.5:80 is given twice: leave one out",
            "gate.toml:5:44: the port is missing: write ADDRESS:PORT, as in 10.0.0.5:8080 or \
             [fd00::5]:8080",
            "gate.toml:5:56: `gate.web.endpoints` is a number here: write it as a text in quotes, \
             endpoints = \"...\"",
            "gate.toml:6:8: `gate.web.hook` can't be \"xpd\": did you mean \"xdp\"?",
            "gate.toml:7:8: `gate.web.mode` is a number here: write it as a text in quotes, mode = \
             \"...\"",
            "gate.toml:8:12: 25h is out of range: write 1ms to 1day",
            "gate.toml:9:1: unknown key `mäx` in gate.web: the keys here are allow, backends, check, \
             endpoints, hook, interfaces, max_hold, mode, on_down, on_up",
            "gate.toml:10:7: 2nd is no name for a gate: a letter, then letters, digits, - and _, 32 at \
             the most",
            "gate.toml:10:7: gate.2nd has no `endpoints`: add it",
            "gate.toml:12:13: `gate.db.endpoints` is a text here: write it as a list, endpoints = \
             [...]",
            "gate.toml:13:13: gate.db.backends has no `address`: add it",
        ],
    );
}

#[test]
fn a_line_that_is_no_toml_is_told_alone() {
    let text = "[gate.web]\nendpoints = ['*:80'\nmode = 'guard'\n";
    let problems = main_file(text).problems();
    assert!(problems[0].starts_with("gate.toml:"), "{problems:?}");
    assert!(
        problems.iter().all(|it| it.contains("no TOML")),
        "{problems:?}"
    );
}

#[test]
fn a_gate_is_defined_once() {
    assert_problems(
        &main_file("[gate.web]\nendpoints = ['*:80']\n\n[gate.web]\nmode = 'open'\n"),
        &["gate.toml:4:7: web is there already (gate.toml:1:7): keep one of them"],
    );
    let folder = main_file("[gate.web]\nendpoints = ['*:80']\n")
        .with("conf.d/b.toml", "[gate.web]\nendpoints = ['*:80']\n")
        .with(
            "conf.d/a.toml",
            "# first\n[gate.web]\nendpoints = ['*:81']\n",
        );
    let problems = folder.problems();
    let place = folder.0.join("gate.toml");
    assert_eq!(problems.len(), 2, "{problems:?}");
    for (problem, begin) in problems
        .iter()
        .zip(["conf.d/a.toml:2:7", "conf.d/b.toml:1:7"])
    {
        assert!(problem.starts_with(begin), "{problem}");
        assert!(problem.contains("gate web is there already"), "{problem}");
        assert!(problem.contains("gate.toml:1:7"), "{problem} {place:?}");
    }
}

#[test]
fn an_endpoint_has_one_gate() {
    let text = "[gate.a]\nendpoints = ['10.0.0.5:80']\n[gate.b]\nendpoints = ['10.0.0.5:80']\n";
    assert_problems(
        &main_file(text),
        &[
            "gate.toml:4:14: 10.0.0.5:80 belongs to gate a already (gate.toml:2:14): leave it out of \
             one of them",
        ],
    );
    let text = "[gate.a]\nendpoints = ['10.0.0.5:80', '*:80']\n";
    assert_problems(
        &main_file(text),
        &[
            "gate.toml:2:14: 10.0.0.5:80 is one of the addresses that *:80 stands for \
             (gate.toml:2:29): leave one of them out",
        ],
    );
    // One gate's wildcard and another's address are two endpoints.
    let text = "[gate.a]\nendpoints = ['*:80']\n[gate.b]\nendpoints = ['10.0.0.5:80']\n";
    main_file(text).load().expect("right");
}

/// A gate with this more, and whether the one problem says so.
#[track_caller]
fn assert_contradiction(more: &str, says: &str) {
    let text = format!("[gate.a]\nendpoints = ['10.0.0.5:80']\n{more}\n");
    let problems = main_file(text).problems();
    assert!(
        problems.len() == 1 && problems[0].contains(says),
        "{more}: {problems:?}"
    );
    assert!(problems[0].contains(": "), "{problems:?}");
}

#[test]
fn contradictions_are_told() {
    let check = |more: &str| format!("[[gate.a.check]]\n{more}");
    for (more, says) in [
        (
            "[gate.a.on_down]\ndo = 'hold'",
            "gate.toml:3:1: without a check",
        ),
        (
            "[gate.a.on_down]\ndo = 'nothing'\nflush = true",
            "without a check",
        ),
        ("[gate.a.on_up]\nrelease = true", "without a check"),
        ("hook = 'xdp'", "name those that are meant"),
        ("interfaces = []", "no interface is named"),
        ("interfaces = ['eth0/1']", "can't be an interface's name"),
        ("interfaces = ['eth0', 'eth0']", "given twice"),
        (
            "interfaces = ['eth0']\nhook = 'tc-egress'\nmode = 'guard'",
            "a guard sees what comes in",
        ),
        ("max_hold = '0s'", "out of range"),
        ("max_hold = 'soon'", "is no time"),
        ("allow = ['10.0.0.7/8']", "bits set behind its prefix"),
        ("backends = []", "no backend is named"),
        (
            "backends = [{ address = '10.0.0.5:80' }]",
            "the gate's own listener",
        ),
        ("backends = [{ weight = 1 }]", "has no `address`: add it"),
        (
            "backends = [{ address = '10.0.0.5:81', weight = 0 }]",
            "write 1 to 1000000",
        ),
        (
            "backends = [{ address = '10.0.0.5:81' }, { address = '10.0.0.5:81' }]",
            "add its weights up",
        ),
    ] {
        assert_contradiction(more, says);
    }
    for (more, says) in [
        ("", "nothing to check"),
        ("interval = '1s'", "nothing to check"),
        (
            "tcp = 'h:1'\nexec = 'true'",
            "`exec` is a second thing to check",
        ),
        (
            "tcp = 'h:1'\ninterval = '1s'\ntimeout = '2s'",
            "longer than the interval 1s",
        ),
        ("tcp = 'h:1'\nbody = 'ok'", "`body` is for an http check"),
        (
            "exec = 'true'\nstatus = '200'",
            "`status` is for an http check",
        ),
        ("tcp = 'h'", "the port is missing"),
        ("http = 'h/'", "takes a URL"),
        (
            "http = 'http://h/'\nverify = false",
            "`verify` is for an https URL",
        ),
        (
            "http = 'https://h/'\nverify = false\nca = '/c'",
            "leave one of them out",
        ),
        ("http = 'https://h/'\nca = 'c'", "no absolute path"),
        ("http = 'http://h/'\nstatus = '2xx'", "is no status"),
        ("tcp = 'h:1'\ninterval = '1ms'", "out of range"),
        ("tcp = 'h:1'\nrise = 0", "out of range"),
        ("tcp = 'h:1'\n[gate.a.on_up]\nrate = '0/s'", "is no rate"),
        (
            "tcp = 'h:1'\n[gate.a.on_up]\nrate = '5/s'\nrelease = false",
            "goes with release = true only",
        ),
    ] {
        assert_contradiction(&check(more), says);
    }
}

#[test]
fn an_interface_has_one_hook() {
    let gate = |name: &str, port: u16, hook: &str| {
        format!("[gate.{name}]\nendpoints = ['*:{port}']\ninterfaces = ['eth0']\nhook = '{hook}'\n")
    };
    let folder = main_file(gate("a", 80, "tc") + &gate("b", 81, "xdp"));
    let problems = folder.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0]
            .starts_with("gate.toml:8:8: eth0 gets the hook xdp here and tc at gate.toml:4:8"),
        "{problems:?}"
    );
    for hook in ["tc", "auto"] {
        let folder = main_file(gate("a", 80, "tc") + &gate("b", 81, hook));
        folder.load().expect(hook);
    }
}

#[test]
fn further_files_have_gates_only() {
    let folder = main_file("")
        .with("conf.d/a.toml", "[daemon]\n[defaults]\n")
        .with("conf.d/.hidden.toml", "?")
        .with("conf.d/a.toml.bak", "?");
    let problems = folder.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems
            .iter()
            .all(|it| it.contains("belongs into the main file"))
    );
}

#[test]
fn a_table_of_a_gate_without_its_word_is_told_so() {
    let problems = main_file("[web]\nendpoints = ['*:80']\n").problems();
    let told = "gate.toml:1:2: unknown key `web`: a gate is written as [gate.web]";
    assert_eq!(problems, [told]);
}

#[test]
fn columns_count_characters() {
    let folder = main_file("[gate.a]\nendpoints = ['*:80', \"äöü\u{1F600}:80\", 'x']\n");
    let problems = folder.problems();
    assert!(problems[0].starts_with("gate.toml:2:22: "), "{problems:?}");
    assert!(problems[1].starts_with("gate.toml:2:33: "), "{problems:?}");
    // A byte order mark takes no column.
    let folder = main_file("\u{feff}x = 1\n");
    assert!(folder.problems()[0].starts_with("gate.toml:1:1: "));
}

#[test]
fn what_is_not_utf_8_is_told_by_its_byte() {
    let folder = main_file(b"[gate.a]\nx = '\xc3\xb6\xff'\n");
    let told = "gate.toml:2:7: byte 0xff is not UTF-8: save the file as UTF-8";
    assert_problems(&folder, &[told]);
}

#[test]
fn a_large_file_is_refused_before_it_is_parsed() {
    let big = main_file(vec![b'x'; 10 << 20]);
    let told = "gate.toml: it is larger than 1 MiB: split it into files of conf.d";
    assert_problems(&big, &[told]);
    // As much as fits is read, be it nothing but brackets.
    let full = main_file(vec![b'['; 1 << 20]);
    assert!(full.problems()[0].contains("no TOML"));
}

#[test]
fn what_can_not_be_read_is_told() {
    let folder = Folder::new();
    let error = load(&folder.main()).expect_err("missing");
    assert!(error.to_string().contains("no such file"), "{error}");
    let error = load(&folder.0).expect_err("a folder");
    assert!(error.to_string().contains("it is a folder"), "{error}");
    let error = load(&folder.0.join("x\0y")).expect_err("no path");
    assert!(error.to_string().contains("can't be read"), "{error}");
    let error = load(Path::new("/dev/zero")).expect_err("a device");
    assert!(error.to_string().contains("no plain file"), "{error}");

    let folder = main_file("");
    symlink("loop.toml", folder.0.join("conf.d/loop.toml")).expect("a link");
    symlink("gone.toml.d", folder.0.join("conf.d/gone.toml")).expect("a link");
    let fifo = folder.0.join("conf.d/pipe.toml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    fs::create_dir(folder.0.join("conf.d/sub.toml")).expect("a folder");
    let problems = folder.problems();
    for (problem, says) in problems.iter().zip([
        "conf.d/gone.toml: there is no such file",
        "conf.d/loop.toml: its symbolic links go round",
        "conf.d/pipe.toml: it is no plain file",
        "conf.d/sub.toml: it is a folder",
    ]) {
        assert!(problem.starts_with(says), "{problem}");
    }
    assert_eq!(problems.len(), 4);

    let folder = Folder::new();
    let folder = folder.with("gate.toml", "");
    fs::remove_dir(folder.0.join("conf.d")).expect("removed");
    folder.load().expect("no folder is right");
    symlink("conf.d", folder.0.join("conf.d")).expect("a link");
    assert!(folder.problems()[0].contains("loop"));
    fs::remove_file(folder.0.join("conf.d")).expect("removed");
    let folder = folder.with("conf.d", "a file");
    assert!(folder.problems()[0].contains("no folder"));
}

#[test]
fn more_than_there_is_room_for_is_refused() {
    let gate = |n: usize| format!("[gate.g{n}]\nendpoints = ['*:{}']\n", n + 1);
    let text = |count| (0..count).map(gate).collect::<String>();
    main_file(text(1023)).load().expect("right");
    let problems = main_file(text(1024)).problems();
    assert!(
        problems[0].contains("1024 gates are too many"),
        "{problems:?}"
    );
    let many: Vec<String> = (1..=16_385)
        .map(|n| format!("'10.{}.{}.1:80'", n / 256, n % 256))
        .collect();
    let text = format!("[gate.a]\nendpoints = [{}]\n", many.join(","));
    assert!(main_file(text).problems()[0].contains("more than 16384 endpoints"));
}

#[test]
fn many_mistakes_are_not_all_told() {
    let text: String = (0..5_000).map(|n| format!("k{n} = 1\n")).collect();
    let problems = main_file(text).problems();
    assert_eq!(problems.len(), 101);
    assert_eq!(problems.last().map(String::as_str), Some("and 4900 more"));
}

#[test]
fn every_key_has_a_description() {
    fn visit(schema: &Value, path: &str, seen: &mut usize) {
        let Some(keys) = schema.get("properties").and_then(Value::as_object) else {
            return;
        };
        for (key, schema) in keys {
            let path = format!("{path}.{key}");
            let text = schema["description"].as_str().unwrap_or_default();
            assert!(text.len() > 5 && text.ends_with('.'), "{path}: {text:?}");
            for choice in schema["oneOf"].as_array().into_iter().flatten() {
                assert!(choice["description"].is_string(), "{path}: {choice}");
            }
            *seen += 1;
            for inner in [schema, &schema["items"], &schema["additionalProperties"]] {
                visit(inner, &path, seen);
            }
        }
    }
    let mut seen = 0;
    visit(schema(), "", &mut seen);
    assert!(seen > 40, "{seen}");
    let text = markdown();
    for key in [
        "`max_hold`",
        "[[gate.NAME.check]]",
        "`\"tc-egress\"`",
        "Required.",
    ] {
        assert!(text.contains(key), "{key}");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_told_so() {
    // Root may read everything: a user is asked in the live tests.
    if nix::unistd::geteuid().is_root() {
        let error = std::io::Error::from_raw_os_error(libc::EACCES);
        assert!(read::unreadable(&error).contains("change its permissions"));
        return;
    }
    let folder = main_file("");
    let closed = fs::Permissions::from_mode(0o000);
    fs::set_permissions(folder.main(), closed).expect("chmod");
    assert!(folder.problems()[0].contains("change its permissions"));
}
