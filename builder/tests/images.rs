//! Real images, and real installs in them. Needs root, the Debian mirror, PyPI and the npm registry:
//! `cargo test -p coracle-builder --features e2e --test images -- --test-threads=1`.
//! `CORACLE_TEST_IMAGES` names a directory to keep the images in.

#![cfg(feature = "e2e")]
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use coracle_builder::{
    BuildError, BuildRequest, Builder, Built, Config, ImagePath, ImageStore, Limits, Route,
    UnpackLimits, image::Mirror, unpack,
};
use coracle_driver::{BuildJob, BuildSandbox, SandboxError, SandboxExit};
use coracle_model::{
    Concurrency, Convention, Digest, Env, FunctionId, Handler, Memory, MilliCpu, Network,
    RevisionId, RevisionSettings, Source, Timeout,
};
use coracle_runtimes::Catalog;
use tokio::sync::mpsc;

/// Binds and chroots, without any isolation worth the name: the code under test is ours.
#[derive(Debug)]
struct ChrootSandbox;

#[async_trait::async_trait]
impl BuildSandbox for ChrootSandbox {
    fn owner(&self) -> (u32, u32) {
        (1000, 1000)
    }

    async fn run(
        &self,
        job: BuildJob,
        log: mpsc::Sender<Vec<u8>>,
    ) -> Result<SandboxExit, SandboxError> {
        let rootfs = job.rootfs.display();
        let mut script = format!(
            "set -e\nmount --bind {rootfs} {rootfs}\nmount -t tmpfs tmpfs {rootfs}/tmp\n\
             mount -t proc proc {rootfs}/proc\nmount --bind /etc/resolv.conf {rootfs}/etc/resolv.conf\n"
        );
        for mount in &job.mounts {
            let (from, to) = (mount.source.display(), mount.target.display());
            script.push_str(&format!("mount --bind {from} {rootfs}{to}\n"));
        }
        script.push_str(&format!(
            "cd {rootfs}{}\nexec /usr/sbin/chroot --userspec=1000:1000 {rootfs} /bin/sh -c 'cd \"$0\"; exec \"$@\"' {} \"$@\"\n",
            job.cwd.display(),
            job.cwd.display()
        ));
        let child = tokio::process::Command::new("/usr/bin/unshare")
            .args([
                "--mount",
                "--propagation=private",
                "sh",
                "-c",
                &script,
                "sh",
            ])
            .args(&job.argv)
            .env_clear()
            .envs(&job.env)
            .stdin(Stdio::null())
            .output();
        let fail = |source: std::io::Error| SandboxError {
            action: format!("run {}", job.id),
            source: source.into(),
        };
        let output = tokio::time::timeout(job.timeout, child)
            .await
            .expect("in time")
            .map_err(fail)?;
        for bytes in [output.stdout, output.stderr] {
            let _ = log.send(bytes).await;
        }
        Ok(SandboxExit::Exited(output.status.code().unwrap_or(-1)))
    }
}

struct Place {
    _temp: Option<tempfile::TempDir>,
    root: PathBuf,
}

fn place() -> Place {
    let (temp, root) = match std::env::var_os("CORACLE_TEST_IMAGES") {
        Some(root) => (None, PathBuf::from(root)),
        None => {
            let temp = tempfile::tempdir_in("/var/tmp").unwrap();
            let root = temp.path().join("images");
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
            (Some(temp), root)
        }
    };
    Place { _temp: temp, root }
}

fn host_env() -> BTreeMap<String, String> {
    std::env::vars().collect()
}

fn store(place: &Place) -> ImageStore {
    ImageStore::open(&place.root, Mirror::default(), &host_env()).unwrap()
}

async fn ensure(place: &Place, name: &str, route: Route) -> ImagePath {
    let catalog = Catalog::builtin();
    let runtime = catalog.get(&name.parse().unwrap()).unwrap();
    let (log, mut lines) = mpsc::channel::<Vec<u8>>(64);
    let printing = tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            print!("{}", String::from_utf8_lossy(&line));
        }
    });
    let image = store(place).ensure(runtime, route, &log).await.unwrap();
    drop(log);
    printing.await.unwrap();
    image
}

fn chroot(image: &ImagePath, argv: &[&str]) -> String {
    let output = std::process::Command::new("/usr/sbin/chroot")
        .arg("--userspec=1000:1000")
        .arg(&image.rootfs)
        .args(argv)
        .env_clear()
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{argv:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout).trim().to_owned()
}

fn check_common(rootfs: &Path) {
    for dir in [
        "proc",
        "sys",
        "dev",
        "tmp",
        "run/fn",
        "fn/code",
        "fn/deps",
        "build",
        "usr/lib/coracle",
        "opt",
    ] {
        assert!(rootfs.join(dir).is_dir(), "{dir}");
    }
    assert!(
        fs::read_to_string(rootfs.join("etc/passwd"))
            .unwrap()
            .contains("fn:x:1000:1000:")
    );
    let bundle = fs::read_to_string(rootfs.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
    assert!(bundle.matches("BEGIN CERTIFICATE").count() > 100);
    let set_id = std::process::Command::new("find")
        .arg(rootfs)
        .args(["-perm", "/6000"])
        .output()
        .unwrap();
    assert!(
        set_id.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&set_id.stdout)
    );
}

fn check_python(image: &ImagePath) {
    check_common(&image.rootfs);
    let code = "import ssl, sqlite3, asyncio, zoneinfo, ctypes, sys; \
        assert json_cached(), 'no byte code'; print(sys.version_info[:2], zoneinfo.ZoneInfo('Europe/Berlin'))"
        .replace("json_cached()", "__import__('json').__cached__ and __import__('os').path.exists(__import__('json').__cached__)");
    assert_eq!(
        chroot(image, &["/usr/bin/python3", "-c", &code]),
        "(3, 11) Europe/Berlin"
    );
}

fn check_node(image: &ImagePath) {
    check_common(&image.rootfs);
    assert_eq!(
        chroot(
            image,
            &["/usr/bin/node", "-p", "process.version.split('.')[0]"]
        ),
        "v20"
    );
}

#[tokio::test]
async fn recipe_images_start_their_languages() {
    let place = place();
    let python = ensure(&place, "python3.11", Route::Recipe).await;
    check_python(&python);
    check_node(&ensure(&place, "nodejs20", Route::Recipe).await);
    assert_eq!(ensure(&place, "python3.11", Route::Recipe).await, python);
}

#[tokio::test]
async fn images_of_host_packages_start_their_languages() {
    let temp = tempfile::tempdir_in("/var/tmp").unwrap();
    let place = Place {
        root: temp.path().join("images"),
        _temp: Some(temp),
    };
    check_python(&ensure(&place, "python3.11", Route::HostPackages).await);
    check_node(&ensure(&place, "nodejs20", Route::HostPackages).await);
}

fn request(runtime: &str, code: &str, dependencies: Option<&str>) -> BuildRequest {
    let digest = Digest([0; 32]);
    BuildRequest {
        revision: RevisionId {
            function: FunctionId(uuid::Uuid::nil()),
            number: 1,
        },
        settings: RevisionSettings {
            runtime: runtime.parse().unwrap(),
            runtime_requested: runtime.to_owned(),
            handler: Handler::new("main", Convention::Http).unwrap(),
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

async fn build(builder: &Builder, request: BuildRequest) -> Result<Built, BuildError> {
    let (log, mut lines) = mpsc::channel::<Vec<u8>>(64);
    let collect = tokio::spawn(async move {
        let mut text = String::new();
        while let Some(piece) = lines.recv().await {
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        text
    });
    let built = builder.build(request, log).await;
    println!("{}\n-> {built:?}\n", collect.await.unwrap());
    built
}

fn sentence(built: Result<Built, BuildError>) -> String {
    built.expect_err("a build that cannot succeed").sentence()
}

#[tokio::test]
async fn dependencies_install_and_failures_name_the_culprit() {
    let place = place();
    let work = tempfile::tempdir_in("/var/tmp").unwrap();
    let builder = Builder::new(Config {
        dir: work.path().join("builds"),
        images: store(&place),
        route: Route::Recipe,
        catalog: Catalog::builtin(),
        sandbox: Arc::new(ChrootSandbox),
        host_env: host_env(),
        wheels: "/usr/share/python-wheels".into(),
        limits: Limits::default(),
    })
    .unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o711)).unwrap();

    let python = "import idna\ndef main():\n    return idna.__version__\n";
    let list = "# one\nidna==3.7\n";
    let built = build(&builder, request("python3.11", python, Some(list)))
        .await
        .unwrap();
    let (tar, digest) = built.dependencies.clone().unwrap();
    let deps = work.path().join("deps");
    unpack(
        fs::File::open(&tar).unwrap(),
        &deps,
        &UnpackLimits::default(),
    )
    .unwrap();
    assert!(deps.join("idna/__pycache__/core.cpython-311.pyc").exists());
    let again = build(&builder, request("python3.11", python, Some(list)))
        .await
        .unwrap();
    assert_eq!(
        (again.code, again.dependencies.unwrap().1),
        (built.code, digest)
    );
    assert!(
        again.message.contains("kept from an earlier build"),
        "{}",
        again.message
    );

    for (list, expected) in [
        (
            "numpy==1.21.0",
            "numpy==1.21.0: no matching distribution for Python 3.11",
        ),
        ("a b c", "requirements.txt: invalid requirement"),
    ] {
        let said = sentence(build(&builder, request("python3.11", python, Some(list))).await);
        assert!(said.starts_with(expected), "{said}");
    }
    let said = sentence(build(&builder, request("python3.11", "x = 1\ndef (\n", None)).await);
    assert_eq!(said, "main.py, line 2: SyntaxError: invalid syntax");

    let node = "const pad = require('left-pad');\nexports.main = () => pad('1', 3);\n";
    let list = |version: &str| format!("{{\"dependencies\": {{\"left-pad\": \"{version}\"}}}}");
    let built = build(&builder, request("nodejs20", node, Some(&list("1.3.0"))))
        .await
        .unwrap();
    let deps = work.path().join("node-deps");
    let (tar, _) = built.dependencies.unwrap();
    unpack(
        fs::File::open(&tar).unwrap(),
        &deps,
        &UnpackLimits::default(),
    )
    .unwrap();
    assert!(deps.join("node_modules/left-pad/index.js").exists());
    let said = sentence(build(&builder, request("nodejs20", node, Some(&list("99.0.0")))).await);
    assert_eq!(said, "left-pad@99.0.0: no matching version in the registry");
    let list = "{\"dependencies\": {\"@coracle-no-such/package\": \"1\"}}";
    let said = sentence(build(&builder, request("nodejs20", node, Some(list))).await);
    assert!(said.contains("not in the registry"), "{said}");
    let said = sentence(build(&builder, request("nodejs20", "let x = 1;\nfoo(\n", None)).await);
    assert!(said.starts_with("main.js, line "), "{said}");
    let module = "import fs from 'node:fs';\nexport const main = () => fs.sep;\n";
    build(&builder, request("nodejs20", module, None))
        .await
        .unwrap();
}
