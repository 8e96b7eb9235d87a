//! What a build does, decided as a value: files to write, commands to run, and the name under which
//! installed dependencies are kept. Pure; paths are those inside the build container.

use std::{collections::BTreeMap, path::PathBuf};

use coracle_model::{Digest, Handler};
use coracle_runtimes::{Installer, Runtime};
use sha2::{Digest as _, Sha256};

/// Where the build's directory is mounted, writable.
pub const WORK: &str = "/build";
/// Where the installer is mounted, read-only.
pub const TOOL: &str = "/opt";
pub const CODE: &str = "/build/code";
pub const DEPS: &str = "/build/deps";
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Of the host's environment, what an installer needs in order to get out.
pub const PASSED_THROUGH: &[&str] = &[
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "NPM_CONFIG_REGISTRY",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "npm_config_registry",
];

/// Everything that a plan depends on.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    pub runtime: &'a Runtime,
    pub handler: &'a Handler,
    pub code: &'a str,
    pub dependencies: Option<&'a str>,
    pub image: Digest,
    /// The installer's file below [`TOOL`], with its version in the name.
    pub tool: &'a str,
    /// The host's variables; only [`PASSED_THROUGH`] are used.
    pub host_env: &'a BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub code: Vec<PlannedFile>,
    /// Fails when the code has a syntax error.
    pub check: Step,
    /// Absent when there is nothing to install.
    pub install: Option<Install>,
    pub env: BTreeMap<String, String>,
}

/// Path below the build's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedFile {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    /// Names what goes in, so equal keys may share what came out.
    pub key: Digest,
    pub files: Vec<PlannedFile>,
    pub install: Step,
    /// Makes what was installed start fast; may fail for single files that no version of the
    /// language on this image compiles.
    pub compile: Option<Step>,
    /// How many packages the list names, for the message.
    pub named: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub argv: Vec<String>,
    pub cwd: PathBuf,
    pub network: bool,
}

/// The list or the handler cannot be used; one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

pub fn plan(inputs: &Inputs<'_>) -> Result<Plan, BadInput> {
    let file = code_file(inputs.runtime, inputs.handler)?;
    let check = match inputs.runtime.build.installer {
        Installer::Pip => compile_all(CODE, "/fn/code"),
        Installer::Npm => step(
            ["/usr/bin/node", "--check", &format!("{CODE}/{file}")],
            WORK,
        ),
    };
    let install = match inputs.dependencies {
        None => None,
        Some(text) => install(inputs, text)?,
    };
    Ok(Plan {
        code: vec![PlannedFile {
            path: format!("code/{file}").into(),
            bytes: inputs.code.as_bytes().to_vec(),
        }],
        check,
        install,
        env: env(inputs.host_env),
    })
}

/// The file that the text goes into: the handler's module, or the runtime's own name for it.
fn code_file(runtime: &Runtime, handler: &Handler) -> Result<String, BadInput> {
    let Some((module, _)) = handler.entry.rsplit_once(['.', ':']) else {
        return Ok(runtime.source.file.clone());
    };
    let module = match runtime.build.installer {
        Installer::Pip => module.replace('.', "/"),
        Installer::Npm => module.to_owned(),
    };
    let usable = module
        .split('/')
        .all(|part| !part.is_empty() && !part.starts_with('.'));
    if !usable {
        return Err(BadInput(format!(
            "handler {:?} names no usable module",
            handler.entry
        )));
    }
    Ok(format!("{module}.{}", runtime.source.extension))
}

fn install(inputs: &Inputs<'_>, text: &str) -> Result<Option<Install>, BadInput> {
    let (normal, named) = match inputs.runtime.build.installer {
        Installer::Pip => normal_requirements(&inputs.runtime.source.dependencies, text)?,
        Installer::Npm => normal_package(&inputs.runtime.source.dependencies, text)?,
    };
    if named == 0 {
        return Ok(None);
    }
    let env = env(inputs.host_env);
    let tool = format!("{TOOL}/{}", inputs.tool);
    let (path, argv, cwd, compile) = match inputs.runtime.build.installer {
        Installer::Pip => (
            format!("in/{}", inputs.runtime.source.dependencies),
            vec![
                "/usr/bin/python3".to_owned(),
                // A wheel is a zip archive, and Python runs a directory in one.
                format!("{tool}/pip"),
                "install".to_owned(),
                "--target".to_owned(),
                DEPS.to_owned(),
                // A source distribution would run its own code, and needs a compiler. (One that the
                // list names by its address is built all the same, in the container.)
                "--only-binary".to_owned(),
                ":all:".to_owned(),
                "--no-input".to_owned(),
                "--no-cache-dir".to_owned(),
                "--no-compile".to_owned(),
                "--disable-pip-version-check".to_owned(),
                "--progress-bar".to_owned(),
                "off".to_owned(),
                "--root-user-action".to_owned(),
                "ignore".to_owned(),
                "-r".to_owned(),
                format!("{WORK}/in/{}", inputs.runtime.source.dependencies),
            ],
            WORK,
            Some(compile_all(DEPS, "/fn/deps")),
        ),
        Installer::Npm => (
            format!("deps/{}", inputs.runtime.source.dependencies),
            ["/usr/bin/node", &tool, "install"]
                .into_iter()
                .chain([
                    "--omit=dev",
                    "--ignore-scripts",
                    "--no-audit",
                    "--no-fund",
                    "--no-progress",
                    "--no-update-notifier",
                    "--install-links",
                    "--cache=/build/tmp/npm",
                ])
                .map(str::to_owned)
                .collect(),
            DEPS,
            None,
        ),
    };
    let mut key = Sha256::new();
    for part in [
        // Raise when the commands change in a way that changes what they leave behind.
        "1",
        std::env::consts::ARCH,
        &inputs.image.to_string(),
        inputs.tool,
        &normal,
    ] {
        key.update((part.len() as u64).to_le_bytes());
        key.update(part);
    }
    // The list may name a folder of the code beside it, which is then part of what goes in. Every
    // path has a separator or a scheme; that URLs have them too only costs them a cache hit.
    if normal.contains(['/', '\\']) || ["file:", "link:"].iter().any(|s| normal.contains(s)) {
        key.update(inputs.code);
    }
    for name in [
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "NPM_CONFIG_REGISTRY",
        "npm_config_registry",
    ] {
        if let Some(value) = env.get(name) {
            key.update(format!("{name}={value}\0"));
        }
    }
    Ok(Some(Install {
        key: Digest(key.finalize().into()),
        files: vec![PlannedFile {
            path: path.into(),
            bytes: text.as_bytes().to_vec(),
        }],
        install: Step {
            argv,
            cwd: cwd.into(),
            network: true,
        },
        compile,
        named,
    }))
}

/// Without comments, blank lines and space that means nothing; and how many packages it names.
fn normal_requirements(file: &str, text: &str) -> Result<(String, usize), BadInput> {
    let mut normal = String::new();
    let mut named = 0;
    for line in text.lines() {
        let line = match line.find('#') {
            // A hash inside a word belongs to a URL.
            Some(at) if at == 0 || line[..at].ends_with(char::is_whitespace) => &line[..at],
            _ => line,
        };
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        // In a list it counts more than `--only-binary` on the command line.
        if line.starts_with("--no-binary") {
            return Err(BadInput(format!(
                "{file} asks for source distributions with {line:?}; only wheels are installed"
            )));
        }
        if !line.is_empty() {
            named += usize::from(!line.starts_with('-'));
            normal.push_str(&line);
            normal.push('\n');
        }
    }
    Ok((normal, named))
}

/// The parts of a package.json that decide what is installed, and how many packages it names.
fn normal_package(file: &str, text: &str) -> Result<(String, usize), BadInput> {
    if text.trim().is_empty() {
        return Ok((String::new(), 0));
    }
    let package: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| BadInput(format!("{file} is not valid JSON: {error}")))?;
    if !package.is_object() {
        return Err(BadInput(format!("{file} must hold a JSON object")));
    }
    let mut normal = serde_json::Map::new();
    let mut named = 0;
    for part in [
        "dependencies",
        "optionalDependencies",
        "peerDependencies",
        "overrides",
    ] {
        if let Some(value) = package.get(part) {
            if part != "overrides" {
                named += value.as_object().map_or(0, serde_json::Map::len);
            }
            normal.insert(part.to_owned(), value.clone());
        }
    }
    Ok((serde_json::Value::Object(normal).to_string(), named))
}

/// Byte code that is valid whatever the times of the files become: they are served read-only, and a
/// stale one would be compiled again at every start. `-f`: those that exist carry times. The
/// second path is what tracebacks show.
fn compile_all(dir: &str, shown: &str) -> Step {
    step(
        [
            "/usr/bin/python3",
            "-I",
            "-m",
            "compileall",
            "-q",
            "-f",
            "--invalidation-mode",
            "unchecked-hash",
            "-s",
            dir,
            "-p",
            shown,
            dir,
        ],
        WORK,
    )
}

fn step<const N: usize>(argv: [&str; N], cwd: &str) -> Step {
    Step {
        argv: argv.map(str::to_owned).to_vec(),
        cwd: cwd.into(),
        network: false,
    }
}

fn env(host: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = [
        ("HOME", "/build/tmp"),
        ("TMPDIR", "/build/tmp"),
        ("PATH", "/usr/bin:/bin"),
        ("LANG", "C.UTF-8"),
        ("PIP_CERT", CA_BUNDLE),
        ("SSL_CERT_FILE", CA_BUNDLE),
        ("NODE_EXTRA_CA_CERTS", CA_BUNDLE),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for name in PASSED_THROUGH {
        if let Some(value) = host.get(*name) {
            env.insert((*name).to_owned(), value.clone());
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_model::Convention;
    use coracle_runtimes::Catalog;

    fn made(
        name: &str,
        entry: &str,
        dependencies: Option<&str>,
        host: &[(&str, &str)],
    ) -> Result<Plan, BadInput> {
        made_of("code", name, entry, dependencies, host)
    }

    fn made_of(
        code: &str,
        name: &str,
        entry: &str,
        dependencies: Option<&str>,
        host: &[(&str, &str)],
    ) -> Result<Plan, BadInput> {
        let catalog = Catalog::builtin();
        plan(&Inputs {
            runtime: catalog.get(&name.parse().unwrap()).unwrap(),
            handler: &Handler::new(entry, Convention::Http).unwrap(),
            code,
            dependencies,
            image: Digest([7; 32]),
            tool: "installer-1",
            host_env: &host
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
        })
    }

    #[test]
    fn the_handler_decides_where_the_code_goes() {
        for (runtime, entry, file) in [
            ("python3.11", "main", "code/main.py"),
            ("python3.11", "app.handler", "code/app.py"),
            ("python3.11", "src/app.handler", "code/src/app.py"),
            ("python3.11", "src.app.handler", "code/src/app.py"),
            ("nodejs20", "handler", "code/main.js"),
            ("nodejs20", "index.handler", "code/index.js"),
        ] {
            let plan = made(runtime, entry, None, &[]).unwrap();
            assert_eq!(plan.code[0].path, PathBuf::from(file), "{entry}");
            assert_eq!(plan.install, None);
        }
        for entry in ["../evil.handler", "/etc/x.handler", ".hidden.x", "a//b.x"] {
            assert!(made("nodejs20", entry, None, &[]).is_err(), "{entry}");
        }
    }

    #[test]
    fn lists_that_name_nothing_install_nothing() {
        for text in ["", "\n\n", "# only a comment\n"] {
            assert_eq!(
                made("python3.11", "main", Some(text), &[]).unwrap().install,
                None,
                "{text:?}"
            );
        }
        for text in ["", "{}", "{\"dependencies\": {}}"] {
            assert_eq!(
                made("nodejs20", "main", Some(text), &[]).unwrap().install,
                None,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_list_cannot_ask_for_source_distributions() {
        let error = made(
            "python3.11",
            "main",
            Some("idna\n --no-binary=:all:\n"),
            &[],
        );
        let error = error.expect_err("refused").0;
        assert!(error.starts_with("requirements.txt asks for"), "{error}");
    }

    #[test]
    fn a_broken_package_json_is_told_before_anything_runs() {
        for text in ["{", "[]", "{\"dependencies\":}"] {
            let error = made("nodejs20", "main", Some(text), &[]).unwrap_err();
            assert!(error.0.starts_with("package.json"), "{error}");
        }
    }

    #[test]
    fn a_list_that_may_name_the_code_is_cached_with_the_code() {
        let key = |code: &str, runtime: &str, list: &str| {
            let plan = made_of(code, runtime, "setup.x", Some(list), &[]).unwrap();
            plan.install.unwrap().key
        };
        let local = r#"{"dependencies": {"x": "file:../code"}}"#;
        let remote = r#"{"dependencies": {"ms": "2.1.3"}}"#;
        for (runtime, list, shared) in [
            ("python3.11", "six==1.16.0", true),
            ("python3.11", "./code", false),
            ("python3.11", "code/", false),
            ("nodejs20", remote, true),
            ("nodejs20", local, false),
        ] {
            let same = key("one", runtime, list) == key("two", runtime, list);
            assert_eq!(same, shared, "{runtime}: {list}");
        }
    }

    #[test]
    fn the_key_sees_what_matters_and_nothing_else() {
        let key = |text: &str, host: &[(&str, &str)]| {
            made("python3.11", "main", Some(text), host)
                .unwrap()
                .install
                .unwrap()
                .key
        };
        let plain = key("requests==2.31.0\nnumpy", &[]);
        assert_eq!(
            plain,
            key(
                "# web\n requests==2.31.0  # pinned\n\nnumpy\n",
                &[("HTTP_PROXY", "p")]
            )
        );
        assert_ne!(plain, key("requests==2.32.0\nnumpy", &[]));
        assert_ne!(
            plain,
            key(
                "requests==2.31.0\nnumpy",
                &[("PIP_INDEX_URL", "https://mirror")]
            )
        );
        let node = |text| {
            made("nodejs20", "main", Some(text), &[])
                .unwrap()
                .install
                .unwrap()
                .key
        };
        assert_eq!(
            node("{\"dependencies\":{\"a\":\"1\"}}"),
            node("{\"name\":\"x\",\"dependencies\": {\"a\": \"1\"}}")
        );
    }

    #[test]
    fn only_the_installer_gets_the_network_and_never_runs_package_code() {
        for (runtime, list) in [
            ("python3.11", "a"),
            ("nodejs20", "{\"dependencies\":{\"a\":\"1\"}}"),
        ] {
            let plan = made(runtime, "main", Some(list), &[]).unwrap();
            let install = plan.install.unwrap();
            assert!(install.install.network && !plan.check.network);
            assert!(install.compile.is_none_or(|step| !step.network));
            let argv = install.install.argv.join(" ");
            assert!(argv.contains("--only-binary :all:") || argv.contains("--ignore-scripts"));
        }
    }

    #[test]
    fn secrets_of_the_host_stay_on_the_host() {
        let host = [
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("HTTPS_PROXY", "http://proxy:1"),
        ];
        let plan = made("python3.11", "main", None, &host).unwrap();
        assert!(!plan.env.contains_key("AWS_SECRET_ACCESS_KEY"));
        assert_eq!(plan.env["HTTPS_PROXY"], "http://proxy:1");
    }
}
