//! Limits and their consequences, in the cgroup of one container, on version 1 and 2.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the memory limit of {limit} bytes is below the {used} that are in use")]
    TooSmall { limit: u64, used: u64 },
    #[error("no cgroup hierarchy with the {0} controller is mounted")]
    Missing(&'static str),
}

/// What one container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes; swap is never added to it.
    pub(crate) memory: u64,
    pub(crate) cpu_millis: u32,
    pub(crate) processes: u32,
}

impl Limits {
    /// Microseconds in which the quota may be used up.
    pub(crate) const CPU_PERIOD: u64 = 100_000;

    pub(crate) fn cpu_quota(&self) -> u64 {
        (u64::from(self.cpu_millis) * Self::CPU_PERIOD / 1000).max(1000)
    }

    pub(crate) fn cpu_shares(&self) -> u64 {
        (u64::from(self.cpu_millis) * 1024 / 1000).max(2)
    }

    /// The same proportion on version 2's scale of 1 to 10,000.
    fn cpu_weight(&self) -> u64 {
        1 + (self.cpu_shares().clamp(2, 262_144) - 2) * 9_999 / 262_142
    }
}

/// Where the controllers are mounted on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// Also the hybrid form, in which version 2 is mounted beside without our controllers.
    V1 {
        memory: PathBuf,
        cpu: PathBuf,
        pids: PathBuf,
        all: Vec<PathBuf>,
    },
    V2 {
        root: PathBuf,
    },
}

impl Hierarchy {
    pub(crate) fn detect() -> Result<Self, Error> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(file("read", path))?;
        Self::parse(&text)
    }

    fn parse(mountinfo: &str) -> Result<Self, Error> {
        let mut all = Vec::new();
        let mut v2 = Vec::new();
        let find = |name: &'static str, all: &[(PathBuf, String)]| {
            all.iter()
                .find(|(_, options)| options.split(',').any(|o| o == name))
                .map(|(path, _)| path.clone())
                .ok_or(Error::Missing(name))
        };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(target) = left.split(' ').nth(4) else {
                continue;
            };
            let mut fields = right.split(' ');
            match (fields.next(), fields.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    all.push((PathBuf::from(target), options.to_owned()));
                }
                (Some("cgroup2"), _) => v2.push(PathBuf::from(target)),
                _ => {}
            }
        }
        if let (true, Some(root)) = (all.is_empty(), v2.first()) {
            return Ok(Self::V2 { root: root.clone() });
        }
        Ok(Self::V1 {
            memory: find("memory", &all)?,
            cpu: find("cpu", &all)?,
            pids: find("pids", &all)?,
            all: all.into_iter().map(|(path, _)| path).chain(v2).collect(),
        })
    }

    /// The cgroup at `path` below the roots; it need not exist.
    pub(crate) fn at(&self, path: &str) -> Cgroup {
        let below = |root: &Path| root.join(path.trim_start_matches('/'));
        match self {
            Self::V1 {
                memory, cpu, pids, ..
            } => Cgroup::V1 {
                memory: below(memory),
                cpu: below(cpu),
                pids: below(pids),
            },
            Self::V2 { root } => Cgroup::V2(below(root)),
        }
    }

    /// Every directory that `path` has in the mounted hierarchies.
    pub(crate) fn directories(&self, path: &str) -> Vec<PathBuf> {
        let roots = match self {
            Self::V1 { all, .. } => all.as_slice(),
            Self::V2 { root } => std::slice::from_ref(root),
        };
        let mut dirs: Vec<_> = roots
            .iter()
            .map(|root| root.join(path.trim_start_matches('/')))
            .collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    /// Processes in the cgroups one level below `path`.
    pub(crate) fn processes(&self, path: &str) -> Vec<i32> {
        let parents = self.directories(path).into_iter();
        let children = parents.flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
        let mut all: Vec<i32> = children
            .filter_map(|child| fs::read_to_string(child.path().join("cgroup.procs")).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|l| l.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// [`Cgroup::lift_quota`] of the cgroups one level below `path`.
    pub(crate) fn lift_quotas(&self, path: &str) {
        let parent = match self {
            Self::V1 { cpu, .. } => cpu.join(path.trim_start_matches('/')),
            Self::V2 { root } => root.join(path.trim_start_matches('/')),
        };
        let children = fs::read_dir(parent).into_iter().flatten().flatten();
        for child in children.filter_map(|child| child.file_name().into_string().ok()) {
            self.at(&format!("{path}/{child}")).lift_quota();
        }
    }

    /// Removes the empty cgroups at and one level below `path`.
    pub(crate) fn remove(&self, path: &str) {
        for parent in self.directories(path) {
            let children = fs::read_dir(&parent).into_iter().flatten().flatten();
            for child in children.filter(|c| c.file_type().is_ok_and(|t| t.is_dir())) {
                let _ = fs::remove_dir(child.path());
            }
            let _ = fs::remove_dir(parent);
        }
    }
}

/// One container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cgroup {
    V1 {
        memory: PathBuf,
        cpu: PathBuf,
        pids: PathBuf,
    },
    V2(PathBuf),
}

impl Cgroup {
    /// Rewrites all limits. A memory limit below what is in use is refused before anything is
    /// changed.
    pub(crate) fn set(&self, limits: &Limits) -> Result<(), Error> {
        let memory = limits.memory.to_string();
        match self {
            Self::V1 {
                memory: dir,
                cpu,
                pids,
            } => {
                let now = read_number(&dir.join("memory.limit_in_bytes"))?;
                // The sum of memory and swap may at no moment be below the memory limit.
                let both = ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"];
                let order = if limits.memory >= now {
                    both
                } else {
                    [both[1], both[0]]
                };
                for name in order {
                    let path = dir.join(name);
                    // Kernels without swap accounting have no such file.
                    if name.contains("memsw") && !path.exists() {
                        continue;
                    }
                    match write(&path, &memory) {
                        Err(Error::File { source, .. })
                            if source.raw_os_error() == Some(libc::EBUSY) =>
                        {
                            return Err(self.too_small(limits));
                        }
                        other => other?,
                    }
                }
                write(
                    &cpu.join("cpu.cfs_quota_us"),
                    &limits.cpu_quota().to_string(),
                )?;
                saved_up(&cpu.join("cpu.cfs_burst_us"), limits);
                write(&cpu.join("cpu.shares"), &limits.cpu_shares().to_string())?;
                write(&pids.join("pids.max"), &limits.processes.to_string())
            }
            Self::V2(dir) => {
                // The kernel would kill here, where version 1 refuses. What is in use includes
                // page cache, so this refuses early rather than late.
                if self.memory_used()? > limits.memory {
                    return Err(self.too_small(limits));
                }
                write(&dir.join("memory.max"), &memory)?;
                let swap = dir.join("memory.swap.max");
                if swap.exists() {
                    write(&swap, "0")?;
                }
                let quota = format!("{} {}", limits.cpu_quota(), Limits::CPU_PERIOD);
                write(&dir.join("cpu.max"), &quota)?;
                saved_up(&dir.join("cpu.max.burst"), limits);
                write(&dir.join("cpu.weight"), &limits.cpu_weight().to_string())?;
                write(&dir.join("pids.max"), &limits.processes.to_string())
            }
        }
    }

    /// Takes the processor quota away from what is about to die. Dying takes processor time, and
    /// the first process shares the quota with all that it leaves behind: a fork bomb that spins
    /// would stay for minutes.
    pub(crate) fn lift_quota(&self) {
        let (path, unlimited) = match self {
            Self::V1 { cpu, .. } => (cpu.join("cpu.cfs_quota_us"), "-1"),
            Self::V2(dir) => (dir.join("cpu.max"), "max"),
        };
        // Where it is gone there is nothing left to die.
        let _ = write(&path, unlimited);
    }

    fn too_small(&self, limits: &Limits) -> Error {
        Error::TooSmall {
            limit: limits.memory,
            used: self.memory_used().unwrap_or(0),
        }
    }

    /// Bytes, page cache included.
    fn memory_used(&self) -> Result<u64, Error> {
        match self {
            Self::V1 { memory, .. } => read_number(&memory.join("memory.usage_in_bytes")),
            Self::V2(dir) => read_number(&dir.join("memory.current")),
        }
    }

    /// How many of its processes the kernel has killed for memory; zero when it is gone, so it has
    /// to be asked before the container is deleted.
    pub(crate) fn memory_kills(&self) -> u64 {
        let path = match self {
            Self::V1 { memory, .. } => memory.join("memory.oom_control"),
            Self::V2(dir) => dir.join("memory.events"),
        };
        let text = fs::read_to_string(path).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }

    /// Whether a process is in it, by the text of its `/proc/PID/cgroup`.
    pub(crate) fn contains(path: &str, proc_cgroup: &str) -> bool {
        proc_cgroup
            .lines()
            .any(|line| line.splitn(3, ':').nth(2) == Some(path))
    }
}

/// Lets one period's unused processor time be used later, so that a request after a pause is not
/// throttled for the few milliseconds that it needs more than its share. Kernels before 5.14 have
/// no such file, and do without.
fn saved_up(path: &Path, limits: &Limits) {
    let _ = write(path, &limits.cpu_quota().to_string());
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(file("write", path))
}

fn read_number(path: &Path) -> Result<u64, Error> {
    let text = fs::read_to_string(path).map_err(file("read", path))?;
    // "max" on version 2 means no limit.
    Ok(text.trim().parse().unwrap_or(u64::MAX))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 30 0:28 / /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory\n\
        33 30 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
        34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn both_versions_are_told_apart() {
        let hybrid = Hierarchy::parse(HYBRID).expect("complete");
        let Cgroup::V1 { memory, cpu, .. } = hybrid.at("/coracle-x/a") else {
            panic!("hybrid counts as version 1");
        };
        assert_eq!(memory, Path::new("/sys/fs/cgroup/memory/coracle-x/a"));
        assert_eq!(cpu, Path::new("/sys/fs/cgroup/cpu,cpuacct/coracle-x/a"));
        let pure = "29 1 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            Hierarchy::parse(pure).expect("complete").at("/a"),
            Cgroup::V2("/sys/fs/cgroup/a".into())
        );
        assert!(matches!(
            Hierarchy::parse(""),
            Err(Error::Missing("memory"))
        ));
    }

    #[test]
    fn v2_files_are_written_and_kills_are_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for (name, text) in [
            ("memory.current", "1048576\n"),
            ("memory.swap.max", "max\n"),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
            ),
        ] {
            fs::write(at(name), text).expect("written");
        }
        let group = Cgroup::V2(dir.path().to_owned());
        let limits = Limits {
            memory: 128 << 20,
            cpu_millis: 250,
            processes: 64,
        };
        group.set(&limits).expect("set");
        let read = |name: &str| fs::read_to_string(at(name)).expect("a file");
        assert_eq!(read("memory.max"), "134217728");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.max"), "25000 100000");
        assert_eq!(read("cpu.weight"), "10");
        assert_eq!(group.memory_kills(), 1);
        group.lift_quota();
        assert_eq!(read("cpu.max"), "max");
        let small = Limits {
            memory: 4096,
            ..limits
        };
        assert!(matches!(
            group.set(&small),
            Err(Error::TooSmall {
                used: 1_048_576,
                ..
            })
        ));
        assert_eq!(read("memory.max"), "134217728", "a refusal changes nothing");
    }

    #[test]
    fn membership_is_by_the_whole_path() {
        let text = "5:memory:/coracle-x/abc\n0::/\n";
        assert!(Cgroup::contains("/coracle-x/abc", text));
        assert!(!Cgroup::contains("/coracle-x/ab", text));
    }
}
