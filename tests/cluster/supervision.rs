//! What systemd is told.

use std::{io::ErrorKind, os::unix::net::UnixDatagram, time::Duration};

use coracle_tests::{Cluster, eventually};
use rustix::process::Signal;

#[tokio::test]
async fn a_member_tells_that_it_has_started_lives_and_stops() {
    let mut cluster = Cluster::start(1, 0, 1).await;
    cluster.terminate("g1").await;
    let path = cluster.data("notify.sock");
    let socket = UnixDatagram::bind(&path).expect("bind");
    socket.set_nonblocking(true).expect("nonblocking");
    let environment = [
        ("NOTIFY_SOCKET", path.display().to_string()),
        ("WATCHDOG_USEC", "300000".to_owned()),
    ];
    cluster.spawn_with("g1", &[], &environment);
    let said = |word: &'static str| {
        let socket = socket.try_clone().expect("dup");
        async move {
            let _said = eventually(
                &format!("it says {word}"),
                Duration::from_secs(10),
                || async {
                    let mut bytes = [0; 256];
                    match socket.recv(&mut bytes) {
                        Ok(length) => String::from_utf8_lossy(&bytes[..length]).into_owned(),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => String::new(),
                        Err(error) => panic!("{error}"),
                    }
                },
                |text| text.contains(word),
            )
            .await;
        }
    };
    said("READY=1").await;
    said("WATCHDOG=1").await;
    said("WATCHDOG=1").await;
    cluster.signal("g1", Signal::TERM);
    said("STOPPING=1").await;
    assert_eq!(cluster.ended("g1").await, 0);
}
