//! The program that is PID 1 in every container, as bytes.
//!
//! It has to be a file of its own (the agent writes it beside the shims and mounts it read-only),
//! but it ships inside the one `coracle` binary, so that there is nothing else to install.

#![forbid(unsafe_code)]

/// A static executable for the machine that this was built for: `init PROGRAM ARGUMENTS...`.
///
/// It starts the program, reaps orphans, forwards every signal that can be caught, and exits with
/// the program's status (128 + signal if a signal ended it, 127 if it could not be started).
pub const INIT: &[u8] = include_bytes!(env!("CORACLE_INIT"));

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        os::unix::fs::{OpenOptionsExt, PermissionsExt},
        path::PathBuf,
        process::{Command, Stdio},
    };

    use super::INIT;

    /// The program on disk; removed with the directory.
    struct Program(PathBuf);

    impl Program {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir()
                .join(format!("coracle-init-test-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            let path = dir.join("init");
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o755)
                .open(&path)
                .unwrap();
            file.write_all(INIT).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o755))
                .unwrap();
            Self(path)
        }

        fn run(&self, script: &str) -> Option<i32> {
            Command::new(&self.0)
                .args(["/bin/sh", "-c", script])
                .stdin(Stdio::null())
                .status()
                .unwrap()
                .code()
        }
    }

    impl Drop for Program {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.parent().unwrap());
        }
    }

    #[test]
    fn the_status_is_the_programs() {
        let init = Program::new("status");
        assert_eq!(init.run("exit 0"), Some(0));
        assert_eq!(init.run("exit 42"), Some(42));
        assert_eq!(init.run("kill -KILL $$"), Some(137));
        let missing = Command::new(&init.0)
            .arg("/no/such/program")
            .output()
            .unwrap();
        assert_eq!(missing.status.code(), Some(127));
        let said = String::from_utf8(missing.stderr).unwrap();
        assert!(said.contains("/no/such/program"), "{said}");
    }

    #[test]
    fn signals_reach_the_program_and_no_mask_is_inherited() {
        let init = Program::new("signals");
        // The script asks its parent, which is the init, for the signal: it has to come back.
        let script = "trap 'exit 7' TERM; kill -TERM $PPID; while :; do :; done";
        assert_eq!(init.run(script), Some(7));
        let mask = Command::new(&init.0)
            .args(["/bin/sh", "-c", "grep SigBlk /proc/self/status"])
            .output()
            .unwrap();
        let text = String::from_utf8(mask.stdout).unwrap();
        assert_eq!(
            text.split_whitespace().nth(1),
            Some("0000000000000000"),
            "{text}"
        );
    }

    #[test]
    fn it_is_static() {
        // An ELF image without an interpreter segment (PT_INTERP = 3).
        let at = |offset: usize, len: usize| {
            let mut value = [0_u8; 8];
            value[..len].copy_from_slice(&INIT[offset..offset + len]);
            usize::try_from(u64::from_le_bytes(value)).unwrap()
        };
        let (start, size, count) = (at(32, 8), at(54, 2), at(56, 2));
        let kinds: Vec<_> = (0..count).map(|i| at(start + i * size, 4)).collect();
        assert!(!kinds.is_empty() && !kinds.contains(&3), "{kinds:?}");
    }
}
