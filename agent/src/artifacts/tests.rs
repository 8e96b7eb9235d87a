use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;

#[derive(Debug, Default)]
struct Source {
    tars: Mutex<BTreeMap<Digest, Vec<u8>>>,
    downloads: AtomicU64,
}

impl Source {
    fn put(&self, text: &str) -> Digest {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, "main.py", text.as_bytes())
            .unwrap();
        let tar = archive.into_inner().unwrap();
        let digest = Digest::of(&tar);
        self.tars.lock().unwrap().insert(digest, tar);
        digest
    }
}

#[async_trait]
impl ArtifactSource for Source {
    async fn download(&self, digest: Digest, to: &Path) -> Result<(), TransferError> {
        self.downloads.fetch_add(1, Ordering::SeqCst);
        let tar = self.tars.lock().unwrap().get(&digest).cloned();
        std::fs::write(to, tar.ok_or(TransferError::Missing(digest))?).unwrap();
        Ok(())
    }
}

/// Each artifact of the tests: a folder and a small file.
const ONE: u64 = 2 * 4096 + 1;

fn open(dir: &Path, bound: u64, source: &Arc<Source>) -> Artifacts {
    let source: Arc<Source> = Arc::clone(source);
    Artifacts::open(dir.join("artifacts"), dir.join("scratch"), bound, source).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("artifacts")).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn sorted(digests: &[Digest]) -> Vec<String> {
    let mut names: Vec<_> = digests.iter().map(Digest::to_string).collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_artifact_is_fetched_once_for_all_who_ask() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Source::default());
    let digest = source.put("1");
    let artifacts = open(dir.path(), u64::MAX, &source);
    assert!(artifacts.present(digest).is_none());
    let (one, two) = tokio::join!(artifacts.get(digest), artifacts.get(digest));
    let path = one.unwrap().path().join("main.py");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "1");
    assert_eq!(two.unwrap().path().join("main.py"), path);
    assert!(artifacts.present(digest).is_some());
    assert_eq!(source.downloads.load(Ordering::SeqCst), 1);
    assert_eq!(names(dir.path()), sorted(&[digest]));

    // The next process finds it, and clears what was half done.
    std::fs::create_dir(dir.path().join("artifacts/half")).unwrap();
    std::fs::create_dir(dir.path().join("scratch/half")).unwrap();
    drop(artifacts);
    let artifacts = open(dir.path(), u64::MAX, &source);
    assert!(artifacts.present(digest).is_some());
    assert_eq!(artifacts.bytes(), ONE);
    assert_eq!(names(dir.path()), sorted(&[digest]));
    drop(artifacts);
    open(dir.path(), u64::MAX, &source);
    assert_eq!(
        std::fs::read_dir(dir.path().join("scratch"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn a_failed_fetch_leaves_nothing_and_can_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Source::default());
    let digest = source.put("1");
    let tar = source.tars.lock().unwrap().remove(&digest).unwrap();
    let artifacts = open(dir.path(), u64::MAX, &source);
    let failed = artifacts.get(digest).await.unwrap_err();
    assert!(matches!(failed, ArtifactError::Fetch { .. }), "{failed}");
    source
        .tars
        .lock()
        .unwrap()
        .insert(digest, b"not a tar".repeat(100));
    let failed = artifacts.get(digest).await.unwrap_err();
    assert!(matches!(failed, ArtifactError::Unpack { .. }), "{failed}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
    source.tars.lock().unwrap().insert(digest, tar);
    artifacts.get(digest).await.unwrap();
}

#[tokio::test]
async fn the_least_recently_used_goes_and_never_one_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Source::default());
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|text| source.put(text));
    let artifacts = open(dir.path(), 2 * ONE, &source);
    let in_use = artifacts.get(a).await.unwrap();
    artifacts.get(b).await.unwrap();
    assert_eq!(names(dir.path()), sorted(&[a, b]));
    artifacts.get(c).await.unwrap();
    assert_eq!(
        names(dir.path()),
        sorted(&[a, c]),
        "b was unused, a is older but in use"
    );
    let also = artifacts.get(c).await.unwrap();
    let third = artifacts.get(d).await.unwrap();
    assert_eq!(
        names(dir.path()),
        sorted(&[a, c, d]),
        "all in use: the bound gives way"
    );
    assert!(in_use.path().join("main.py").exists());
    let clone = in_use.clone();
    drop(in_use);
    assert_eq!(
        names(dir.path()),
        sorted(&[a, c, d]),
        "a clone holds it too"
    );
    drop(clone);
    assert_eq!(names(dir.path()), sorted(&[c, d]));
    assert_eq!(artifacts.bytes(), 2 * ONE);
    drop((also, third));
    assert_eq!(names(dir.path()), sorted(&[c, d]));
}

#[tokio::test]
async fn nothing_goes_while_everything_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let source = Arc::new(Source::default());
    let [a, b] = ["a", "b"].map(|text| source.put(text));
    let artifacts = open(dir.path(), ONE, &source);
    let hold = artifacts.hold_everything();
    artifacts.get(a).await.unwrap();
    artifacts.get(b).await.unwrap();
    assert_eq!(names(dir.path()), sorted(&[a, b]));
    let clone = Arc::clone(&hold);
    drop(hold);
    assert_eq!(names(dir.path()), sorted(&[a, b]));
    drop(clone);
    assert_eq!(names(dir.path()), sorted(&[b]));
}
