//! The agent's configuration: defaults, then the TOML file, then the command line.

use api::{Error, ErrorKind, Result};
use fuse_view::fuse::{IdMap, Owners};
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Read when no `--config` is given; it need not exist.
pub const DEFAULT_CONFIG: &str = "/etc/cowslip/config.toml";

const DEFAULT_POOL: &str = "/var/lib/cowslip";
const DEFAULT_RUN_DIR: &str = "/run/cowslip";
const DEFAULT_CACHE_BYTES: u64 = 64 << 20;
const MIN_CACHE_BYTES: u64 = 1 << 20;
const FREEZE_DEADLINE_MS: std::ops::RangeInclusive<u64> = 100..=60_000;

/// How volumes become block devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The best that this host has.
    #[default]
    Auto,
    /// The kernel's ublk driver.
    Ublk,
    /// A FUSE file under a loop device.
    Loop,
    /// No devices.
    None,
}

/// What the command line says; None and 0 leave it to the file and the defaults.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// The configuration file; it must exist. None: [`DEFAULT_CONFIG`], if it exists.
    pub config: Option<PathBuf>,
    /// The pool's directory or block device.
    pub pool: Option<PathBuf>,
    /// The agent's socket.
    pub socket: Option<PathBuf>,
    /// Where to mount the snapshots; `none`: nowhere.
    pub snapshots: Option<PathBuf>,
    /// How volumes become block devices.
    pub transport: Option<Transport>,
    /// Number of `-v`: 1 is debug, more is trace.
    pub verbose: u8,
    /// `-q`: warnings and errors only.
    pub quiet: bool,
}

/// What the agent runs with. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The pool's directory or block device.
    pub pool: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Name or number of the group that may use the socket.
    pub socket_group: Option<String>,
    /// Where to mount the snapshots.
    pub snapshots_dir: Option<PathBuf>,
    /// Whether other users may look into it.
    pub allow_other: bool,
    /// Owners and groups as they are shown in it.
    pub owners: Owners,
    /// Name or number of the user whose processes parse what is shown in it.
    pub snapshots_user: Option<String>,
    /// How volumes become block devices.
    pub transport: Transport,
    /// Whether ublk goes without copies where the kernel offers it.
    pub ublk_zero_copy: bool,
    /// Stable names of devices.
    pub device_dir: PathBuf,
    /// Run-time files.
    pub run_dir: PathBuf,
    /// The ring's directory, where it is fixed.
    pub ring_dir: Option<PathBuf>,
    /// Budget of the cache of map nodes, bytes.
    pub cache_bytes: u64,
    /// A frozen file system is thawed after this.
    pub freeze_deadline: Duration,
    /// Filter of the log.
    pub log: String,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pool: Option<PathBuf>,
    socket: Option<PathBuf>,
    socket_group: Option<String>,
    snapshots_dir: Option<PathBuf>,
    allow_other: Option<bool>,
    snapshots_uid_map: Option<Vec<String>>,
    snapshots_gid_map: Option<Vec<String>>,
    snapshots_user: Option<String>,
    transport: Option<Transport>,
    ublk_zero_copy: Option<bool>,
    device_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    ring_dir: Option<PathBuf>,
    cache_bytes: Option<u64>,
    freeze_deadline_ms: Option<u64>,
    log: Option<String>,
}

impl Config {
    /// Reads the file and applies `options`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming the file, the line and the key.
    pub fn load(options: &AgentOptions) -> Result<Self> {
        let file = match &options.config {
            Some(path) => read(path)?.ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("no configuration file at {}", path.display()))
            })?,
            None => read(Path::new(DEFAULT_CONFIG))?.unwrap_or_default(),
        };
        resolve(options, file)
    }
}

fn read(path: &Path) -> Result<Option<File>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new(
            ErrorKind::Invalid,
            format!("cannot read configuration {}: {error}", path.display()),
        )),
    }
}

fn parse(path: &Path, text: &str) -> Result<File> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        at(path, text, line, error.message())
    })?;
    check(&file).map_err(|(key, message)| at(path, text, line_of(text, key), &message))?;
    Ok(file)
}

/// What the types cannot say.
fn check(file: &File) -> std::result::Result<(), (&'static str, String)> {
    let none = Path::new("none");
    let snapshots = file.snapshots_dir.as_ref().filter(|path| *path != none);
    for (key, path) in [
        ("pool", file.pool.as_ref()),
        ("socket", file.socket.as_ref()),
        ("snapshots_dir", snapshots),
        ("device_dir", file.device_dir.as_ref()),
        ("run_dir", file.run_dir.as_ref()),
        ("ring_dir", file.ring_dir.as_ref()),
    ] {
        if let Some(path) = path.filter(|path| !path.is_absolute()) {
            return Err((key, format!("`{}` is not an absolute path", path.display())));
        }
    }
    if let Some(bytes) = file.cache_bytes.filter(|bytes| *bytes < MIN_CACHE_BYTES) {
        return Err(("cache_bytes", format!("{bytes} is below the least, {MIN_CACHE_BYTES}")));
    }
    if let Some(ms) = file.freeze_deadline_ms.filter(|ms| !FREEZE_DEADLINE_MS.contains(ms)) {
        let (low, high) = (FREEZE_DEADLINE_MS.start(), FREEZE_DEADLINE_MS.end());
        return Err(("freeze_deadline_ms", format!("{ms} is not within {low} to {high}")));
    }
    for (key, map) in
        [("snapshots_uid_map", &file.snapshots_uid_map), ("snapshots_gid_map", &file.snapshots_gid_map)]
    {
        if id_map(map.as_ref()).is_none() {
            return Err((key, "a range is FROM:TO:COUNT, three numbers".into()));
        }
    }
    if let Some(log) = &file.log {
        crate::logging::check_filter(log).map_err(|why| ("log", format!("`{log}` is no filter: {why}")))?;
    }
    Ok(())
}

/// The ranges of a map; None: one of them is none.
fn id_map(ranges: Option<&Vec<String>>) -> Option<IdMap> {
    IdMap::parse(ranges.into_iter().flatten().map(String::as_str))
}

/// `FILE:LINE: KEY: what is wrong`.
fn at(path: &Path, text: &str, line: usize, message: &str) -> Error {
    let source = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let key = source.split_once('=').map_or("", |(key, _)| key.trim());
    let key = if key.is_empty() || message.contains(&format!("`{key}`")) {
        String::new()
    } else {
        format!("{key}: ")
    };
    Error::new(ErrorKind::Invalid, format!("{}:{line}: {key}{}", path.display(), message.replace('\n', ", ")))
        .hint("config.sample.toml describes every key")
}

/// The line of a top-level key, counted from 1.
fn line_of(text: &str, key: &str) -> usize {
    let is_key =
        |line: &str| line.split_once('=').is_some_and(|(left, _)| left.trim().trim_matches('"') == key);
    text.lines().position(is_key).map_or(1, |index| index + 1)
}

fn resolve(options: &AgentOptions, file: File) -> Result<Config> {
    let pick = |option: &Option<PathBuf>, key: &Option<PathBuf>, default: &str| {
        absolute(option.as_deref().or(key.as_deref()).unwrap_or(Path::new(default)))
    };
    let socket = pick(&options.socket, &file.socket, api::DEFAULT_SOCKET)?;
    let snapshots_dir = match options.snapshots.clone().or(file.snapshots_dir) {
        Some(path) if path == Path::new("none") => None,
        other => Some(absolute(other.as_deref().unwrap_or(Path::new("/snapshots")))?),
    };
    Ok(Config {
        pool: pick(&options.pool, &file.pool, DEFAULT_POOL)?,
        run_dir: file.run_dir.unwrap_or_else(|| default_run_dir(&socket)),
        socket,
        socket_group: file.socket_group,
        snapshots_dir,
        allow_other: file.allow_other.unwrap_or(false),
        owners: Owners {
            users: id_map(file.snapshots_uid_map.as_ref()).unwrap_or_default(),
            groups: id_map(file.snapshots_gid_map.as_ref()).unwrap_or_default(),
        },
        snapshots_user: file.snapshots_user,
        transport: options.transport.or(file.transport).unwrap_or_default(),
        ublk_zero_copy: file.ublk_zero_copy.unwrap_or(true),
        device_dir: file.device_dir.unwrap_or_else(|| "/dev/cowslip".into()),
        ring_dir: file.ring_dir,
        cache_bytes: file.cache_bytes.unwrap_or(DEFAULT_CACHE_BYTES),
        freeze_deadline: Duration::from_millis(file.freeze_deadline_ms.unwrap_or(10_000)),
        log: match (options.quiet, options.verbose) {
            (true, _) => "warn".into(),
            (false, 0) => file.log.unwrap_or_else(|| "info".into()),
            (false, 1) => "debug".into(),
            (false, _) => "trace".into(),
        },
    })
}

/// Two agents with two sockets never share run-time files.
fn default_run_dir(socket: &Path) -> PathBuf {
    if socket.parent() == Some(Path::new(DEFAULT_RUN_DIR)) {
        return DEFAULT_RUN_DIR.into();
    }
    let mut name = socket.as_os_str().to_owned();
    name.push(".d");
    name.into()
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::new(ErrorKind::Invalid, format!("path `{}`: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, options: &AgentOptions) -> Result<Config> {
        resolve(options, parse(Path::new("/c.toml"), text)?)
    }

    #[test]
    fn the_sample_is_valid_and_shows_the_defaults() {
        let sample = load(include_str!("../config.sample.toml"), &AgentOptions::default()).unwrap();
        let defaults = load("", &AgentOptions::default()).unwrap();
        let expected = Config {
            socket_group: Some("root".into()),
            ring_dir: Some("/run/cowslip/ring".into()),
            snapshots_user: Some("cowslip-view".into()),
            ..defaults
        };
        assert_eq!(sample, expected);
    }

    #[test]
    fn the_sample_describes_every_key() {
        let text = load("no_such_key = 1", &AgentOptions::default()).unwrap_err().message;
        let (_, keys) = text.split_once("expected one of ").unwrap();
        for key in keys.split(", ").map(|key| key.trim_matches('`')) {
            let sample = include_str!("../config.sample.toml");
            assert!(sample.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
        }
    }

    #[test]
    fn good_files() {
        let check = |text: &str, see: fn(&Config) -> bool| {
            assert!(see(&load(text, &AgentOptions::default()).unwrap()), "{text}");
        };
        check("", |c| c.pool == Path::new("/var/lib/cowslip") && c.transport == Transport::Auto);
        check("snapshots_dir = 'none'", |c| c.snapshots_dir.is_none());
        check("transport = 'loop'", |c| c.transport == Transport::Loop);
        check("log = 'warn,store=trace'", |c| c.log == "warn,store=trace");
        check("freeze_deadline_ms = 100", |c| c.freeze_deadline == Duration::from_millis(100));
        check("socket = '/x/a.sock'", |c| c.run_dir == Path::new("/x/a.sock.d"));
        check("run_dir = '/y'", |c| c.run_dir == Path::new("/y"));
        check("snapshots_uid_map = ['0:1000:1']", |c| c.owners.users.shown(0) == 1000);
        check("snapshots_gid_map = ['5:7:2']", |c| {
            (c.owners.groups.shown(6), c.owners.users.shown(6)) == (8, 6)
        });
    }

    #[test]
    fn bad_files_name_file_line_and_key() {
        let check = |text: &str, words: &[&str]| {
            let error = load(text, &AgentOptions::default()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(!error.message.contains('\n'), "{}", error.message);
            for word in words {
                assert!(error.message.contains(word), "{word:?} is not in {:?}", error.message);
            }
        };
        check("# x\npoool = '/a'", &["/c.toml:2:", "`poool`", "`pool`"]);
        check("pool = 7", &["/c.toml:1:", "pool", "integer"]);
        check("\n\npool = 'rel'", &["/c.toml:3:", "pool", "`rel`", "absolute"]);
        check("transport = 'nbd'", &["/c.toml:1:", "transport", "`nbd`", "`loop`"]);
        check("pool = '/a'\ncache_bytes = 4096", &["/c.toml:2:", "cache_bytes", "1048576"]);
        check("cache_bytes = -1", &["/c.toml:1:", "cache_bytes"]);
        check("freeze_deadline_ms = 0", &["/c.toml:1:", "freeze_deadline_ms", "100"]);
        check("log = 'info,=,=x'", &["/c.toml:1:", "log"]);
        check("pool = '/a'\npool = '/b'", &["/c.toml:2:", "duplicate"]);
        check("pool = '/a", &["/c.toml:1:"]);
        check("[section]", &["/c.toml:1:", "`section`"]);
    }

    #[test]
    fn the_command_line_wins() {
        let options = AgentOptions {
            pool: Some("/p".into()),
            socket: Some("rel.sock".into()),
            snapshots: Some("none".into()),
            transport: Some(Transport::None),
            verbose: 1,
            ..AgentOptions::default()
        };
        let config = load("pool = '/x'\nsocket = '/y'\ntransport = 'loop'\nlog = 'error'", &options).unwrap();
        assert_eq!(config.pool, Path::new("/p"));
        assert_eq!(config.socket, std::env::current_dir().unwrap().join("rel.sock"));
        assert_eq!((config.snapshots_dir, config.transport), (None, Transport::None));
        assert_eq!(config.log, "debug");
    }

    #[test]
    fn only_a_named_file_must_exist() {
        let options = AgentOptions { config: Some("/nonexistent/c.toml".into()), ..AgentOptions::default() };
        let error = Config::load(&options).unwrap_err();
        assert!(error.message.contains("/nonexistent/c.toml"), "{error}");
    }
}
