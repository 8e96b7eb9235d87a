//! One bridge per cluster, one cable per container that may need the network.
//!
//! Every container has a network namespace of its own. Stems get a cable when they are made, off
//! the request path, with its host end *up*: most functions have egress, so a claim need not touch
//! the network at all, and no first connection waits for a carrier. A claim without egress sets the
//! host end down before any user code is loaded (by ioctl, some microseconds); a claim fails if
//! that fails. Inside, the function has no capability to change any of it.
//!
//! Bridge ports are isolated from each other; `firewall.rs` says what may leave the bridge. Nothing
//! here speaks IPv6: it is off on the bridge and on the cables.

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::{
    config::EgressPolicy,
    firewall::{self, PREFIX},
    names::ClusterId,
    slots,
};

/// What one container may have of them; the kernel charges all user namespaces that root made to
/// root's account, so that without a cap of its own one function could starve all others.
const INOTIFY_PER_CONTAINER: u32 = 128;
const INOTIFY_OF_HOST: u32 = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run {program}; install {package}")]
    Missing {
        program: &'static str,
        package: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed: {said}")]
    Failed { program: &'static str, said: String },
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("every subnet of 100.64.0.0/10 is routed elsewhere on this machine")]
    NoSubnet,
    #[error("no name server is known that containers can reach; set the resolvers")]
    NoResolver,
}

#[derive(Debug, Clone)]
pub(crate) struct Network {
    cluster: ClusterId,
    subnet: Ipv4Addr,
    mtu: u32,
    resolv_conf: String,
}

impl Network {
    /// Makes or repairs the bridge and the firewall. Blocking. Safe to repeat while containers run.
    pub(crate) fn start(
        cluster: &ClusterId,
        configured: &[IpAddr],
        policy: &EgressPolicy,
    ) -> Result<Self, Error> {
        let table = fs::read_to_string("/proc/net/route").map_err(io_error("read the routes"))?;
        let routes = firewall::routes(&table);
        let bridge = cluster.bridge();
        let subnet = match current_subnet(&bridge)? {
            Some(subnet) => subnet,
            None => firewall::subnet(cluster, &routes).ok_or(Error::NoSubnet)?,
        };
        let mtu = routes
            .iter()
            .find(|r| r.is_default())
            .and_then(|r| mtu(&r.interface));
        let mtu = mtu.unwrap_or(1500);
        let resolvers = if configured.is_empty() {
            host_resolvers()
        } else {
            configured.to_vec()
        };
        if !resolvers.iter().any(IpAddr::is_ipv4) {
            return Err(Error::NoResolver);
        }

        let gateway = Ipv4Addr::from(u32::from(subnet) + 1);
        if !interfaces().contains(&bridge) {
            ip(&format!("link add name {bridge} type bridge\n"))?;
        }
        // Without a fixed address the bridge's own would change with its ports.
        ip(&format!(
            "link set dev {bridge} addrgenmode none mtu {mtu} address {}\n\
             addr replace {gateway}/{PREFIX} dev {bridge}\n\
             link set dev {bridge} up\n",
            hardware_address(cluster)
        ))?;
        let sysctl = |path: String, value: &str| {
            fs::write(&path, value).map_err(io_error("set a kernel parameter"))
        };
        sysctl("/proc/sys/net/ipv4/ip_forward".to_owned(), "1")?;
        // Absent when the kernel has no IPv6 at all, which is as good.
        let _ = sysctl(
            format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"),
            "1",
        );
        raise_inotify();

        let rules = firewall::rules(cluster, subnet, &resolvers, policy);
        run(
            "iptables-restore",
            "iptables",
            &["--noflush", "--wait", "10"],
            &rules,
        )?;
        for jump in firewall::jumps(cluster) {
            let with = |action: &str| {
                let mut args = vec!["--wait", "10", "-t", jump.table, action, jump.builtin];
                args.extend(jump.rule.iter().map(String::as_str));
                run("iptables", "iptables", &args, "")
            };
            match with("-C") {
                // First, since another program's chain may accept or drop everything.
                Err(Error::Failed { .. }) => with("-I")?,
                other => other?,
            };
        }
        Ok(Self {
            cluster: cluster.clone(),
            subnet,
            mtu,
            resolv_conf: firewall::resolv_conf(&resolvers),
        })
    }

    pub(crate) fn resolv_conf(&self) -> &str {
        &self.resolv_conf
    }

    /// Plugs a container in; the host's end. Blocking, some tens of milliseconds. The cable goes
    /// away by itself with the container's network namespace.
    pub(crate) fn plug(&self, container: &str, slot: u16, pid: u32) -> Result<String, Error> {
        let (bridge, mtu) = (self.cluster.bridge(), self.mtu);
        let link = self.cluster.veth(container);
        let address = slots::address(self.subnet, slot);
        let gateway = Ipv4Addr::from(u32::from(self.subnet) + 1);
        // The peer must not be set up in the message that makes it: the kernel refuses.
        ip(&format!(
            "link add name {link} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pid}\n\
             link set dev {link} master {bridge} addrgenmode none\n\
             link set dev {link} type bridge_slave isolated on\n\
             link set dev {link} up\n"
        ))?;
        inside(
            pid,
            &format!("{} && exec ip -batch -", inotify_cap()),
            &format!(
                "link set dev eth0 addrgenmode none\n\
                 addr add {address}/{PREFIX} dev eth0\n\
                 link set dev eth0 up\n\
                 route add default via {gateway}\n"
            ),
        )?;
        Ok(link)
    }

    /// Removes everything that [`Network::start`] made, and cables that are left. Errors are only
    /// logged: what is already gone needs no removing.
    pub(crate) fn remove(cluster: &ClusterId) {
        let quietly = |program, args: &[&str]| {
            if let Err(error) = run(program, "iptables", args, "") {
                tracing::debug!(%error, "while removing the network");
            }
        };
        for jump in firewall::jumps(cluster) {
            let mut args = vec!["--wait", "10", "-t", jump.table, "-D", jump.builtin];
            args.extend(jump.rule.iter().map(String::as_str));
            quietly("iptables", &args);
        }
        for (table, purpose) in [("filter", "IN"), ("filter", "FWD"), ("nat", "NAT")] {
            let chain = cluster.chain(purpose);
            quietly("iptables", &["--wait", "10", "-t", table, "-F", &chain]);
            quietly("iptables", &["--wait", "10", "-t", table, "-X", &chain]);
        }
        let bridge = cluster.bridge();
        let cables = format!("v{cluster}");
        for name in interfaces() {
            if name == bridge || name.starts_with(&cables) {
                quietly("ip", &["link", "delete", "dev", &name]);
            }
        }
    }
}

/// What [`Network::plug`] does beside the cable, for a container without one. Blocking.
pub(crate) fn cap_inotify(pid: u32) -> Result<(), Error> {
    inside(pid, &inotify_cap(), "").map(drop)
}

fn inotify_cap() -> String {
    format!("echo {INOTIFY_PER_CONTAINER} > /proc/sys/user/max_inotify_instances")
}

fn raise_inotify() {
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let now = fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok());
    if now.is_some_and(|now| now < INOTIFY_OF_HOST)
        && let Err(error) = fs::write(path, INOTIFY_OF_HOST.to_string())
    {
        tracing::warn!(%error, "cannot raise {path}; functions that watch files may starve others");
    }
}

/// Of our network namespace, whichever one the mounted `/sys` shows.
pub(crate) fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let names = table.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// A bridge left by an earlier process keeps its subnet, since containers hold addresses of it.
fn current_subnet(bridge: &str) -> Result<Option<Ipv4Addr>, Error> {
    if !interfaces().iter().any(|name| name == bridge) {
        return Ok(None);
    }
    let output = run(
        "ip",
        "iproute2",
        &["-o", "-4", "addr", "show", "dev", bridge],
        "",
    )?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = text
        .split_whitespace()
        .skip_while(|word| *word != "inet")
        .nth(1);
    let address = address.and_then(|a| a.split('/').next()?.parse::<Ipv4Addr>().ok());
    Ok(address.map(|a| Ipv4Addr::from(u32::from(a) & !((1 << (32 - PREFIX)) - 1))))
}

fn mtu(interface: &str) -> Option<u32> {
    let path = Path::new("/sys/class/net").join(interface).join("mtu");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn host_resolvers() -> Vec<IpAddr> {
    // The second is where systemd-resolved keeps the real list when the first names only itself.
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
        .iter()
        .map(|path| firewall::resolvers(&fs::read_to_string(path).unwrap_or_default()))
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// Locally administered, and the same for a cluster at every start.
fn hardware_address(cluster: &ClusterId) -> String {
    let [a, b, c, d] = cluster.number().to_be_bytes();
    format!("02:c0:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn ip(batch: &str) -> Result<Output, Error> {
    run("ip", "iproute2", &["-batch", "-"], batch)
}

/// Runs a shell command of the host's as the root user of a container's user namespace, in its
/// network.
fn inside(pid: u32, command: &str, input: &str) -> Result<Output, Error> {
    let target = pid.to_string();
    let args = ["--target", &target, "--user", "--net", "sh", "-c", command];
    run("nsenter", "util-linux", &args, input)
}

fn run(
    program: &'static str,
    package: &'static str,
    args: &[&str],
    input: &str,
) -> Result<Output, Error> {
    // Services and sudo often leave /usr/sbin out of the search path.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Missing {
            program,
            package,
            source,
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading its input says why by itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(io_error("wait for a program"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr)
        .trim()
        .replace('\n', "; ");
    Err(Error::Failed { program, said })
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// Sets interfaces of the host down. Holds a socket, because a claim has no time to make one.
#[derive(Debug)]
pub(crate) struct Links(OwnedFd);

impl Links {
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: takes numbers; the result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned this descriptor, and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn down(&self, interface: &str) -> io::Result<()> {
        // SAFETY: the structure is plain data, for which zeroes are a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if interface.len() >= request.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *place = libc::c_char::from_ne_bytes([byte]);
        }
        self.control(libc::SIOCGIFFLAGS, &mut request)?;
        let up = libc::c_short::try_from(libc::IFF_UP).expect("the flag is 1");
        // SAFETY: the call before filled in the flags.
        unsafe { request.ifr_ifru.ifru_flags &= !up };
        self.control(libc::SIOCSIFFLAGS, &mut request)
    }

    fn control(&self, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: both calls take a pointer to this structure and keep nothing.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), what, request) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
