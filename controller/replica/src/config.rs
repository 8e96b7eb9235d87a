//! Settings of one member of a group.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Config {
    /// This member's id: never 0, and never used again after the member is removed or its disk is
    /// lost, since a member that forgot its vote could elect a second leader.
    pub id: u64,
    /// The voters of a *new* group, the same list on each of them. Ignored once the store belongs
    /// to a group. Empty: wait to be added to an existing group.
    pub voters: Vec<u64>,
    /// One step of raft's clock. Heartbeats go out every `heartbeat_ticks`.
    pub tick: Duration,
    pub heartbeat_ticks: usize,
    /// Without a leader for this many ticks, up to twice as many (chosen from `seed`), a member
    /// stands for election.
    pub election_ticks: usize,
    /// Where election timeouts are drawn from. Different on each member in production; fixed in a
    /// simulation, which then repeats exactly.
    pub seed: u64,
    /// Differs in every start of a member, so that an answer to a question from before a restart is
    /// not taken for one from after it. Random in production.
    pub boot: u64,
    pub snapshots: SnapshotPolicy,
}

/// When the state is written out, and how much of the log stays behind it.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotPolicy {
    /// After this many applied entries.
    pub every_entries: u64,
    /// Or after this many bytes of applied commands, whichever comes first.
    pub every_bytes: u64,
    /// Entries kept behind the snapshot, so that a follower back from a short restart catches up
    /// from the log instead of being sent the whole state.
    pub keep_entries: u64,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self {
            every_entries: 10_000,
            every_bytes: 32 * 1024 * 1024,
            keep_entries: 2_000,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("a member's id must not be 0")]
    ZeroId,
    #[error("member {0} is listed twice among the voters")]
    Duplicate(u64),
    #[error("the tick must not be zero")]
    ZeroTick,
    #[error(
        "an election takes {election} ticks, which must be at least twice the {heartbeat} (and not 0) between heartbeats"
    )]
    Ticks { election: usize, heartbeat: usize },
    #[error("a snapshot every 0 entries or bytes would never let the log move")]
    SnapshotAlways,
}

impl Config {
    /// A group of one voter, as in a standalone server.
    pub fn alone(id: u64) -> Self {
        Self::member(id, vec![id])
    }

    /// One of the `voters` of a new group. Seed and boot are not random, as they should be outside
    /// of tests.
    pub fn member(id: u64, voters: Vec<u64>) -> Self {
        Self {
            id,
            voters,
            tick: Duration::from_millis(50),
            heartbeat_ticks: 1,
            election_ticks: 10,
            seed: id,
            boot: 0,
            snapshots: SnapshotPolicy::default(),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.id == 0 || self.voters.contains(&0) {
            return Err(ConfigError::ZeroId);
        }
        let mut sorted = self.voters.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::Duplicate(pair[0]));
        }
        if self.tick.is_zero() {
            return Err(ConfigError::ZeroTick);
        }
        let (election, heartbeat) = (self.election_ticks, self.heartbeat_ticks);
        if heartbeat == 0 || election < heartbeat.saturating_mul(2) {
            return Err(ConfigError::Ticks {
                election,
                heartbeat,
            });
        }
        if self.snapshots.every_entries == 0 || self.snapshots.every_bytes == 0 {
            return Err(ConfigError::SnapshotAlways);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_not_work() {
        let check = |change: fn(&mut Config), expected: ConfigError| {
            let mut config = Config::member(1, vec![1, 2, 3]);
            assert_eq!(config.validate(), Ok(()));
            change(&mut config);
            assert_eq!(config.validate(), Err(expected));
        };
        check(|c| c.id = 0, ConfigError::ZeroId);
        check(|c| c.voters.push(0), ConfigError::ZeroId);
        check(|c| c.voters.push(2), ConfigError::Duplicate(2));
        check(|c| c.tick = Duration::ZERO, ConfigError::ZeroTick);
        check(
            |c| c.heartbeat_ticks = 0,
            ConfigError::Ticks {
                election: 10,
                heartbeat: 0,
            },
        );
        check(
            |c| c.election_ticks = 1,
            ConfigError::Ticks {
                election: 1,
                heartbeat: 1,
            },
        );
        check(
            |c| c.snapshots.every_entries = 0,
            ConfigError::SnapshotAlways,
        );
    }
}
