//! Build jobs.

use std::{
    os::unix::fs::{PermissionsExt, chown},
    time::Duration,
};

use coracle_driver::{BuildJob, BuildSandbox, Mount, SandboxExit};
use coracle_model::{Memory, MilliCpu};
use tokio::sync::mpsc;

use crate::harness::{Host, timed};

/// The image is empty, so jobs run the host's static test program under other names: `init`, which
/// runs a program and gives its status.
fn job(host: &Host, argv: &[&str]) -> BuildJob {
    BuildJob {
        id: "job".into(),
        rootfs: host.path("image"),
        mounts: vec![Mount {
            source: host.path("work"),
            target: "/work".into(),
            writable: true,
        }],
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: [("PATH".to_owned(), "/usr/bin".to_owned())].into(),
        cwd: "/work".into(),
        memory: Memory::from_mib(64).expect("in bounds"),
        cpu: MilliCpu::new(1000).expect("in bounds"),
        timeout: Duration::from_secs(30),
        network: true,
    }
}

async fn run(driver: &dyn BuildSandbox, job: BuildJob) -> (SandboxExit, String) {
    let (log, mut lines) = mpsc::channel(64);
    let collect = tokio::spawn(async move {
        let mut text = Vec::new();
        while let Some(piece) = lines.recv().await {
            text.extend(piece);
        }
        String::from_utf8(text).expect("text")
    });
    let exit = driver.run(job, log).await.expect("it ran");
    (exit, collect.await.expect("no panic"))
}

#[tokio::test]
async fn a_job_runs_to_its_end_or_its_timeout_and_leaves_nothing() {
    let host = Host::new();
    let driver = host.start().await;
    std::fs::create_dir(host.path("work")).expect("created");
    let (uid, gid) = driver.owner();
    chown(host.path("work"), Some(uid), Some(gid)).expect("given away");
    let private = PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(host.path("work"), private).expect("set");

    let program = "/usr/lib/coracle/test";
    let (exit, said) = run(&*driver, job(&host, &["/usr/lib/coracle/init"])).await;
    assert_eq!(
        (exit, said.as_str()),
        (SandboxExit::Exited(127), "init: no program given\n")
    );

    let (exit, said) = run(&*driver, job(&host, &[program, "write", "/work/out"])).await;
    assert_eq!((exit, said.as_str()), (SandboxExit::Exited(0), "done\n"));
    assert_eq!(
        std::fs::read_to_string(host.path("work/out")).expect("written"),
        "x"
    );

    let (exit, _) = run(&*driver, job(&host, &[program, "eat", "200"])).await;
    assert_eq!(exit, SandboxExit::OutOfMemory);

    let mut endless = job(&host, &[program, "hang"]);
    endless.timeout = Duration::from_millis(500);
    let ((exit, _), took) = timed(run(&*driver, endless)).await;
    assert_eq!(exit, SandboxExit::TimedOut);
    assert!(took < Duration::from_secs(10), "{took:?}");

    assert_eq!(host.container_dirs(), 0);
    host.finish(driver).await;
}
