//! Identities of claimed containers in files, until containerd's record has them too.
//!
//! Not synced: they are for the death of this process, not of the machine, after which no container
//! runs anyway. No container sees them.

use std::{collections::HashMap, fs, io, path::PathBuf};

/// One file a container: the labels that its record is about to get.
#[derive(Debug)]
pub(crate) struct Notes(PathBuf);

impl Notes {
    /// The directory exists.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    pub(crate) fn write(&self, id: &str, labels: &HashMap<String, String>) -> io::Result<()> {
        fs::write(self.0.join(id), serde_json::to_vec(labels)?)
    }

    /// `None` as well for half a file: it was being written when the process ended.
    pub(crate) fn read(&self, id: &str) -> Option<HashMap<String, String>> {
        serde_json::from_slice(&fs::read(self.0.join(id)).ok()?).ok()
    }

    pub(crate) fn remove(&self, id: &str) {
        let _ = fs::remove_file(self.0.join(id));
    }

    /// Removes those of containers that are gone.
    pub(crate) fn retain(&self, lives: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if !lives(&entry.file_name().to_string_lossy()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_back_and_half_a_note_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(dir.path().to_owned());
        let labels = HashMap::from([("kind".to_owned(), "instance".to_owned())]);
        notes.write("a", &labels).unwrap();
        fs::write(dir.path().join("b"), "{\"kind\": \"inst").unwrap();
        assert_eq!(notes.read("a"), Some(labels));
        assert_eq!(notes.read("b"), None);
        notes.retain(|id| id == "b");
        assert_eq!(notes.read("a"), None);
        notes.remove("b");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
