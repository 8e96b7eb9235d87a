//! Why an installer or a compiler failed, in one sentence. Pure; the whole text is in the log.

use coracle_runtimes::{Installer, Runtime};

/// Longest sentence, in characters; a function's `reason` has room for more around it.
const MOST: usize = 400;

/// What went wrong with the dependencies, from the output of pip or npm.
pub fn of_install(runtime: &Runtime, output: &str) -> String {
    let found = match runtime.build.installer {
        Installer::Pip => of_pip(runtime, output),
        Installer::Npm => of_npm(output),
    };
    let sentence = found
        .or_else(|| last_error(output))
        .unwrap_or_else(|| format!("{} could not be installed", runtime.source.dependencies));
    cut(&sentence)
}

fn of_pip(runtime: &Runtime, output: &str) -> Option<String> {
    let lines = || output.lines().map(str::trim);
    // First: without a network pip also says that there is no matching distribution.
    if unreachable(output) {
        return Some("the package index could not be reached".to_owned());
    }
    if let Some(rest) =
        lines().find_map(|l| l.strip_prefix("ERROR: No matching distribution found for "))
    {
        let wanted = rest.split(" (from ").next().unwrap_or(rest);
        let mut sentence = format!("{wanted}: no matching distribution for {}", runtime.title);
        if source_only(output, wanted) {
            sentence.push_str(" (only packages with a wheel can be installed)");
        }
        return Some(sentence);
    }
    if let Some(rest) = lines().find_map(|l| l.strip_prefix("ERROR: Invalid requirement: ")) {
        let rest = rest.split(" (from ").next().unwrap_or(rest);
        return Some(format!(
            "{}: invalid requirement {rest}",
            runtime.source.dependencies
        ));
    }
    if let Some(line) = lines().find(|l| l.starts_with("ERROR: Cannot install ")) {
        return Some(line.trim_start_matches("ERROR: ").to_owned());
    }
    None
}

/// Whether pip saw no version at all of the package, which for an existing one means no wheel.
fn source_only(output: &str, wanted: &str) -> bool {
    output.lines().any(|line| {
        line.contains("Could not find a version that satisfies the requirement")
            && line.contains(wanted)
            && line.contains("(from versions: none)")
    })
}

fn of_npm(output: &str) -> Option<String> {
    // npm 10 writes `npm error`, older ones `npm ERR!`.
    let lines = || {
        output.lines().filter_map(|line| {
            let line = line.trim();
            line.strip_prefix("npm error ")
                .or_else(|| line.strip_prefix("npm ERR! "))
        })
    };
    for line in lines() {
        if let Some(rest) = line.strip_prefix("notarget No matching version found for ") {
            let wanted = rest
                .split_whitespace()
                .next()
                .unwrap_or(rest)
                .trim_end_matches('.');
            return Some(format!("{wanted}: no matching version in the registry"));
        }
    }
    for line in lines() {
        // `404  'nope@^1.0.0' is not in this registry.` and, from npm 10, `... could not be found`.
        let quoted = line
            .strip_prefix("404")
            .and_then(|rest| rest.split('\'').nth(1));
        if let Some(wanted) = quoted {
            return Some(format!("{wanted}: not in the registry"));
        }
    }
    if let Some(url) = lines().find_map(|line| line.strip_prefix("404 Not Found - GET ")) {
        let name = url.split_whitespace().next()?.rsplit('/').next()?;
        return Some(format!("{}: not in the registry", name.replace("%2f", "/")));
    }
    if unreachable(output) {
        return Some("the package registry could not be reached".to_owned());
    }
    lines()
        .find_map(|line| line.strip_prefix("ERESOLVE "))
        .or_else(|| lines().find(|line| !line.starts_with("code ") && !line.starts_with("errno ")))
        .map(str::to_owned)
}

fn unreachable(output: &str) -> bool {
    [
        "Failed to establish a new connection",
        "Temporary failure in name resolution",
        "Name or service not known",
        "ConnectTimeoutError",
        "ProxyError",
        "CERTIFICATE_VERIFY_FAILED",
        "code EAI_AGAIN",
        "code ENOTFOUND",
        "code ECONNREFUSED",
        "code ETIMEDOUT",
        "code ENETUNREACH",
    ]
    .iter()
    .any(|sign| output.contains(sign))
}

/// Where the code lies while it is checked, and where its byte code says that it will lie.
const CODE_DIRS: [&str; 2] = ["/build/code/", "/fn/code/"];

/// What is wrong with the code's syntax, with file and line.
pub fn of_check(output: &str) -> String {
    let place = output
        .lines()
        .find_map(|line| python_place(line).or_else(|| node_place(line)));
    let error = output.lines().map(str::trim).rfind(|line| {
        let word = line.split(':').next().unwrap_or_default();
        word.ends_with("Error") && !word.contains(char::is_whitespace)
    });
    let sentence = match (place, error) {
        (Some((file, line)), Some(error)) => format!("{file}, line {line}: {error}"),
        (None, Some(error)) => error.to_owned(),
        _ => last_error(output).unwrap_or_else(|| "the code could not be compiled".to_owned()),
    };
    cut(&sentence)
}

/// `  File "/build/code/main.py", line 3`
fn python_place(line: &str) -> Option<(&str, &str)> {
    let rest = line.trim().strip_prefix("File \"")?;
    let (path, rest) = rest.split_once("\", line ")?;
    let number = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((inside(path)?, number))
}

/// `/build/code/main.js:3`
fn node_place(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix("file://").unwrap_or(line);
    let (path, number) = line.rsplit_once(':')?;
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    Some((inside(path)?, number)).filter(|_| digits)
}

fn inside(path: &str) -> Option<&str> {
    CODE_DIRS.iter().find_map(|dir| path.strip_prefix(dir))
}

fn last_error(output: &str) -> Option<String> {
    let lines = || {
        output
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let marked = lines().rfind(|line| line.to_lowercase().starts_with("error"));
    marked
        .or_else(|| lines().next_back())
        .map(|line| line.trim_start_matches("ERROR: ").to_owned())
}

fn cut(sentence: &str) -> String {
    let mut found: String = sentence
        .chars()
        .filter(|c| !c.is_control())
        .take(MOST)
        .collect();
    if sentence.chars().count() > MOST {
        found.push('…');
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_runtimes::Catalog;

    fn runtime(name: &str) -> Runtime {
        Catalog::builtin()
            .get(&name.parse().unwrap())
            .unwrap()
            .clone()
    }

    #[test]
    fn pip_output_becomes_a_sentence_with_package_and_version() {
        for (output, sentence) in [
            (
                "Collecting requests\nERROR: Ignored the following versions that require a different python version: 1.21.0\n\
                 ERROR: Could not find a version that satisfies the requirement numpy==1.21.0 (from versions: 1.3.0, 2.0.0)\n\
                 ERROR: No matching distribution found for numpy==1.21.0\n",
                "numpy==1.21.0: no matching distribution for Python 3.11",
            ),
            (
                "ERROR: Could not find a version that satisfies the requirement nope (from versions: none)\n\
                 ERROR: No matching distribution found for nope (from -r /build/in/requirements.txt (line 2))\n",
                "nope: no matching distribution for Python 3.11 (only packages with a wheel can be installed)",
            ),
            (
                "ERROR: Invalid requirement: 'a b c' (from line 1 of /build/in/requirements.txt)\n",
                "requirements.txt: invalid requirement 'a b c'",
            ),
            (
                "WARNING: Retrying: Failed to establish a new connection\nERROR: No matching distribution found for a\n",
                "the package index could not be reached",
            ),
            (
                "ERROR: Cannot install a==1 and b==2 because these package versions have conflicting dependencies.\n",
                "Cannot install a==1 and b==2 because these package versions have conflicting dependencies.",
            ),
            ("", "requirements.txt could not be installed"),
        ] {
            assert_eq!(of_install(&runtime("python3.11"), output), sentence);
        }
    }

    #[test]
    fn npm_output_becomes_a_sentence_with_package_and_version() {
        for (output, sentence) in [
            (
                "npm error code ETARGET\nnpm error notarget No matching version found for left-pad@99.0.0.\n",
                "left-pad@99.0.0: no matching version in the registry",
            ),
            (
                "npm error code E404\nnpm error 404 Not Found - GET https://registry.npmjs.org/nope - Not found\n\
                 npm error 404\nnpm error 404  'nope@^1.0.0' is not in this registry.\n",
                "nope@^1.0.0: not in the registry",
            ),
            (
                "npm error code EAI_AGAIN\nnpm error errno EAI_AGAIN\n",
                "the package registry could not be reached",
            ),
        ] {
            assert_eq!(of_install(&runtime("nodejs20"), output), sentence);
        }
    }

    #[test]
    fn a_syntax_error_names_file_and_line() {
        let python = "*** Error compiling '/build/code/main.py'...\n  File \"/fn/code/main.py\", line 3\n    def\n       ^\nSyntaxError: invalid syntax\n\n";
        assert_eq!(
            of_check(python),
            "main.py, line 3: SyntaxError: invalid syntax"
        );
        let node = "/build/code/main.js:2\nfoo(\n\n\nSyntaxError: missing ) after argument list\n    at wrapSafe (node:internal:1)\n\nNode.js v20.20.2\n";
        assert_eq!(
            of_check(node),
            "main.js, line 2: SyntaxError: missing ) after argument list"
        );
        assert_eq!(of_check(""), "the code could not be compiled");
    }
}
