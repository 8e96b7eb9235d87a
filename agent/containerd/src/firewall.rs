//! The network's plan: subnet, firewall rules and commands, as functions of values.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
};

use crate::{config::EgressPolicy, names::ClusterId};

/// Bits of a cluster's subnet on one node.
pub(crate) const PREFIX: u8 = 22;
const POOL: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const POOL_SUBNETS: u32 = 1 << (PREFIX - 10);
const SUBNET_SIZE: u32 = 1 << (32 - PREFIX);

/// A route of the host: network, mask, interface and whether it is the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) interface: String,
    network: u32,
    mask: u32,
}

impl Route {
    pub(crate) fn is_default(&self) -> bool {
        self.mask == 0
    }
}

/// Reads `/proc/net/route`, whose numbers are hexadecimal in the host's byte order.
pub(crate) fn routes(table: &str) -> Vec<Route> {
    let number = |text: &str| u32::from_str_radix(text, 16).map(u32::from_be);
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let interface = (*fields.first()?).to_owned();
            let network = number(fields.get(1)?).ok()?;
            let mask = number(fields.get(7)?).ok()?;
            Some(Route {
                interface,
                network,
                mask,
            })
        })
        .collect()
}

/// The cluster's subnet of 100.64.0.0/10 (the range for carriers, least likely to be in use on a
/// server); the next free one where another route is in the way. `None`: the whole range is routed.
pub(crate) fn subnet(cluster: &ClusterId, routes: &[Route]) -> Option<Ipv4Addr> {
    let bridge = cluster.bridge();
    (0..POOL_SUBNETS)
        .map(|step| {
            u32::from(POOL) + (cluster.number().wrapping_add(step) % POOL_SUBNETS) * SUBNET_SIZE
        })
        .find(|start| {
            !routes.iter().any(|route| {
                let mask = route.mask & !(SUBNET_SIZE - 1);
                !route.is_default()
                    && route.interface != bridge
                    && route.network & mask == start & mask
            })
        })
        .map(Ipv4Addr::from)
}

/// The name servers that containers can reach: loopback ones are the host's own, and containers
/// have no IPv6.
pub(crate) fn resolvers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .filter(|address| address.is_ipv4() && !address.is_loopback())
        .collect()
}

/// What containers find at `/etc/resolv.conf`.
pub(crate) fn resolv_conf(resolvers: &[IpAddr]) -> String {
    let mut text = String::new();
    let reachable = resolvers.iter().filter(|address| address.is_ipv4());
    for address in reachable.take(3) {
        let _ = writeln!(text, "nameserver {address}");
    }
    text.push_str("options timeout:2 attempts:2\n");
    text
}

/// The chains of a cluster and where each is entered from.
pub(crate) struct Jump {
    pub(crate) table: &'static str,
    pub(crate) rule: Vec<String>,
    pub(crate) builtin: &'static str,
}

pub(crate) fn jumps(cluster: &ClusterId) -> Vec<Jump> {
    let bridge = cluster.bridge();
    let jump = |table, builtin, matching: &[&str], purpose| {
        let rule = matching.iter().map(|part| (*part).to_owned());
        let target = ["-j".to_owned(), cluster.chain(purpose)];
        Jump {
            table,
            builtin,
            rule: rule.chain(target).collect(),
        }
    };
    vec![
        jump("filter", "INPUT", &["-i", &bridge], "IN"),
        jump("filter", "FORWARD", &["-i", &bridge], "FWD"),
        jump("filter", "FORWARD", &["-o", &bridge], "FWD"),
        jump("nat", "POSTROUTING", &[], "NAT"),
    ]
}

/// Input of `iptables-restore --noflush`: our chains, emptied and filled again. Containers reach
/// the name servers, then what policy allows, and nothing on the host or on each other.
pub(crate) fn rules(
    cluster: &ClusterId,
    subnet: Ipv4Addr,
    resolvers: &[IpAddr],
    policy: &EgressPolicy,
) -> String {
    let bridge = cluster.bridge();
    let (input, forward, nat) = (
        cluster.chain("IN"),
        cluster.chain("FWD"),
        cluster.chain("NAT"),
    );
    let mut text = format!("*filter\n:{input} - [0:0]\n:{forward} - [0:0]\n");
    // First, so that no policy can open a way between containers. As bridge ports they are isolated
    // already; this closes the way over the host's own address.
    let _ = writeln!(text, "-A {forward} -i {bridge} -o {bridge} -j DROP");
    for address in resolvers.iter().filter(|address| address.is_ipv4()) {
        for protocol in ["udp", "tcp"] {
            for chain in [&input, &forward] {
                let _ = writeln!(
                    text,
                    "-A {chain} -i {bridge} -d {address} -p {protocol} --dport 53 -j ACCEPT"
                );
            }
        }
    }
    let _ = writeln!(text, "-A {input} -j DROP");
    for network in &policy.allow {
        let _ = writeln!(text, "-A {forward} -i {bridge} -d {network} -j ACCEPT");
    }
    for network in &policy.deny {
        // An answer, so that a program fails at once instead of waiting for its own timeout.
        let _ = writeln!(
            text,
            "-A {forward} -i {bridge} -d {network} -j REJECT --reject-with icmp-admin-prohibited"
        );
    }
    let _ = writeln!(text, "-A {forward} -i {bridge} -j ACCEPT");
    let _ = writeln!(
        text,
        "-A {forward} -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    );
    let _ = writeln!(text, "-A {forward} -j DROP\nCOMMIT");
    let _ = writeln!(text, "*nat\n:{nat} - [0:0]");
    let _ = writeln!(
        text,
        "-A {nat} -s {subnet}/{PREFIX} ! -o {bridge} -j MASQUERADE\nCOMMIT"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
other\t00044064\t00000000\t0001\t0\t0\t0\t00FCFFFF\t0\t0\t0\n";

    fn cluster(id: &str) -> ClusterId {
        id.parse().expect("an id")
    }

    #[test]
    fn a_subnet_in_use_is_stepped_over() {
        let routes = routes(TABLE);
        assert_eq!(routes.len(), 3);
        assert!(routes[0].is_default() && !routes[1].is_default());
        assert_eq!(
            subnet(&cluster("00000001"), &[]),
            Some(Ipv4Addr::new(100, 64, 4, 0))
        );
        assert_eq!(
            subnet(&cluster("00000001"), &routes),
            Some(Ipv4Addr::new(100, 64, 8, 0))
        );
        // The cluster's own bridge is no obstacle, and one cluster's subnet is stable.
        let own = Route {
            interface: cluster("00000001").bridge(),
            ..routes[2].clone()
        };
        assert_eq!(
            subnet(&cluster("00000001"), &[own]),
            Some(Ipv4Addr::new(100, 64, 4, 0))
        );
        let whole = Route {
            interface: "wg0".into(),
            network: u32::from(POOL),
            mask: 0xffc0_0000,
        };
        assert_eq!(subnet(&cluster("00000001"), &[whole]), None);
    }

    #[test]
    fn loopback_resolvers_are_of_no_use() {
        let text = "search x\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\n\
                    nameserver 2001:db8::53\nnameserver 10.0.0.2 \n# nameserver 1.1.1.1\n";
        assert_eq!(resolvers(text), [IpAddr::from([10, 0, 0, 2])]);
        let configured: Vec<IpAddr> = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "10.0.0.3"]
            .map(|address| address.parse().expect("an address"))
            .into();
        assert!(resolv_conf(&configured).starts_with("nameserver 10.0.0.3\n"));
        assert!(resolv_conf(&resolvers(text)).starts_with("nameserver 10.0.0.2\n"));
    }

    #[test]
    fn name_servers_come_before_the_ranges_that_hold_them() {
        let text = rules(
            &cluster("0123abcd"),
            Ipv4Addr::new(100, 64, 4, 0),
            &[IpAddr::from([10, 0, 0, 2])],
            &EgressPolicy {
                allow: vec!["10.9.0.0/16".into(), "0.0.0.0/0".into()],
                ..Default::default()
            },
        );
        let at = |needle: &str| {
            text.find(needle)
                .unwrap_or_else(|| panic!("{needle} in {text}"))
        };
        let forward = "-A CORACLE-0123abcd-FWD -i cor0123abcd";
        assert!(
            at(&format!("{forward} -d 10.0.0.2 -p udp")) < at(&format!("{forward} -d 10.0.0.0/8"))
        );
        let between = format!("{forward} -o cor0123abcd -j DROP");
        assert!(at(&between) < at(&format!("{forward} -d 0.0.0.0/0 -j ACCEPT")));
        assert!(at("-d 10.9.0.0/16 -j ACCEPT") < at("-d 10.0.0.0/8 -j REJECT"));
        assert!(at("-d 169.254.0.0/16 -j REJECT") < at(&format!("{forward} -j ACCEPT")));
        assert!(at("-A CORACLE-0123abcd-IN -j DROP") > 0);
        assert_eq!(text.matches("COMMIT").count(), 2);
    }
}
