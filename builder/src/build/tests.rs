use coracle_driver::SandboxExit;
use coracle_driver::fake::{FakeRun, FakeSandbox};
use coracle_model::{Concurrency, Convention, Env, FunctionId, Handler, Network, Source, Timeout};

use super::*;
use crate::{UnpackLimits, image::Mirror, unpack};

struct Bench {
    temp: tempfile::TempDir,
    sandbox: FakeSandbox,
    builder: Builder,
}

/// A builder whose images are there already and whose commands are played.
fn bench(limits: Limits) -> Bench {
    let temp = tempfile::tempdir().unwrap();
    let images = ImageStore::open(
        temp.path().join("images"),
        Mirror::default(),
        &BTreeMap::new(),
    )
    .unwrap();
    let catalog = Catalog::builtin();
    for runtime in catalog.runtimes() {
        images.plant(runtime, Route::Recipe);
    }
    let wheels = temp.path().join("wheels");
    fs::create_dir(&wheels).unwrap();
    fs::write(wheels.join("pip-23.0-py3-none-any.whl"), "").unwrap();
    let sandbox = FakeSandbox::new();
    let builder = Builder::new(Config {
        dir: temp.path().join("builds"),
        images,
        route: Route::Recipe,
        catalog,
        sandbox: Arc::new(sandbox.clone()),
        host_env: BTreeMap::new(),
        wheels,
        limits,
    })
    .unwrap();
    Bench {
        temp,
        sandbox,
        builder,
    }
}

fn request(requested: &str, code: &str, dependencies: Option<&str>) -> BuildRequest {
    let digest = Digest([0; 32]);
    BuildRequest {
        revision: RevisionId {
            function: FunctionId(uuid::Uuid::nil()),
            number: 3,
        },
        settings: RevisionSettings {
            runtime: "python3.11".parse().unwrap(),
            runtime_requested: requested.to_owned(),
            handler: Handler::new("main", Convention::Kubeless).unwrap(),
            source: Source::Inline { code: digest },
            dependencies: dependencies.map(|_| digest),
            env: Env::default(),
            memory: Memory::from_mib(128).unwrap(),
            cpu: MilliCpu::new(250).unwrap(),
            timeout: Timeout::from_secs(60).unwrap(),
            init_timeout: Timeout::from_secs(30).unwrap(),
            concurrency: Concurrency::new(1).unwrap(),
            network: Network::Egress,
        },
        code: code.to_owned(),
        dependencies: dependencies.map(str::to_owned),
    }
}

impl Bench {
    async fn build(&self, request: BuildRequest) -> (Result<Built, BuildError>, String) {
        // Larger than any log here, so that nobody needs to read meanwhile.
        let (log, mut lines) = mpsc::channel(1_000);
        let built = self.builder.build(request, log).await;
        let mut text = String::new();
        while let Ok(piece) = lines.try_recv() {
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        (built, text)
    }

    fn says(&self, output: &str, exit: SandboxExit) {
        self.sandbox.push(FakeRun {
            output: output.into(),
            exit,
            ..FakeRun::default()
        });
    }

    fn leaves(&self, path: &str, content: &str) {
        let files = vec![(path.into(), content.into())];
        self.sandbox.push(FakeRun {
            files,
            ..FakeRun::default()
        });
    }

    fn workspaces(&self) -> usize {
        fs::read_dir(self.temp.path().join("builds/work"))
            .unwrap()
            .count()
    }
}

#[tokio::test]
async fn code_and_dependencies_become_archives_and_nothing_else_stays() {
    let bench = bench(Limits::default());
    bench.leaves("/build/code/__pycache__/main.pyc", "byte code");
    bench.leaves("/build/deps/idna/core.py", "x = 1");
    let (built, _) = bench
        .build(request("python3.7.12", "def main(): pass", Some("idna")))
        .await;
    let built = built.unwrap();
    assert!(built.message.contains("python3.7.12"), "{}", built.message);
    let out = bench.temp.path().join("code");
    let code = fs::read(&built.code_tar).unwrap();
    assert_eq!(Digest::of(&code), built.code);
    unpack(code.as_slice(), &out, &UnpackLimits::default()).unwrap();
    assert_eq!(fs::read(out.join("main.py")).unwrap(), b"def main(): pass");
    assert!(out.join("__pycache__/main.pyc").exists());
    assert_eq!(bench.workspaces(), 0);

    let networks: Vec<_> = bench.sandbox.jobs().iter().map(|job| job.network).collect();
    assert_eq!(networks, [false, true, false], "check, install, compile");
    for job in bench.sandbox.jobs() {
        let writable: Vec<_> = job.mounts.iter().filter(|m| m.writable).collect();
        assert!(writable.len() == 1 && writable[0].target == Path::new(plan::WORK));
    }
}

#[tokio::test]
async fn the_same_list_is_installed_once() {
    let bench = bench(Limits::default());
    bench.says("", SandboxExit::Exited(0));
    bench.leaves("/build/deps/idna/core.py", "x = 1");
    let (first, _) = bench
        .build(request("python3.11", "a = 1", Some("idna\n")))
        .await;
    let jobs = bench.sandbox.jobs().len();
    let (second, log) = bench
        .build(request("python3.11", "b = 2", Some("# again\nidna")))
        .await;
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(
        bench.sandbox.jobs().len(),
        jobs + 1,
        "only the check of the code"
    );
    assert!(log.contains("installed before"), "{log}");
    let digest = |built: &Built| built.dependencies.as_ref().map(|(_, digest)| *digest);
    assert_eq!(digest(&first), digest(&second));
    assert_ne!(first.code, second.code);
}

#[tokio::test]
async fn failures_are_one_sentence_and_keep_nothing() {
    let missing = "ERROR: No matching distribution found for numpy==1.21.0\n";
    let syntax = "  File \"/build/code/main.py\", line 2\nSyntaxError: invalid syntax\n";
    let ok = || ("", SandboxExit::Exited(0));
    for (runs, sentence) in [
        (
            vec![(syntax, SandboxExit::Exited(1))],
            "main.py, line 2: SyntaxError: invalid syntax",
        ),
        (
            vec![ok(), (missing, SandboxExit::Exited(1))],
            "numpy==1.21.0: no matching distribution for Python 3.11",
        ),
        (
            vec![ok(), ("", SandboxExit::TimedOut)],
            "the build took longer than 600 seconds",
        ),
        (
            vec![ok(), ("", SandboxExit::OutOfMemory)],
            "the build needed more than 1024 MiB of memory",
        ),
    ] {
        let bench = bench(Limits::default());
        for (output, exit) in runs {
            bench.says(output, exit);
        }
        let (built, log) = bench
            .build(request("python3.11", "x", Some("numpy==1.21.0")))
            .await;
        let error = built.expect_err(sentence);
        assert_eq!(error.sentence(), sentence);
        assert!(!error.is_platform());
        assert!(log.contains(missing) == sentence.contains("numpy"), "{log}");
        assert_eq!(bench.workspaces(), 0);
        let kept = fs::read_dir(bench.temp.path().join("builds/cache"))
            .unwrap()
            .count();
        assert_eq!(kept, 0, "{sentence}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_with_both_sizes() {
    let bench = bench(Limits {
        bytes: 1 << 20,
        ..Limits::default()
    });
    bench.says("", SandboxExit::Exited(0));
    bench.leaves("/build/deps/big", &"x".repeat(3 << 20));
    let (built, _) = bench.build(request("python3.11", "x", Some("big"))).await;
    let sentence = built.expect_err("too large").sentence();
    assert_eq!(
        sentence,
        "requirements.txt: more than 3 MiB unpacked; the limit is 1 MiB"
    );
    assert_eq!(bench.workspaces(), 0);
}

#[tokio::test]
async fn a_tree_that_no_path_reaches_is_the_functions_fault() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let bench = bench(Limits::default());
    let gate = coracle_driver::fake::Gate::closed();
    bench.says("", SandboxExit::Exited(0));
    bench.sandbox.push(FakeRun {
        gate: Some(gate.clone()),
        ..FakeRun::default()
    });
    let sandbox = bench.sandbox.clone();
    let nesting = async {
        let mount = loop {
            match sandbox.jobs().get(1) {
                Some(job) => break job.mounts[0].source.clone(),
                None => tokio::task::yield_now().await,
            }
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(CWD, mount.join("deps"), flags, Mode::empty()).unwrap();
        for _ in 0..3_000 {
            mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = openat(&at, "d", flags, Mode::empty()).unwrap();
        }
        gate.open();
    };
    let ((built, _), ()) = tokio::join!(
        bench.build(request("python3.11", "x", Some("deep"))),
        nesting
    );
    let error = built.expect_err("too deep");
    assert!(!error.is_platform(), "{}", error.sentence());
    assert!(error.sentence().starts_with("requirements.txt: more than"));
    assert_eq!(bench.workspaces(), 0);
}

#[tokio::test]
async fn a_build_that_writes_without_end_is_ended_and_cleared_away() {
    let bench = bench(Limits {
        bytes: 1 << 20,
        ..Limits::default()
    });
    let gate = coracle_driver::fake::Gate::closed();
    bench.says("", SandboxExit::Exited(0));
    // It would go on for ever; what it has written so far is there already.
    bench.sandbox.push(FakeRun {
        gate: Some(gate),
        ..FakeRun::default()
    });
    let sandbox = bench.sandbox.clone();
    let writing = async {
        let mount = loop {
            match sandbox.jobs().get(1) {
                Some(job) => break job.mounts[0].source.clone(),
                None => tokio::task::yield_now().await,
            }
        };
        let mode = fs::metadata(&mount).unwrap().permissions().mode();
        assert_eq!(
            mode & 0o777,
            0o700,
            "other users of the machine read nothing"
        );
        fs::write(mount.join("tmp/big"), vec![1; 5 << 20]).unwrap();
    };
    let ((built, _), ()) = tokio::join!(
        bench.build(request("python3.11", "x", Some("big"))),
        writing
    );
    let error = built.expect_err("too much");
    assert_eq!(error.sentence(), "the build wrote more than 4 MiB");
    assert!(!error.is_platform());
    assert_eq!(bench.workspaces(), 0);
    let trash = bench.temp.path().join("builds/trash");
    while fs::read_dir(&trash).unwrap().count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_host_without_pip_is_told_which_package_has_it() {
    let mut bench = bench(Limits::default());
    bench.builder.config.wheels = bench.temp.path().join("no-wheels");
    let (built, _) = bench.build(request("python3.11", "x", Some("idna"))).await;
    let error = built.expect_err("no pip");
    assert!(error.is_platform());
    assert!(
        error.sentence().contains("python3-pip-whl"),
        "{}",
        error.sentence()
    );
    // Without dependencies nobody needs it.
    assert!(
        bench
            .build(request("python3.11", "x", None))
            .await
            .0
            .is_ok()
    );
}

#[tokio::test]
async fn a_full_disk_is_not_the_functions_fault() {
    let says = "OSError: [Errno 28] No space left on device: '/build/code/__pycache__'\n";
    for (reserve, is_platform) in [(u64::MAX, true), (0, false)] {
        let bench = bench(Limits {
            reserve,
            ..Limits::default()
        });
        bench.says(says, SandboxExit::Exited(1));
        let (built, _) = bench
            .build(request("python3.11", "def main(): pass", None))
            .await;
        let error = built.unwrap_err();
        assert_eq!(error.is_platform(), is_platform, "{error:?}");
        let told = error.sentence().contains("enough disk space");
        assert_eq!(told, is_platform, "{}", error.sentence());
    }
}
