//! What a function sees, and what it cannot do.

use std::{net::TcpListener, path::Path};

use coracle_driver::InstanceDriver;
use coracle_model::Network;

use crate::harness::{Host, invoke, run};

async fn status(socket: &Path, field: &str) -> String {
    let text = invoke(socket, "read:/proc/self/status")
        .await
        .expect("readable");
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
    let ask = async |target: &str| invoke(socket, target).await.expect("an answer");

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
    let cap = invoke(
        &launched.socket,
        "read:/proc/sys/user/max_inotify_instances",
    )
    .await
    .unwrap();
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
    let carrier = async |socket| {
        invoke(socket, "read:/sys/class/net/eth0/carrier")
            .await
            .unwrap()
    };
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
            let answer = invoke(&instance.socket, &target).await.unwrap();
            assert_ne!(answer, "done", "{address}");
        }
    }
    // A public address leaves through the bridge: what comes back is not the firewall's word.
    let rules = run("iptables-save", &[]);
    assert!(
        rules.contains(&format!("CORACLE-{}-FWD", host.cluster)),
        "{rules}"
    );
    host.finish(driver).await;
}
