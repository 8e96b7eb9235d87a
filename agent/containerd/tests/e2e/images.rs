//! Who uses an image, and what containerd's garbage collector could take of ours.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use coracle_containerd::{ContainerdDriver, Daemon};
use coracle_driver::{InstanceDriver, Stop as StopInstance};

use crate::harness::{Host, ask, run, until};

#[tokio::test]
async fn an_image_is_released_when_nothing_runs_in_it_whoever_started_that() {
    let host = Host::new();
    let image = host.path("image");
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let bound = || mounts().contains(&format!("/run/coracle-{}/", host.cluster));
    let first = host.start().await;
    assert!(first.release_image(&image), "nothing uses it yet");
    let spec = host.spec();
    let launched = first.launch(host.order(spec.clone())).await;
    let launched = launched.expect("launched");
    assert!(!first.release_image(&image), "an instance");
    assert!(bound(), "{}", mounts());
    drop(first);

    // The next process did not start it, and has never bound the image.
    let second = ContainerdDriver::start(host.config())
        .await
        .expect("started");
    assert!(!second.release_image(&image), "not even adopted yet");
    assert_eq!(second.adopt().await.expect("adopted").len(), 1);
    host.stems(&second, 1);
    host.wait_for_stems(&second, 1).await;
    let stop = second.stop(spec.id, StopInstance::Gracefully(Duration::ZERO));
    stop.await.expect("stopped");
    assert!(!second.release_image(&image), "a stem");
    host.stems(&second, 0);
    until("the stem's end", || {
        if second.release_image(&image) {
            Ok(())
        } else {
            Err(format!("{:?}", second.stems()))
        }
    })
    .await;
    assert!(!bound(), "{}", mounts());
    assert!(!launched.socket.exists());

    // Given up, not spoilt.
    let again = second.launch(host.order(host.spec())).await;
    let again = again.expect("launched");
    assert_eq!(
        ask(&again.socket, "read:/fn/code/main.txt").await,
        "the code"
    );
    host.finish(second).await;
}

/// A launch makes a container record and a task, both of which containerd's collector leaves alone,
/// and nothing that a lease could hold (ADR 4).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_collector_finds_nothing_of_ours_to_take() {
    let host = Host::new();
    let driver = host.start().await;
    let socket = Daemon::private_socket(&host.path("data"));
    let socket = socket.to_string_lossy().into_owned();
    let namespace = format!("coracle-{}", host.cluster);
    let ctr = |args: &[&str]| run("ctr", &[&["-a", &socket, "-n", &namespace], args].concat());

    let (collections, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    // Also when the test fails in between.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        // Removing a lease with --sync answers after a whole run of the collector.
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                let lease = ctr(&["leases", "create"]);
                ctr(&["leases", "delete", "--sync", lease.trim()]);
                collections.fetch_add(1, SeqCst);
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for _ in 0..10 {
                    let launched = driver.launch(host.order(host.spec())).await;
                    let launched = launched.expect("launched while the collector runs");
                    assert_eq!(
                        ask(&launched.socket, "read:/fn/code/main.txt").await,
                        "the code"
                    );
                }
                until("some collections", || match collections.load(SeqCst) {
                    count if count >= 10 => Ok(()),
                    count => Err(format!("{count}")),
                })
                .await;
            });
        });
    });
    assert_eq!(host.containers("").len(), 10, "every record is still there");
    for kind in [["content", "ls"], ["images", "ls"], ["snapshots", "ls"]] {
        let listed = ctr(&[kind[0], kind[1]]);
        assert_eq!(
            listed.lines().count(),
            1,
            "{kind:?}: a heading and nothing else: {listed}"
        );
    }
    host.finish(driver).await;
}
