//! What a function sees, and what it cannot do.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::AsFd,
    path::Path,
};

use coracle_driver::InstanceDriver;
use coracle_model::Network;

use crate::harness::{Host, ask, run};

async fn status(socket: &Path, field: &str) -> String {
    let text = ask(socket, "read:/proc/self/status").await;
    let line = text
        .lines()
        .find(|l| l.starts_with(field))
        .unwrap_or_else(|| panic!("{text}"));
    line[field.len()..]
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test]
async fn a_function_is_nobody_and_changes_nothing() {
    let host = Host::new();
    let driver = host.start().await;
    host.stems(&driver, 1);
    host.wait_for_stems(&driver, 1).await;
    let launched = driver
        .launch(host.order(host.spec()))
        .await
        .expect("launched");
    let socket = &launched.socket;
    let ask = async |target: &str| ask(socket, target).await;

    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(status(socket, set).await, "0000000000000000", "{set}");
    }
    assert_eq!(status(socket, "NoNewPrivs:").await, "1");
    assert_eq!(status(socket, "Seccomp:").await, "2");
    assert_eq!(status(socket, "Uid:").await, "1000 1000 1000 1000");
    let map = ask("read:/proc/self/uid_map").await;
    let map: Vec<u64> = map
        .split_whitespace()
        .map(|n| n.parse().expect("a number"))
        .collect();
    assert!(
        map[0] == 0 && map[1] >= 1 << 28 && map[2] == 65_536,
        "{map:?}"
    );

    // Refused by the filter, each of them: EPERM.
    let refused = ask("syscalls").await;
    assert!(
        refused.split(' ').all(|call| call.ends_with("=1")),
        "{refused}"
    );

    for path in [
        "/x",
        "/etc/x",
        "/fn/code/x",
        "/fn/deps/x",
        "/run/fn/x",
        "/usr/lib/coracle/x",
    ] {
        let answer = ask(&format!("write:{path}")).await;
        assert!(
            answer.contains("ReadOnly") || answer.contains("Permission"),
            "{path}: {answer}"
        );
    }
    assert!(ask("read:/etc/secret").await.contains("ermission denied"));
    assert_eq!(ask("list:/fn/code/../../etc").await, "resolv.conf secret");
    assert_eq!(ask("write:/tmp/x").await, "done");
    assert!(
        ask("fill:/tmp/big,40").await.contains("StorageFull"),
        "half of the memory limit"
    );

    // Flags of the attached mounts, and no peer group with the host.
    let mounts = ask("read:/proc/self/mountinfo").await;
    for target in ["/fn/code", "/fn/deps", "/run/fn"] {
        let line = mounts
            .lines()
            .find(|l| l.split(' ').nth(4) == Some(target))
            .expect(target);
        let options = line.split(' ').nth(5).expect("options");
        for flag in ["ro", "nosuid", "nodev"] {
            assert!(options.split(',').any(|o| o == flag), "{flag} in {line}");
        }
        assert!(
            !line.contains("shared:") && !line.contains("master:"),
            "{line}"
        );
    }
    // Only its own processes, its own sockets, and no descriptor of the host's.
    assert!(
        ask("list:/proc")
            .await
            .split(' ')
            .filter(|n| n.parse::<u32>().is_ok())
            .count()
            <= 2
    );
    let (processes, _) = ask("fork:")
        .await
        .split_once(' ')
        .map(|(n, r)| (n.to_owned(), r.to_owned()))
        .expect("two words");
    assert!(
        processes.parse::<u32>().expect("a number") < 300,
        "{processes}"
    );
    host.finish(driver).await;
}

#[tokio::test]
async fn inotify_of_one_function_is_capped() {
    let host = Host::new();
    let driver = host.start().await;
    let launched = driver
        .launch(host.order(host.spec()))
        .await
        .expect("launched");
    let cap = ask(
        &launched.socket,
        "read:/proc/sys/user/max_inotify_instances",
    )
    .await;
    assert_eq!(cap.trim(), "128");
    host.finish(driver).await;
}

#[tokio::test]
async fn outward_means_outward_only() {
    let host = Host::new();
    let driver = host.start().await;
    host.stems(&driver, 2);
    host.wait_for_stems(&driver, 2).await;
    let outward = driver
        .launch(host.order(host.spec()))
        .await
        .expect("launched");
    let mut spec = host.spec();
    spec.network = Network::None;
    let alone = driver.launch(host.order(spec)).await.expect("launched");

    // The way out is there for one and cut for the other.
    let carrier = async |socket| ask(socket, "read:/sys/class/net/eth0/carrier").await;
    assert_eq!(carrier(&outward.socket).await.trim(), "1");
    assert_ne!(carrier(&alone.socket).await.trim(), "1");

    // The host's listeners: on the bridge's address, and on every address.
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let bridge = run(
        "ip",
        &[
            "-o",
            "-4",
            "addr",
            "show",
            "dev",
            &format!("cor{}", host.cluster),
        ],
    );
    let gateway = bridge
        .split_whitespace()
        .nth(3)
        .and_then(|a| a.split('/').next())
        .expect(&bridge);
    for address in [gateway, "169.254.169.254", "10.1.2.3", "192.168.1.1"] {
        for instance in [&outward, &alone] {
            let target = format!("connect:{address}:{port}");
            let answer = ask(&instance.socket, &target).await;
            assert_ne!(answer, "done", "{address}");
        }
    }
    // Somebody else's machine, which stands for the internet.
    let outside = Outside::new(&host.cluster.to_string());
    let target = format!("connect:{}", outside.address);
    assert_eq!(ask(&outward.socket, &target).await, "done");
    assert_ne!(ask(&alone.socket, &target).await, "done");
    drop(outside);
    host.finish(driver).await;
}

/// A network namespace of its own with a listener, behind a cable to the host.
struct Outside {
    name: String,
    address: SocketAddr,
}

impl Outside {
    fn new(cluster: &str) -> Self {
        let name = format!("out{cluster}");
        // A /30 of 198.18.0.0/15, which is for tests of networks.
        let number = u32::from_str_radix(cluster, 16).expect("hexadecimal") % (1 << 15);
        let subnet = u32::from(Ipv4Addr::new(198, 18, 0, 0)) + 4 * number;
        let (near, far) = (Ipv4Addr::from(subnet + 1), Ipv4Addr::from(subnet + 2));
        let near = format!("{near}/30");
        run("ip", &["netns", "add", &name]);
        run(
            "ip",
            &[
                "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &name,
            ],
        );
        run("ip", &["addr", "add", &near, "dev", &name]);
        run("ip", &["link", "set", "dev", &name, "up"]);
        run(
            "ip",
            &[
                "-n",
                &name,
                "addr",
                "add",
                &format!("{far}/30"),
                "dev",
                "eth0",
            ],
        );
        run("ip", &["-n", &name, "link", "set", "dev", "eth0", "up"]);
        let namespace = std::fs::File::open(format!("/run/netns/{name}")).expect("just made");
        // On a thread of its own, which stays in that namespace until the test ends.
        let (told, port) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("entered");
            let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
            told.send(listener.local_addr().expect("bound").port())
                .expect("awaited");
            while listener.accept().is_ok() {}
        });
        Self {
            name,
            address: (far, port.recv().expect("a port")).into(),
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        run("ip", &["netns", "delete", &self.name]);
        run("ip", &["link", "delete", "dev", &self.name]);
    }
}
