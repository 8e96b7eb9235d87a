//! What a gateway is told when it is built.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use coracle_base::{Address, Clock, SystemClock, Tls, Told};
use coracle_model::NodeId;
use uuid::Uuid;

/// Everything a gateway needs to know. Checked by [`Config::bind`](crate::Config::bind).
#[derive(Debug, Clone)]
pub struct Config {
    /// Names this gateway in demand reports and activations; fresh at every start.
    pub gateway_id: Uuid,
    /// Any of the controllers; the gateway finds the one that leads. Never empty.
    pub controllers: Vec<Address>,
    /// What controllers say of where they are.
    pub told: Told,
    /// Where to dial a node whose address is `memory:`, when the agent shares our process.
    pub local_node: Option<Address>,
    /// The node of this data directory: its instances' sockets are on this machine, whatever the
    /// address that its agent tells others.
    pub local_node_id: Option<NodeId>,
    /// What is shown to and believed of nodes on other machines.
    pub tls: Option<Tls>,
    /// The invocation listener. Port 0 lets the system choose.
    pub invoke: SocketAddr,
    /// The API listener. Port 0 lets the system choose.
    pub api: SocketAddr,
    /// Threads of the invocation listener, each with a runtime of its own.
    pub threads: usize,
    /// How clients reach the invocation listener; derived from its address when absent.
    pub public_url: Option<String>,
    /// Serves `{function}-{namespace}.{base domain}` too.
    pub base_domain: Option<String>,
    /// The region that the cloud facades answer to.
    pub region: u32,
    pub version: String,
    /// Keep the `Forwarded` and `X-Forwarded-*` headers of clients and append to them. Only right
    /// behind a proxy that sets them itself; otherwise any client could claim any address.
    pub trust_forwarded: bool,
    pub limits: Limits,
    pub clock: Arc<dyn Clock>,
}

/// Bounds on what clients can make the gateway hold or wait for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest request body of an invocation, in bytes; 413 above it.
    pub body_max: u64,
    /// Largest request body on the API listener, in bytes.
    pub api_body_max: u64,
    /// Most header lines of a request; 431 above it.
    pub headers_max: usize,
    /// Largest request head, in bytes (at least 8 KiB); 431 above it.
    pub head_max: usize,
    /// From the start of a request's head to its end, and how long a kept connection may idle.
    pub head_timeout: Duration,
    /// Longest pause between two pieces of a request's body.
    pub body_idle_timeout: Duration,
    /// Most connections of each listener; further ones wait in the kernel's backlog.
    pub connections_max: usize,
    /// Most parked requests of one function; 429 above it.
    pub queue_per_function: usize,
    /// Most parked requests of all functions; 429 above it.
    pub queue_total: usize,
    /// From the word that it is to stop until nothing new is taken: whoever balances load has this
    /// long to see that it is not ready. Answers then close their connections.
    pub drain_delay: Duration,
    /// How long running requests may take to finish once a shutdown is asked for.
    pub drain_grace: Duration,
    /// Functions that get a metric label of their own; the rest share one.
    pub metric_functions_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_max: 6 << 20,
            api_body_max: 2 << 20,
            headers_max: 100,
            head_max: 32 << 10,
            head_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            connections_max: 10_000,
            queue_per_function: 100,
            queue_total: 10_000,
            drain_delay: Duration::ZERO,
            drain_grace: Duration::from_secs(30),
            metric_functions_max: 1_000,
        }
    }
}

impl Config {
    /// Loopback listeners on ports that the system chooses, and the default limits.
    pub fn new(controllers: Vec<Address>) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            gateway_id: Uuid::new_v4(),
            controllers,
            told: Told::default(),
            local_node: None,
            local_node_id: None,
            tls: None,
            invoke: loopback,
            api: loopback,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            public_url: None,
            base_domain: None,
            region: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_forwarded: false,
            limits: Limits::default(),
            clock: Arc::new(SystemClock),
        }
    }

    /// Every mistake at once, in whole sentences.
    pub(crate) fn check(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        if self.controllers.is_empty() {
            wrong.push("at least one controller address is needed".to_owned());
        }
        if self.threads == 0 {
            wrong.push("threads must be at least 1".to_owned());
        }
        if self.limits.head_max < 8 << 10 {
            wrong.push("limits.head_max must be at least 8192 bytes".to_owned());
        }
        if self.limits.connections_max == 0 {
            wrong.push("limits.connections_max must be at least 1".to_owned());
        }
        if let Some(url) = &self.public_url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            wrong.push(format!(
                "public_url {url:?} must start with http:// or https://"
            ));
        }
        if let Some(domain) = &self.base_domain {
            let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            if domain.is_empty() || domain.starts_with('.') || !domain.chars().all(ok) {
                wrong.push(format!(
                    "base_domain {domain:?} must be a lower-case domain name"
                ));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_named_at_once() {
        let mut config = Config::new(vec![]);
        config.threads = 0;
        config.public_url = Some("ftp://x".into());
        config.base_domain = Some("Fn.example".into());
        assert_eq!(config.check().unwrap_err().len(), 4);
    }
}
