//! Settings of a server: every one a flag, an environment variable and a key of the config file.
//!
//! The raw form is what people write; [`Settings`] is what was checked. Nothing after `main` sees
//! the raw one, and one run reports all mistakes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use coracle_base::{Address, telemetry::LogFormat};
use coracle_controller::artifacts::{StoreUrl, StoreUrlError};
use coracle_identity::{CaHash, Invitation};
use serde::Deserialize;

use crate::error::CliError;

/// A flag wins over its environment variable, and that over the key of the same name (with `-` for
/// `_`) in the config file.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RawSettings {
    /// Config file (TOML); its keys are the names of these flags
    #[arg(long, env = "CORACLE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// Data directory [default: /var/lib/coracle for root, else the XDG state directory]
    #[arg(long, env = "CORACLE_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Invocation listener [default: 127.0.0.1:8080]
    #[arg(long, env = "CORACLE_INVOKE", value_name = "ADDR")]
    pub(crate) invoke: Option<String>,
    /// API listener [default: 127.0.0.1:8081]
    #[arg(long, env = "CORACLE_API", value_name = "ADDR")]
    pub(crate) api: Option<String>,
    /// Admin listener: health and metrics [default: 127.0.0.1:9090]
    #[arg(long, env = "CORACLE_ADMIN", value_name = "ADDR")]
    pub(crate) admin: Option<String>,
    /// Allow listeners beyond loopback to speak plain HTTP
    #[arg(long, env = "CORACLE_ALLOW_PLAIN_HTTP", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) allow_plain_http: Option<bool>,
    /// Where clients reach the invocation listener [default: http://<invoke>]
    #[arg(long, env = "CORACLE_PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// Route <function>-<namespace>.<domain> to functions
    #[arg(long, env = "CORACLE_BASE_DOMAIN", value_name = "DOMAIN")]
    pub(crate) base_domain: Option<String>,
    /// Gateway threads [default: one a core]
    #[arg(long, env = "CORACLE_GATEWAY_THREADS", value_name = "N")]
    pub(crate) gateway_threads: Option<u32>,
    /// Largest request body in bytes [default: 6291456]
    #[arg(long, env = "CORACLE_MAX_BODY", value_name = "BYTES")]
    pub(crate) max_body: Option<u64>,
    /// Requests that may wait for an instance, per function [default: 100]
    #[arg(long, env = "CORACLE_MAX_QUEUE", value_name = "N")]
    pub(crate) max_queue: Option<u32>,
    /// Seconds without a request until a function without a minimum has no instance [default: 60]
    #[arg(long, env = "CORACLE_IDLE_AFTER", value_name = "SECONDS")]
    pub(crate) idle_after: Option<u32>,
    /// Autoscaler's stable window in seconds [default: 60]
    #[arg(long, env = "CORACLE_STABLE_WINDOW", value_name = "SECONDS")]
    pub(crate) stable_window: Option<u32>,
    /// Autoscaler's panic window in seconds [default: 6]
    #[arg(long, env = "CORACLE_PANIC_WINDOW", value_name = "SECONDS")]
    pub(crate) panic_window: Option<u32>,
    /// Stems kept ready per runtime in use [default: 4]
    #[arg(long, env = "CORACLE_STEMS", value_name = "N")]
    pub(crate) stems: Option<u32>,
    /// Seconds that a silent node's instances count as alive before they are replaced [default: 15]
    #[arg(long, env = "CORACLE_NODE_GRACE", value_name = "SECONDS")]
    pub(crate) node_grace: Option<u32>,
    /// Told by HTTP POST when room for instances is short or nodes are idle: http://host/path
    #[arg(long, env = "CORACLE_CAPACITY_WEBHOOK", value_name = "URL")]
    pub(crate) capacity_webhook: Option<String>,
    /// Seconds of missing instances until the webhook is told [default: 30]
    #[arg(long, env = "CORACLE_CAPACITY_SHORT_AFTER", value_name = "SECONDS")]
    pub(crate) capacity_short_after: Option<u32>,
    /// Seconds that a node has run nothing until the webhook is told [default: 600]
    #[arg(long, env = "CORACLE_CAPACITY_IDLE_AFTER", value_name = "SECONDS")]
    pub(crate) capacity_idle_after: Option<u32>,
    /// This node's name [default: the host name]
    #[arg(long, env = "CORACLE_NODE_NAME", value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// A label of this node, `key=value`; may be repeated
    #[arg(
        long,
        env = "CORACLE_LABELS",
        value_name = "K=V",
        value_delimiter = ','
    )]
    #[serde(alias = "labels")]
    pub(crate) label: Option<Vec<String>>,
    /// What runs instances: `containerd`, or `fake` where the binary was built for tests
    #[arg(long, env = "CORACLE_DRIVER", value_name = "DRIVER", hide = true)]
    pub(crate) driver: Option<String>,
    /// containerd's socket [default: the machine's if it answers, else a private containerd]
    #[arg(long, env = "CORACLE_CONTAINERD", value_name = "PATH")]
    pub(crate) containerd: Option<PathBuf>,
    /// Where runtime images come from: `recipe` (mmdebstrap) or `host-packages`
    /// [default: recipe]
    #[arg(long, env = "CORACLE_IMAGE_ROUTE", value_name = "ROUTE")]
    pub(crate) image_route: Option<String>,
    /// Directory of runtime images [default: images in the data directory]
    #[arg(long, env = "CORACLE_IMAGES", value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
    /// Network in CIDR notation that functions may reach although it is private; may be repeated
    #[arg(
        long,
        env = "CORACLE_EGRESS_ALLOW",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub(crate) egress_allow: Option<Vec<String>>,
    /// Seconds that a stopping server waits for running requests [default: 30]
    #[arg(long, env = "CORACLE_GRACE", value_name = "SECONDS")]
    pub(crate) grace: Option<u32>,
    /// Seconds that a gateway goes on taking requests once /readyz says that it stops, for whatever
    /// stands in front to notice [default: 2 for a gateway by itself, 0 for `up`]
    #[arg(long, env = "CORACLE_UNREADY", value_name = "SECONDS")]
    pub(crate) unready: Option<u32>,
    /// Log filter, such as `info` or `coracle_gateway=debug,info` [default: info]
    #[arg(long, env = "CORACLE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Log format: `auto`, `human` or `json` [default: auto]
    #[arg(long, env = "CORACLE_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
    /// Where a controller, or an agent for gateways on other machines, serves the other roles:
    /// `unix:/path` or host:port [default: for an agent, a socket in the data directory]
    #[arg(long, env = "CORACLE_LISTEN", value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Where controllers keep artifacts: `file` (each in its data directory), `s3://bucket/prefix`
    /// or `file:///directory` (one that all controllers share) [default: file]
    #[arg(long, env = "CORACLE_ARTIFACT_STORE", value_name = "URL")]
    pub(crate) artifact_store: Option<String>,
    /// Where others reach this listener: host:port [default: what --listen says]
    #[arg(long, env = "CORACLE_ADVERTISE", value_name = "ADDR")]
    pub(crate) advertise: Option<String>,
    /// Controllers of the cluster to join, separated by commas; ignored once that is done
    #[arg(long, env = "CORACLE_JOIN", value_name = "ADDR", value_delimiter = ',')]
    pub(crate) join: Option<Vec<String>>,
    /// Join token, from `coracle node token`
    #[arg(
        long,
        env = "CORACLE_JOIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// Hash of the cluster's CA, from `coracle node token`
    #[arg(long, env = "CORACLE_CA_HASH", value_name = "HASH")]
    pub(crate) ca_hash: Option<String>,
    /// Controllers to dial, separated by commas (agent and gateway only)
    #[arg(
        long,
        env = "CORACLE_CONTROLLERS",
        value_name = "ADDR",
        value_delimiter = ','
    )]
    pub(crate) controllers: Option<Vec<String>>,
}

macro_rules! or_else {
    ($flags:expr, $file:expr, $($field:ident),* $(,)?) => {
        RawSettings { config: $flags.config, $($field: $flags.$field.or($file.$field),)* }
    };
}

impl RawSettings {
    /// These settings with the config file underneath.
    fn over_file(self) -> Result<Self, String> {
        let Some(path) = self.config.clone() else {
            return Ok(self);
        };
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("config file {}: {error}", path.display()))?;
        let file: Self = toml::from_str(&text)
            .map_err(|error| format!("config file {}: {error}", path.display()))?;
        Ok(or_else!(
            self,
            file,
            data,
            invoke,
            api,
            admin,
            allow_plain_http,
            public_url,
            base_domain,
            gateway_threads,
            max_body,
            max_queue,
            idle_after,
            stable_window,
            panic_window,
            stems,
            node_grace,
            capacity_webhook,
            capacity_short_after,
            capacity_idle_after,
            node_name,
            label,
            driver,
            containerd,
            image_route,
            images,
            egress_allow,
            grace,
            unready,
            log,
            log_format,
            listen,
            advertise,
            join,
            token,
            ca_hash,
            artifact_store,
            controllers,
        ))
    }

    /// Checks everything and reports every mistake at once.
    pub(crate) fn check(self) -> Result<Settings, CliError> {
        let raw = self.over_file().map_err(CliError::Usage)?;
        let mut errors = Vec::new();
        let checked = Settings::from_raw(raw, &mut errors);
        match checked {
            Some(settings) if errors.is_empty() => Ok(settings),
            _ => Err(CliError::Usage(errors.join("\n"))),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageRoute {
    Recipe,
    HostPackages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Containerd,
    #[cfg(feature = "fake-driver")]
    Fake,
}

/// Checked settings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) data: PathBuf,
    pub(crate) invoke: SocketAddr,
    pub(crate) api: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) public_url: Option<String>,
    pub(crate) base_domain: Option<String>,
    pub(crate) gateway_threads: usize,
    pub(crate) max_body: u64,
    pub(crate) max_queue: usize,
    pub(crate) idle_after: Duration,
    pub(crate) stable_window: Duration,
    pub(crate) panic_window: Duration,
    pub(crate) stems: u32,
    pub(crate) node_grace: Duration,
    pub(crate) capacity_webhook: Option<http::Uri>,
    pub(crate) capacity_short_after: Duration,
    pub(crate) capacity_idle_after: Duration,
    pub(crate) node_name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) driver: Driver,
    pub(crate) containerd: Option<PathBuf>,
    pub(crate) image_route: ImageRoute,
    pub(crate) images: PathBuf,
    pub(crate) egress_allow: Vec<String>,
    pub(crate) grace: Duration,
    pub(crate) unready: Option<Duration>,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
    pub(crate) listen: Option<Address>,
    pub(crate) advertise: Option<String>,
    pub(crate) join: Option<Invitation>,
    pub(crate) artifact_store: StoreUrl,
    pub(crate) controllers: Vec<Address>,
}

const IDLE_AFTER: u32 = 60;
const STABLE_WINDOW: u32 = 60;
const PANIC_WINDOW: u32 = 6;
const NODE_GRACE: u32 = 15;
const SHORT_AFTER: u32 = 30;
const IDLE_NODE_AFTER: u32 = 600;
const GRACE: u32 = 30;
const MAX_BODY: u64 = 6 * 1024 * 1024;

impl Settings {
    fn from_raw(raw: RawSettings, errors: &mut Vec<String>) -> Option<Self> {
        let plain = raw.allow_plain_http.unwrap_or(false);
        let mut listener = |name: &str, value: Option<String>, default: &str, guarded: bool| {
            let text = value.unwrap_or_else(|| default.to_owned());
            match text.parse::<SocketAddr>() {
                Ok(address) if guarded && !plain && !address.ip().is_loopback() => {
                    errors.push(format!(
                        "{name}: {address} is beyond loopback and would speak plain HTTP; put a \
                         TLS proxy in front, or ask for it with --allow-plain-http"
                    ));
                    None
                }
                Ok(address) => Some(address),
                Err(_) => {
                    errors.push(format!(
                        "{name}: {text:?} is not an address such as {default}"
                    ));
                    None
                }
            }
        };
        let invoke = listener("invoke", raw.invoke, "127.0.0.1:8080", true);
        let api = listener("api", raw.api, "127.0.0.1:8081", true);
        let admin = listener("admin", raw.admin, "127.0.0.1:9090", true);
        let seconds = |value: Option<u32>, default: u32| {
            Duration::from_secs(u64::from(value.unwrap_or(default)))
        };
        let mut labels = BTreeMap::new();
        for label in raw.label.unwrap_or_default() {
            match label.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    labels.insert(key.to_owned(), value.to_owned());
                }
                _ => errors.push(format!("label: {label:?} is not of the form key=value")),
            }
        }
        let driver = match raw.driver.as_deref() {
            None | Some("containerd") => Driver::Containerd,
            #[cfg(feature = "fake-driver")]
            Some("fake") => Driver::Fake,
            Some(other) => {
                errors.push(format!("driver: {other:?} is not containerd"));
                Driver::Containerd
            }
        };
        let image_route = match raw.image_route.as_deref() {
            None | Some("recipe") => ImageRoute::Recipe,
            Some("host-packages") => ImageRoute::HostPackages,
            Some(other) => {
                errors.push(format!(
                    "image-route: {other:?} is not recipe or host-packages"
                ));
                ImageRoute::Recipe
            }
        };
        let log_format = match raw.log_format.as_deref() {
            None | Some("auto") => LogFormat::Auto,
            Some("human") => LogFormat::Human,
            Some("json") => LogFormat::Json,
            Some(other) => {
                errors.push(format!("log-format: {other:?} is not auto, human or json"));
                LogFormat::Auto
            }
        };
        let public_url = raw
            .public_url
            .map(|url| url.trim_end_matches('/').to_owned());
        if let Some(url) = &public_url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            errors.push(format!(
                "public-url: {url:?} must start with http:// or https://"
            ));
        }
        let capacity_webhook = raw.capacity_webhook.as_deref().and_then(|text| {
            let url = text.parse::<http::Uri>().ok();
            let url = url.filter(|url| url.scheme_str() == Some("http") && url.host().is_some());
            if url.is_none() {
                errors.push(format!(
                    "capacity-webhook: {text:?} is not of the form http://host:port/path"
                ));
            }
            url
        });
        let base_domain = raw
            .base_domain
            .map(|d| d.trim_matches('.').to_ascii_lowercase());
        if let Some(domain) = &base_domain {
            let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
            if domain.is_empty() || !domain.bytes().all(ok) {
                errors.push(format!("base-domain: {domain:?} is not a domain name"));
            }
        }
        let threads = raw.gateway_threads.map_or_else(cores, |n| n as usize);
        if threads == 0 {
            errors.push("gateway-threads: must be at least 1".to_owned());
        }
        let artifact_store = raw.artifact_store.as_deref().map(str::parse).transpose();
        let artifact_store = artifact_store.unwrap_or_else(|error: StoreUrlError| {
            errors.push(format!("artifact-store: {error}"));
            None
        });
        let mut address = |name: &str, text: &str| match text.parse::<Address>() {
            Ok(address) => Some(address),
            Err(error) => {
                errors.push(format!("{name}: {error}"));
                None
            }
        };
        let listen = raw
            .listen
            .as_deref()
            .and_then(|text| address("listen", text));
        let controllers = raw
            .controllers
            .unwrap_or_default()
            .iter()
            .filter_map(|text| address("controllers", text))
            .collect();
        let advertise = raw.advertise;
        if let Some(text) = &advertise
            && !matches!(text.parse(), Ok(Address::Tcp(_)))
        {
            errors.push(format!("advertise: {text:?} is not of the form host:port"));
        }
        let join = invitation(raw.join, raw.token, raw.ca_hash, errors);
        let data = match raw.data.map_or_else(default_data, Ok) {
            Ok(data) => std::path::absolute(&data).unwrap_or(data),
            Err(error) => {
                errors.push(error);
                PathBuf::new()
            }
        };
        let images = raw.images.map_or_else(
            || data.join("images"),
            |dir| std::path::absolute(&dir).unwrap_or(dir),
        );
        let egress_allow = raw.egress_allow.unwrap_or_default();
        for network in egress_allow
            .iter()
            .filter(|network| !is_ipv4_network(network))
        {
            errors.push(format!(
                "egress-allow: {network:?} is not of the form 10.0.0.0/8"
            ));
        }
        Some(Self {
            images,
            egress_allow,
            data,
            invoke: invoke?,
            api: api?,
            admin: admin?,
            public_url,
            base_domain,
            gateway_threads: threads,
            max_body: raw.max_body.unwrap_or(MAX_BODY),
            max_queue: raw.max_queue.unwrap_or(100) as usize,
            idle_after: seconds(raw.idle_after, IDLE_AFTER),
            stable_window: seconds(raw.stable_window, STABLE_WINDOW),
            panic_window: seconds(raw.panic_window, PANIC_WINDOW),
            stems: raw.stems.unwrap_or(4),
            node_grace: seconds(raw.node_grace, NODE_GRACE),
            capacity_webhook,
            capacity_short_after: seconds(raw.capacity_short_after, SHORT_AFTER),
            capacity_idle_after: seconds(raw.capacity_idle_after, IDLE_NODE_AFTER),
            node_name: raw.node_name.unwrap_or_else(host_name),
            labels,
            driver,
            containerd: raw.containerd,
            image_route,
            grace: seconds(raw.grace, GRACE),
            unready: raw
                .unready
                .map(|seconds| Duration::from_secs(u64::from(seconds))),
            log: raw.log.unwrap_or_else(|| "info".to_owned()),
            log_format,
            listen,
            advertise,
            join,
            artifact_store: artifact_store.unwrap_or_default(),
            controllers,
        })
    }
}

/// The three say together how to join.
fn invitation(
    join: Option<Vec<String>>,
    token: Option<String>,
    ca_hash: Option<String>,
    errors: &mut Vec<String>,
) -> Option<Invitation> {
    let before = errors.len();
    let controllers = join?;
    for text in &controllers {
        if !matches!(text.parse(), Ok(Address::Tcp(_))) {
            errors.push(format!("join: {text:?} is not of the form host:port"));
        }
    }
    if token.is_none() {
        errors.push("token: --join needs --token; `coracle node token` makes one".to_owned());
    }
    let ca_hash = match ca_hash.as_deref().map(str::parse::<CaHash>) {
        Some(Ok(hash)) => Some(hash),
        Some(Err(error)) => {
            errors.push(error.to_string());
            None
        }
        None => {
            errors.push(
                "ca-hash: --join needs --ca-hash, without which anybody could answer; `coracle \
                 node token` prints it"
                    .to_owned(),
            );
            None
        }
    };
    if errors.len() > before {
        return None;
    }
    Some(Invitation {
        controllers,
        token: token?,
        ca_hash: ca_hash?,
    })
}

fn is_ipv4_network(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<std::net::Ipv4Addr>().is_ok()
            && bits.parse::<u8>().is_ok_and(|bits| bits <= 32)
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// `/var/lib/coracle` for root; otherwise under the XDG state directory.
pub(crate) fn default_data() -> Result<PathBuf, String> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/coracle".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
    state
        .or(home)
        .map(|dir| dir.join("coracle"))
        .ok_or_else(|| "data: neither HOME nor XDG_STATE_HOME is set; give --data".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let raw = RawSettings {
            invoke: Some("nowhere".into()),
            admin: Some("0.0.0.0:1".into()),
            image_route: Some("magic".into()),
            label: Some(vec!["zone".into()]),
            public_url: Some("ftp://x".into()),
            artifact_store: Some("s4://bucket".into()),
            ..RawSettings::default()
        };
        let CliError::Usage(text) = raw.check().unwrap_err() else {
            panic!("not a usage error")
        };
        for field in [
            "invoke",
            "admin",
            "image-route",
            "label",
            "public-url",
            "artifact-store",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(field)),
                "{field} in {text}"
            );
        }
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "idle-after = 5\nstems = 9\nlabel = [\"zone=a\"]\n").unwrap();
        let raw = RawSettings {
            config: Some(path.clone()),
            stems: Some(2),
            data: Some("/d".into()),
            ..RawSettings::default()
        };
        let settings = raw.clone().check().unwrap();
        assert_eq!((settings.idle_after.as_secs(), settings.stems), (5, 2));
        assert_eq!(settings.labels["zone"], "a");
        std::fs::write(&path, "idel-after = 5\n").unwrap();
        assert!(matches!(raw.check(), Err(CliError::Usage(text)) if text.contains("idel-after")));
    }
}
