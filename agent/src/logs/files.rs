//! The two files of each function, and the bound over all of them. Everything here blocks.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use coracle_model::{FunctionId, LogLine};

use super::LogLimits;

pub(super) const NEW: &str = "new.jsonl";
pub(super) const OLD: &str = "old.jsonl";
/// What a file costs at least.
const FILE_BYTES: u64 = 4096;

#[derive(Debug, Default)]
struct Sizes {
    new: u64,
    old: u64,
    /// Order of the last write; smaller is longer ago.
    written: u64,
    /// This process has looked at how the file ends.
    opened: bool,
}

impl Sizes {
    fn cost(&self) -> u64 {
        let cost = |bytes: u64| if bytes == 0 { 0 } else { bytes.max(FILE_BYTES) };
        cost(self.new) + cost(self.old)
    }
}

/// Owned by the writing thread.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    limits: LogLimits,
    functions: BTreeMap<FunctionId, Sizes>,
    total: u64,
    writes: u64,
}

impl Files {
    pub(super) fn open(folder: PathBuf, limits: LogLimits) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        // What functions print is nobody else's on the machine to read.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let Some(function) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let length = |name: &str| fs::metadata(entry.path().join(name)).map_or(0, |m| m.len());
            let sizes = Sizes {
                new: length(NEW),
                old: length(OLD),
                ..Sizes::default()
            };
            found.push((entry.metadata()?.modified()?, function, sizes));
        }
        found.sort_by_key(|(changed, function, _)| (*changed, *function));
        let mut files = Self {
            folder,
            limits,
            functions: BTreeMap::new(),
            total: 0,
            writes: 0,
        };
        for (_, function, sizes) in found {
            files.writes += 1;
            files.total += sizes.cost();
            files.functions.insert(
                function,
                Sizes {
                    written: files.writes,
                    ..sizes
                },
            );
        }
        Ok(files)
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Appends in one write; turns the files over before it when the newer one is full.
    pub(super) fn append(&mut self, function: FunctionId, lines: &[LogLine]) -> io::Result<()> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        let folder = self.folder.join(function.to_string());
        self.writes += 1;
        let sizes = self.functions.entry(function).or_default();
        sizes.written = self.writes;
        let before = sizes.cost();
        if sizes.new > 0 && sizes.new + text.len() as u64 > self.limits.file_bytes {
            fs::rename(folder.join(NEW), folder.join(OLD))?;
            (sizes.old, sizes.new) = (sizes.new, 0);
        }
        fs::create_dir_all(&folder)?;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(folder.join(NEW))?;
        if !sizes.opened {
            // A line that was cut off by a crash must not swallow the next one.
            if sizes.new > 0 && !ends_with_newline(&mut file)? {
                text.insert(0, b'\n');
            }
            sizes.opened = true;
        }
        let written = file.write_all(&text);
        // Also after an error: some of it may be there.
        sizes.new = file.metadata()?.len();
        self.total = self.total - before + sizes.cost();
        written?;
        self.bound();
        Ok(())
    }

    /// The longest silent ones go first: their older file, then everything.
    fn bound(&mut self) {
        while self.total > self.limits.total_bytes {
            let longest_silent = |(_, sizes): &(&FunctionId, &mut Sizes)| sizes.written;
            let olds = self.functions.iter_mut().filter(|(_, sizes)| sizes.old > 0);
            if let Some((function, sizes)) = olds.min_by_key(longest_silent) {
                let before = sizes.cost();
                remove(&self.folder.join(function.to_string()).join(OLD));
                sizes.old = 0;
                self.total = self.total - before + sizes.cost();
                continue;
            }
            // The one that writes now keeps its lines, or nothing would ever be readable.
            let rest = self
                .functions
                .iter()
                .filter(|(_, sizes)| sizes.written < self.writes);
            let Some((function, _)) = rest.min_by_key(|(_, sizes)| sizes.written) else {
                return;
            };
            let function = *function;
            let folder = self.folder.join(function.to_string());
            remove(&folder.join(NEW));
            if let Err(error) = fs::remove_dir(&folder) {
                tracing::warn!(path = %folder.display(), %error, "cannot remove a log folder");
            }
            self.total -= self
                .functions
                .remove(&function)
                .map_or(0, |sizes| sizes.cost());
        }
    }
}

/// A file that cannot be removed counts as gone; the next start sees it again.
fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a log file");
        }
        _ => {}
    }
}

fn ends_with_newline(file: &mut File) -> io::Result<bool> {
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
