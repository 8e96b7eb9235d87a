//! One suite over every store. The one over S3 runs where `CORACLE_TEST_S3` names a bucket and the
//! `AWS_` variables say how to reach it: `tests/s3.sh`.

use std::sync::Arc;

use coracle_base::ManualClock;
use tempfile::TempDir;

use super::*;

/// Past a single put of the object store, and no multiple of its parts.
const LARGE: usize = 20 * 1024 * 1024 + 123;
const MAX: u64 = 32 * 1024 * 1024;

fn over(store: impl Store) -> Artifacts {
    Artifacts::new(Box::new(store), MAX, Arc::new(ManualClock::at(0)))
}

async fn put(artifacts: &Artifacts, pieces: &[&[u8]]) -> Result<Digest, ArtifactError> {
    let mut upload = artifacts.upload().await?;
    for piece in pieces {
        upload.write(Bytes::copy_from_slice(piece)).await?;
    }
    Ok(upload.finish().await?.0)
}

async fn get(artifacts: &Artifacts, digest: Digest, from: u64) -> Result<Vec<u8>, ArtifactError> {
    let mut reader = artifacts.read_from(digest, from).await?;
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// No two blocks of it are the same.
fn large(seed: u8) -> Vec<u8> {
    let mut bytes = vec![seed; LARGE];
    for (number, block) in bytes.chunks_mut(4096).enumerate() {
        let number = number.to_be_bytes();
        let length = block.len().min(number.len());
        block[..length].copy_from_slice(&number[..length]);
    }
    bytes
}

async fn conforms(artifacts: Artifacts) {
    comes_out_under_its_hash(&artifacts).await;
    large_ones_in_any_pieces(&artifacts).await;
    unfinished_ones_leave_nothing(&artifacts).await;
    removal_spares_what_was_uploaded_again(&artifacts).await;
    damage_is_noticed_and_set_aside(&artifacts).await;
    many_at_once(&artifacts).await;
}

async fn comes_out_under_its_hash(artifacts: &Artifacts) {
    let digest = put(artifacts, &[b"hello ", b"", b"world"]).await.unwrap();
    assert_eq!(digest, Digest::of(b"hello world"));
    assert!(artifacts.contains(digest).await.unwrap());
    assert_eq!(get(artifacts, digest, 0).await.unwrap(), b"hello world");
    for (from, expected) in [(6, &b"world"[..]), (10, b"d"), (11, b""), (99, b"")] {
        assert_eq!(get(artifacts, digest, from).await.unwrap(), expected);
    }
    let again = put(artifacts, &[b"hello world"]).await.unwrap();
    assert_eq!(again, digest);
    let listed = artifacts.list().await.unwrap();
    let listed: Vec<_> = listed.iter().map(|s| (s.digest, s.bytes)).collect();
    assert_eq!(listed, [(digest, 11)]);

    let empty = put(artifacts, &[]).await.unwrap();
    assert_eq!(get(artifacts, empty, 0).await.unwrap(), b"");
    let mut both = [digest, empty];
    both.sort();
    let listed = artifacts.list().await.unwrap();
    assert_eq!(listed.iter().map(|s| s.digest).collect::<Vec<_>>(), both);

    let absent = Digest::of(b"absent");
    assert!(!artifacts.contains(absent).await.unwrap());
    for from in [0, 1] {
        let error = artifacts.read_from(absent, from).await;
        assert!(matches!(error, Err(ArtifactError::Missing(d)) if d == absent));
    }
}

async fn large_ones_in_any_pieces(artifacts: &Artifacts) {
    for (seed, piece) in [(0, LARGE), (1, 1024 * 1024), (2, 3 * 1024 * 1024 + 1)] {
        let bytes = large(seed);
        let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
        let digest = put(artifacts, &pieces).await.unwrap();
        assert!(get(artifacts, digest, 0).await.unwrap() == bytes);
        let from = LARGE - 5;
        assert_eq!(
            get(artifacts, digest, from as u64).await.unwrap(),
            bytes[from..]
        );
    }
}

async fn unfinished_ones_leave_nothing(artifacts: &Artifacts) {
    let before = artifacts.list().await.unwrap();
    let mut upload = artifacts.upload().await.unwrap();
    upload.write(large(9).into()).await.unwrap();
    drop(upload);
    let mut upload = artifacts.upload().await.unwrap();
    upload.write(large(9).into()).await.unwrap();
    let error = upload.write(large(9).into()).await;
    assert!(matches!(error, Err(ArtifactError::TooLarge { limit: MAX })));
    drop(upload);
    assert_eq!(artifacts.list().await.unwrap(), before);
}

async fn removal_spares_what_was_uploaded_again(artifacts: &Artifacts) {
    let digest = put(artifacts, &[b"old"]).await.unwrap();
    let listed = artifacts.list().await.unwrap();
    let stored = *listed.iter().find(|s| s.digest == digest).unwrap();
    let earlier = Stored {
        modified: stored.modified - 1,
        ..stored
    };
    let store = &artifacts.inner.store;
    store.remove(earlier).await.unwrap();
    assert!(artifacts.contains(digest).await.unwrap());
    store.remove(stored).await.unwrap();
    store.remove(stored).await.unwrap();
    assert!(!artifacts.contains(digest).await.unwrap());
}

/// By a store that was told a wrong digest, which no [`Upload`] does.
async fn damage_is_noticed_and_set_aside(artifacts: &Artifacts) {
    let digest = Digest::of(b"right");
    let mut writer = artifacts.inner.store.writer().await.unwrap();
    writer.write(Bytes::from_static(b"wrong")).await.unwrap();
    writer.finish(digest).await.unwrap();
    let error = get(artifacts, digest, 0).await;
    assert!(
        matches!(error, Err(ArtifactError::Damaged { expected, actual })
            if expected == digest && actual == Digest::of(b"wrong"))
    );
    artifacts.damaged().await;
    let error = get(artifacts, digest, 0).await;
    assert!(matches!(error, Err(ArtifactError::Missing(_))));
    let listed = artifacts.list().await.unwrap();
    assert!(listed.iter().all(|s| s.digest != digest));
    assert_eq!(put(artifacts, &[b"right"]).await.unwrap(), digest);
    assert_eq!(get(artifacts, digest, 0).await.unwrap(), b"right");
}

async fn many_at_once(artifacts: &Artifacts) {
    let uploads = (0..32_u8).map(|n| {
        let artifacts = artifacts.clone();
        // Each twice, so that two put the same name in place.
        tokio::spawn(async move { put(&artifacts, &[b"many", &[n / 2]]).await.unwrap() })
    });
    let uploads: Vec<_> = uploads.collect();
    for (n, upload) in uploads.into_iter().enumerate() {
        let digest = upload.await.unwrap();
        let bytes = get(artifacts, digest, 0).await.unwrap();
        assert_eq!(usize::from(bytes[4]), n / 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files() {
    let dir = TempDir::new().unwrap();
    conforms(over(FileStore::open(dir.path().join("artifacts")).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory() {
    conforms(over(ObjectStore::memory())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_directory() {
    let dir = TempDir::new().unwrap();
    let shared = dir.path().join("shared");
    conforms(over(ObjectStore::directory(&shared).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an S3 server: tests/s3.sh"]
async fn s3() {
    let bucket = std::env::var("CORACLE_TEST_S3").expect("a bucket's name");
    let prefix = format!("test/{}", uuid::Uuid::new_v4());
    conforms(over(ObjectStore::s3(&bucket, &prefix).unwrap())).await;
}

#[tokio::test]
async fn collection_spares_the_young_the_leased_and_the_kept() {
    let clock = Arc::new(ManualClock::at(0));
    let store = Box::new(ObjectStore::memory());
    let artifacts = Artifacts::new(store, MAX, Arc::clone(&clock) as Arc<dyn Clock>);
    let grace = 1_000;
    let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| Digest::of(bytes));
    for bytes in [b"a", b"b", b"c"] {
        put(&artifacts, &[bytes]).await.unwrap();
    }
    let listed = artifacts.list().await.unwrap();
    // The store's own clock is the machine's, which is later than ours until here.
    let oldest = listed.iter().map(|s| s.modified).min().unwrap();
    let newest = listed.iter().map(|s| s.modified).max().unwrap();
    let collect = || async {
        let listed = artifacts.list().await.unwrap();
        let removed = artifacts.collect(listed, grace, |d| *d == c).await;
        removed.unwrap()
    };
    let until = |at: u64| clock.advance(at - clock.now_millis());
    until(oldest + grace - 1);
    assert_eq!(collect().await, 0);
    assert!(artifacts.hold(b).await.unwrap());
    assert!(!artifacts.hold(Digest::of(b"absent")).await.unwrap());
    until(newest + grace);
    assert_eq!(collect().await, 1);
    assert!(!artifacts.contains(a).await.unwrap());
    until(newest + 2 * grace - 1);
    assert_eq!(collect().await, 1);
    assert!(!artifacts.contains(b).await.unwrap());
    assert!(artifacts.contains(c).await.unwrap());
}
