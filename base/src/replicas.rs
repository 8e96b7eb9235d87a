//! The servers of one replicated service, of which one leads: where they are, and who leads.
//!
//! Addresses come from the configuration and from what servers tell; connections to those that stay
//! are kept when the list changes. A question goes to whoever led last. While that one does not
//! answer, or says that it does not lead, the others are asked too, the one that is named as the
//! leader first.

mod ask;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::watch;
use tonic::{Status, transport::Channel};

use crate::Address;
pub use ask::Pace;

/// On the refusal of a server that does not lead: where the one is that does.
pub const LEADER_ADDRESS_KEY: &str = "coracle-leader-address";

/// Makes an address of what a server tells.
pub type Resolve = Arc<dyn Fn(&str) -> Result<Address, String> + Send + Sync>;
/// Keeps the addresses for the next start.
pub type Keep = Arc<dyn Fn(&[String]) + Send + Sync>;

/// What servers told before, and what becomes of what they tell.
#[derive(Clone)]
pub struct Told {
    pub addresses: Vec<String>,
    pub resolve: Resolve,
    pub keep: Keep,
}

impl Default for Told {
    /// Nothing yet, no TLS, and nothing is kept.
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            resolve: Arc::new(|text| Address::told(text, None)),
            keep: Arc::new(|_| ()),
        }
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// One server. Equal to any other at the same address.
#[derive(Debug, Clone)]
pub struct Server {
    address: Arc<str>,
    channel: Channel,
}

impl Server {
    fn new(address: &Address) -> Self {
        Self::named(address.to_string(), address)
    }

    fn named(name: String, address: &Address) -> Self {
        Self {
            address: name.into(),
            channel: address.watchful_channel(),
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}

impl Eq for Server {}

/// Clones are the same set.
#[derive(Clone)]
pub struct Replicas(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// The server that led last.
    leader: watch::Sender<Option<Server>>,
    resolve: Resolve,
    keep: Keep,
}

struct State {
    /// Those of the configuration stay, so that a wrong word can be corrected.
    given: Vec<Server>,
    told: Vec<String>,
    /// All of them, told ones first.
    all: Vec<Server>,
    /// Whom to ask first.
    first: usize,
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Replicas").field(&self.addresses()).finish()
    }
}

impl Replicas {
    /// Has to be called inside the runtime that is to carry the connections, as have the other
    /// methods that may make some. `given` is never empty.
    pub fn new(given: &[Address], told: Told) -> Self {
        let given = given.iter().enumerate().map(|(at, address)| match address {
            // In memory there is nothing to tell one from the other by.
            Address::Memory(_) => Server::named(format!("memory:{at}"), address),
            _ => Server::new(address),
        });
        let given: Vec<_> = given.collect();
        let state = State {
            all: given.clone(),
            given,
            told: Vec::new(),
            first: 0,
        };
        let replicas = Self(Arc::new(Inner {
            state: Mutex::new(state),
            leader: watch::Sender::new(None),
            resolve: told.resolve,
            keep: told.keep,
        }));
        replicas.take(&told.addresses);
        replicas
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .state
            .lock()
            .expect("never poisoned: no panic while held")
    }

    /// All of them, beginning with the one to ask first.
    pub fn each(&self) -> Vec<Server> {
        let state = self.state();
        let mut all = state.all.clone();
        all.rotate_left(state.first);
        all
    }

    pub fn first(&self) -> Server {
        let state = self.state();
        state.all[state.first].clone()
    }

    pub fn addresses(&self) -> Vec<String> {
        let state = self.state();
        let addresses = state.all.iter().map(|server| server.address.to_string());
        addresses.collect()
    }

    /// It leads, as far as its answer tells.
    pub fn leads(&self, server: &Server) {
        let mut state = self.state();
        if let Some(at) = state.all.iter().position(|known| known == server) {
            state.first = at;
        }
        drop(state);
        self.0.leader.send_if_modified(|leader| {
            let news = leader.as_ref() != Some(server);
            *leader = Some(server.clone());
            news
        });
    }

    /// It does not answer, or its word is out of date: another one is asked first from now on,
    /// unless somebody else has seen to that.
    pub fn avoid(&self, server: &Server) {
        let mut state = self.state();
        if state.all[state.first] == *server {
            state.first = (state.first + 1) % state.all.len();
        }
    }

    /// The server that led last, as it changes.
    pub fn leader(&self) -> watch::Receiver<Option<Server>> {
        self.0.leader.subscribe()
    }

    /// Whom a refusal names as the leader.
    fn hinted(&self, refusal: &Status) -> Option<Server> {
        let text = refusal.metadata().get(LEADER_ADDRESS_KEY)?.to_str().ok()?;
        let address = self.resolved(text)?;
        let mut state = self.state();
        let known = state
            .all
            .iter()
            .find(|known| *known.address == *address.to_string());
        if let Some(known) = known {
            return Some(known.clone());
        }
        // Everybody else hears of it in the next list.
        let server = Server::new(&address);
        state.all.push(server.clone());
        Some(server)
    }

    fn resolved(&self, text: &str) -> Option<Address> {
        (self.0.resolve)(text)
            .inspect_err(|error| tracing::warn!(%error, "an address that was told is unusable"))
            .ok()
    }

    /// All servers there are, as one of them says. An empty list says nothing.
    pub fn learn(&self, told: &[String]) {
        if self.take(told) {
            tracing::info!(addresses = ?told, "the list of controllers has changed");
            (self.0.keep)(told);
        }
    }

    /// Whether that is news.
    fn take(&self, told: &[String]) -> bool {
        let mut told = told.to_vec();
        told.sort_unstable();
        told.dedup();
        if told.is_empty() || self.state().told == told {
            return false;
        }
        let usable: Vec<_> = told.iter().filter_map(|text| self.resolved(text)).collect();
        let mut state = self.state();
        let first = state.all[state.first].clone();
        let mut all: Vec<Server> = Vec::new();
        for address in usable {
            let text = address.to_string();
            let known = state.all.iter().find(|known| *known.address == *text);
            all.push(known.cloned().unwrap_or_else(|| Server::new(&address)));
        }
        for given in &state.given {
            if !all.contains(given) {
                all.push(given.clone());
            }
        }
        state.first = all.iter().position(|known| *known == first).unwrap_or(0);
        state.all = all;
        state.told = told;
        true
    }
}
