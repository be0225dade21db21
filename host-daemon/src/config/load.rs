//! Merges the sources of settings and remembers where each value came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{FileFormat, Source as _, Value, ValueKind};

use super::show::{KEYS, LISTS, WORKFLOW};
use super::{Config, Dirs};
use crate::model::agent::is_workflow_name;
use crate::model::input::SettleOptions;

const PREFIX: &str = "HVKUBED_";

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file isn't there or can't be read.
    #[error("can't read the configuration file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("the configuration file {} is no TOML", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: toml::de::Error,
    },
    /// A key that does not exist.
    #[error("unknown setting {key} in {origin}; {hint}")]
    UnknownKey {
        /// Which.
        key: String,
        /// File, variable or flag.
        origin: String,
        /// What exists.
        hint: String,
    },
    /// A value that can't be.
    #[error("{key} ({origin}): {why}")]
    Value {
        /// Of which setting.
        key: String,
        /// File, variable or flag.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// The merge failed.
    #[error("can't merge the settings")]
    Merge(#[source] config::ConfigError),
}

/// Where settings come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Places on this machine.
    pub dirs: Dirs,
    /// The file that was asked for; it must exist.
    pub file: Option<PathBuf>,
    /// The environment; only names that begin with `HVKUBED_` are looked at.
    pub environment: Vec<(String, String)>,
    /// Flags: setting, value, and the flag as it was written.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    /// Those of this process, `file` being the one named by a flag.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect();
        let file =
            file.or_else(|| std::env::var_os("HVKUBE_CONFIG").filter(|f| !f.is_empty()).map(PathBuf::from));
        Self { dirs: Dirs::of_process(), file, environment, flags: Vec::new() }
    }
}

/// The settings, and where they came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// All of them.
    pub config: Config,
    /// Where each value that is no default came from.
    pub origins: BTreeMap<String, String>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

/// Merges the sources.
///
/// # Errors
/// [`ConfigError`], naming the setting and where it was set.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut values: BTreeMap<String, Value> = BTreeMap::new();
    let mut origins = BTreeMap::new();
    let file = match &sources.file {
        Some(file) => Some(file.clone()),
        None => sources.dirs.files.iter().find(|file| file.exists()).cloned(),
    };
    let mut set = |key: String, value: Value, origin: String| -> Result<(), ConfigError> {
        known(&key, &origin)?;
        origins.insert(key.clone(), origin);
        values.insert(key, value);
        Ok(())
    };

    if let Some(path) = &file {
        for (key, value) in read(path)? {
            set(key, value, path.display().to_string())?;
        }
    }
    for (name, value) in &sources.environment {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let key = rest.to_ascii_lowercase().replace("__", ".");
        let value = text(&key, value);
        set(key, value, format!("environment variable {name}"))?;
    }
    for (key, value, flag) in &sources.flags {
        set(key.clone(), text(key, value), format!("flag {flag}"))?;
    }

    let config = merge(&Config::defaults(&sources.dirs.state_dir), &values, &origins, sources)?;
    Ok(Loaded { config, origins, file })
}

/// A value that was written without TOML around it; lists have `:` between their entries.
fn text(key: &str, value: &str) -> Value {
    if LISTS.contains(&key) || key.starts_with("workflows.") && key.ends_with(".argv") {
        let entries: Vec<String> = value.split(':').filter(|e| !e.is_empty()).map(str::to_owned).collect();
        return entries.into();
    }
    value.into()
}

fn merge(
    defaults: &Config,
    values: &BTreeMap<String, Value>,
    origins: &BTreeMap<String, String>,
    sources: &Sources,
) -> Result<Config, ConfigError> {
    let base = config::Config::try_from(defaults).map_err(ConfigError::Merge)?;
    let with = |values: &mut dyn Iterator<Item = (&String, &Value)>| -> Result<Config, config::ConfigError> {
        let mut builder = config::Config::builder().add_source(base.clone());
        for (key, value) in values {
            builder = builder.set_override(key, value.clone())?;
        }
        builder.build()?.try_deserialize()
    };
    match with(&mut values.iter()) {
        Ok(mut config) => {
            check(&config, origins)?;
            absolute(&mut config.state_dir);
            absolute(&mut config.run_dir);
            absolute(&mut config.store.path);
            config.resolve(&sources.dirs);
            Ok(config)
        }
        Err(error) => {
            // One value at a time on top of the defaults finds the one that is at fault.
            for one in values {
                if let Err(error) = with(&mut std::iter::once(one)) {
                    let origin = origins.get(one.0).cloned().unwrap_or_default();
                    return Err(ConfigError::Value { key: one.0.clone(), origin, why: reason(&error) });
                }
            }
            Err(ConfigError::Merge(error))
        }
    }
}

/// The innermost words of an error: the key and the origin around them are said by ours.
fn reason(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::At { error, .. } => reason(error),
        config::ConfigError::Message(text) => text.clone(),
        config::ConfigError::Type { unexpected, expected, .. } => {
            format!("{unexpected} instead of {expected}")
        }
        other => other.to_string(),
    }
}

/// What a type can't say.
fn check(config: &Config, origins: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    let refuse = |key: &str, why: &str| {
        let origin = origins.get(key).cloned().unwrap_or_else(|| "default".into());
        Err(ConfigError::Value { key: key.into(), origin, why: why.into() })
    };
    if config.state_dir.as_os_str().is_empty() {
        return refuse("state_dir", "must not be empty");
    }
    if config.orchestrator.provision_parallel == 0 {
        return refuse("orchestrator.provision_parallel", "must be at least 1");
    }
    if config.orchestrator.keep_events_max == 0 {
        return refuse("orchestrator.keep_events_max", "must be at least 1");
    }
    if crate::model::ids::VmId::new(&config.orchestrator.host_id).is_err() {
        return refuse("orchestrator.host_id", "must be 2 to 63 characters of a-z, 0-9 and -");
    }
    if tracing_subscriber::EnvFilter::try_new(&config.log.level).is_err() {
        return refuse(
            "log.level",
            "must be error, warn, info, debug, trace, or directives like info,hvkube_host=debug",
        );
    }
    for (key, duration) in [
        ("orchestrator.boot_timeout", config.orchestrator.boot_timeout),
        ("orchestrator.answer_timeout", config.orchestrator.answer_timeout),
        ("orchestrator.agent_timeout", config.orchestrator.agent_timeout),
        ("orchestrator.queue_ageing", config.orchestrator.queue_ageing),
        ("orchestrator.settle_timeout", config.orchestrator.settle_timeout),
    ] {
        if duration.is_zero() {
            return refuse(key, "must be more than 0");
        }
    }
    if config.orchestrator.memory_limit_percent > 1000 {
        return refuse("orchestrator.memory_limit_percent", "must be at most 1000");
    }
    let times = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
    if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&config.agents.claim_ttl) {
        return refuse("agents.claim_ttl", "must be from 1s to 1h");
    }
    if config.agents.per_pool == 0 {
        return refuse("agents.per_pool", "must be at least 1");
    }
    for (name, workflow) in &config.workflows {
        if workflow.argv.first().is_none_or(String::is_empty) {
            return refuse(&format!("workflows.{name}.argv"), "must name a program");
        }
        if !times.contains(&workflow.timeout) {
            return refuse(&format!("workflows.{name}.timeout"), "must be from 1s to 24h");
        }
    }
    if config.orchestrator.settle_quiet > SettleOptions::MAX_QUIET {
        return refuse("orchestrator.settle_quiet", "must be at most 10s");
    }
    if config.orchestrator.settle_timeout > SettleOptions::MAX_TIMEOUT {
        return refuse("orchestrator.settle_timeout", "must be at most 2m");
    }
    Ok(())
}

fn absolute(path: &mut PathBuf) {
    if !path.as_os_str().is_empty()
        && let Ok(absolute) = std::path::absolute(&*path)
    {
        *path = absolute;
    }
}

fn read(path: &Path) -> Result<Vec<(String, Value)>, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    // Parsed once for its good error, with line and column.
    toml::from_str::<toml::Table>(&text)
        .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source })?;
    let table = config::File::from_str(&text, FileFormat::Toml).collect().map_err(ConfigError::Merge)?;
    let mut flat = Vec::new();
    flatten("", Value::new(None, ValueKind::Table(table)), &mut flat);
    flat.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(flat)
}

fn flatten(path: &str, value: Value, into: &mut Vec<(String, Value)>) {
    match value.kind {
        ValueKind::Table(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(&path, value, into);
            }
        }
        kind => into.push((path.to_owned(), Value::new(None, kind))),
    }
}

fn known(key: &str, origin: &str) -> Result<(), ConfigError> {
    if KEYS.iter().any(|known| known.path == key) {
        return Ok(());
    }
    if let Some((name, setting)) = key.strip_prefix("workflows.").and_then(|rest| rest.split_once('.')) {
        let hint = if !is_workflow_name(name) {
            format!(
                "the name {name:?} must be 1 to 63 characters of a-z, 0-9, - and _, and begin with one of the first two"
            )
        } else if WORKFLOW.contains(&setting) {
            return Ok(());
        } else {
            format!("a workflow has {}", WORKFLOW.join(", "))
        };
        return Err(ConfigError::UnknownKey { key: key.into(), origin: origin.into(), hint });
    }
    let section = key.split_once('.').map_or(key, |(section, _)| section);
    let inside: Vec<_> =
        KEYS.iter().filter_map(|known| known.path.strip_prefix(section)?.strip_prefix('.')).collect();
    let hint = if inside.is_empty() {
        "`hvkubed config --default` prints all there are".into()
    } else {
        format!("[{section}] has {}", inside.join(", "))
    };
    Err(ConfigError::UnknownKey { key: key.into(), origin: origin.into(), hint })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HypervisorKind;
    use crate::hypervisor::qemu::AccelChoice;

    fn sources(file: Option<&Path>) -> Sources {
        Sources {
            dirs: Dirs { files: Vec::new(), ..Dirs::system() },
            file: file.map(Path::to_owned),
            environment: Vec::new(),
            flags: Vec::new(),
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    fn refusal(sources: &Sources) -> String {
        crate::model::error::chain(&load(sources).expect_err("refused"))
    }

    #[test]
    fn flags_beat_the_environment_beats_the_file_beats_the_defaults() {
        let file =
            file("[qemu]\naccel = 'kvm'\nbinary = 'q1'\nimg_binary = 'i1'\n[store]\nsynchronous = false\n");
        let mut sources = sources(Some(file.path()));
        sources.environment = vec![
            ("HVKUBED_QEMU__ACCEL".into(), "tcg".into()),
            ("HVKUBED_QEMU__BINARY".into(), "q2".into()),
            ("HVKUBED_ORCHESTRATOR__PROVISION_PARALLEL".into(), "7".into()),
            ("HVKUBED_QEMU__FIRMWARE_DIRS".into(), "/a:/b".into()),
            ("HVKUBED_SIM__FAULTS".into(), "start_fails=0.5:vm_dies=0.001".into()),
            ("HVKUBED_SIM__TIME_FACTOR".into(), "0.25".into()),
            ("OTHER".into(), "ignored".into()),
        ];
        sources.flags = vec![("qemu.binary".into(), "q3".into(), "--set".into())];
        let loaded = load(&sources).expect("legal");
        let config = loaded.config;
        assert_eq!(config.qemu.accel, AccelChoice::Tcg);
        assert_eq!(config.qemu.binary, Path::new("q3"));
        assert_eq!(config.qemu.img_binary, Path::new("i1"));
        assert_eq!(config.orchestrator.provision_parallel, 7);
        assert_eq!(config.qemu.firmware_dirs, [Path::new("/a"), Path::new("/b")]);
        let faults: Vec<_> = config.sim.faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults, ["start_fails=0.5", "vm_dies=0.001"]);
        assert_eq!(config.sim.time_factor.to_string(), "0.25");
        assert!(!config.store.synchronous);
        assert_eq!(config.hypervisor, HypervisorKind::Qemu);
        assert_eq!(loaded.origins["qemu.binary"], "flag --set");
        assert_eq!(loaded.origins["qemu.accel"], "environment variable HVKUBED_QEMU__ACCEL");
        assert_eq!(loaded.origins["qemu.img_binary"], file.path().display().to_string());
        assert!(!loaded.origins.contains_key("listen"));
    }

    #[test]
    fn the_first_default_file_that_exists_is_read() {
        let file = file("listen = '127.0.0.1:1'\n");
        let mut sources = sources(None);
        assert_eq!(load(&sources).expect("legal").file, None);
        sources.dirs.files = vec!["/nonexistent".into(), file.path().to_owned()];
        assert_eq!(load(&sources).expect("legal").config.listen.port(), 1);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let mut unknown = sources(None);
        unknown.environment = vec![("HVKUBED_QEMU__ACCELL".into(), "tcg".into())];
        let text = refusal(&unknown);
        assert!(
            text.starts_with(
                "unknown setting qemu.accell in environment variable HVKUBED_QEMU__ACCELL; [qemu] has"
            ),
            "{text}"
        );

        for (toml, expected) in [
            ("lisen = 'x'", "unknown setting lisen in "),
            ("qemu = 3", "unknown setting qemu in "),
            ("listen = 'localhost'", "listen ("),
            ("[qemu]\naccel = 'fast'", "qemu.accel ("),
            ("[orchestrator]\nboot_timeout = '-3s'", "\"-3s\" is negative"),
            ("[orchestrator]\nboot_timeout = 'soon'", "write it like 300ms, 90s or 1h 30m"),
            ("[orchestrator]\nprovision_parallel = 0", "must be at least 1"),
            ("[orchestrator]\nkeep_events_max = 0", "must be at least 1"),
            ("[sim]\nfaults = ['fire=1']", "there are start_fails, save_corrupts"),
            ("[sim]\ntime_factor = -1.0", "is not between 0 and 100"),
            ("[log]\nlevel = 'a=b=c'", "log.level ("),
            ("[agents]\nclaim_ttl = '2h'", "must be from 1s to 1h"),
            ("[workflows.book]\ntimeout = '1m'", "workflows.book.argv (default): must name a program"),
            ("[workflows.book]\nargv = ['x']\ntimeout = '0s'", "must be from 1s to 24h"),
            ("[workflows.book]\nargs = ['x']", "a workflow has argv, cwd, timeout, as_root, screenshot"),
            ("[workflows.Book]\nargv = ['x']", "the name \"Book\" must be"),
            ("listen", "is no TOML: TOML parse error at line 1"),
        ] {
            let file = file(toml);
            let text = refusal(&sources(Some(file.path())));
            assert!(text.contains(expected), "{toml}: {text}");
            let placed = text.contains(&file.path().display().to_string()) || text.contains("(default)");
            assert!(placed, "{toml}: {text}");
        }
        assert!(
            refusal(&sources(Some(Path::new("/nonexistent")))).contains("can't read the configuration file")
        );
    }

    #[test]
    fn workflows_have_names_of_their_own() {
        let file = file("[workflows.book-flight]\nargv = ['/opt/book', '--fast']\ntimeout = '90s'\n");
        let mut sources = sources(Some(file.path()));
        sources.flags = vec![("workflows.other_1.argv".into(), "a:b".into(), "--set".into())];
        let loaded = load(&sources).expect("legal");
        let workflows = loaded.config.settings().agents.workflows;
        let book = &workflows["book-flight"];
        assert_eq!(book.argv, ["/opt/book", "--fast"]);
        assert_eq!((book.timeout, book.as_root, book.screenshot), (Duration::from_secs(90), false, true));
        assert_eq!(workflows["other_1"].argv, ["a", "b"]);
        let printed = crate::config::show::effective(&loaded);
        assert!(
            printed.contains("[workflows.book-flight]\nargv = [\"/opt/book\", \"--fast\"]  # "),
            "{printed}"
        );
    }

    #[test]
    fn durations_are_written_by_people() {
        let file = file("[orchestrator]\nsettle_quiet = '9s 300ms'\n");
        let config = load(&sources(Some(file.path()))).expect("legal").config;
        assert_eq!(config.settings().settle_quiet, Duration::from_millis(9_300));
    }
}
