//! What an agent is made from.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use coracle_base::{Address, Clock, Told};
use coracle_driver::InstanceDriver;
use coracle_model::{NodeId, node::Resources};

use crate::{
    build::SourceBuilder, images::RuntimeImages, instances::InstanceLimits, logs::LogStore,
    session::SessionLimits,
};

/// Everything that differs between production and a test is in here.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data directory; the agent uses `agent/` in it. Locked by the caller.
    pub data_dir: PathBuf,
    pub node_id: NodeId,
    pub node_name: String,
    pub version: String,
    pub labels: BTreeMap<String, String>,
    /// Every controller; one of them leads.
    pub controllers: Vec<Address>,
    /// What controllers say of where they are.
    pub told: Told,
    /// Where the node service is served.
    pub listen: Address,
    /// What gateways are told instead of `listen`, such as a name that other machines resolve.
    pub advertise: Option<String>,
    pub driver: Arc<dyn InstanceDriver>,
    pub images: Arc<dyn RuntimeImages>,
    pub builder: Arc<dyn SourceBuilder>,
    /// The one that the driver writes to.
    pub logs: Arc<LogStore>,
    pub clock: Arc<dyn Clock>,
    /// The machine's own when absent.
    pub capacity: Option<Resources>,
    /// Kept from functions, for the machine and for us.
    pub reserve: Resources,
    pub limits: Limits,
}

/// The tuning of an agent.
#[derive(Debug, Clone)]
pub struct Limits {
    pub instances: InstanceLimits,
    pub session: SessionLimits,
    /// Disk for unpacked artifacts; what instances use may exceed it.
    pub artifact_bytes: u64,
    /// Connections of gateways on other machines to instances, at once.
    pub relayed_connections: usize,
    /// How often everything is looked at again although nothing happened.
    pub reconcile_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            instances: InstanceLimits::default(),
            session: SessionLimits::default(),
            artifact_bytes: 4 << 30,
            relayed_connections: 16_384,
            reconcile_every: Duration::from_secs(5),
        }
    }
}

/// What functions may use of a machine.
pub(crate) fn allocatable(capacity: Resources, reserve: Resources) -> Resources {
    Resources {
        memory_mib: capacity.memory_mib.saturating_sub(reserve.memory_mib),
        cpu_millis: capacity.cpu_millis.saturating_sub(reserve.cpu_millis),
    }
}

/// The machine's memory and processors.
pub(crate) fn machine() -> std::io::Result<Resources> {
    let cpus = std::thread::available_parallelism()?.get();
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let memory_mib = total_mib(&text)
        .ok_or_else(|| std::io::Error::other("/proc/meminfo does not say MemTotal"))?;
    let cpu_millis = u32::try_from(cpus).unwrap_or(u32::MAX).saturating_mul(1000);
    Ok(Resources {
        memory_mib,
        cpu_millis,
    })
}

fn total_mib(meminfo: &str) -> Option<u32> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    u32::try_from(kib / 1024).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_and_the_reserve_never_goes_below_nothing() {
        assert_eq!(
            total_mib("MemTotal:       16384000 kB\nMemFree: 1 kB\n"),
            Some(16_000)
        );
        assert_eq!(total_mib("MemFree: 1 kB\n"), None);
        let machine = Resources {
            memory_mib: 100,
            cpu_millis: 1000,
        };
        let reserve = Resources {
            memory_mib: 200,
            cpu_millis: 250,
        };
        let rest = Resources {
            memory_mib: 0,
            cpu_millis: 750,
        };
        assert_eq!(allocatable(machine, reserve), rest);
    }
}
