//! The part of a claim that blocks: limits, network, and attaching the code.
//!
//! The code gets into a running container by moving detached, read-only mounts into its mount
//! namespace. Nothing of it appears in the host's mount table, there is nothing to unmount, and
//! when this process is killed nothing is left behind.
//!
//! That needs a thread which enters the container's mount namespace for a moment. The thread must
//! not share its root and working directory with the process (`setns` answers EINVAL otherwise),
//! and between entering and coming back absolute paths mean the *container's* files: nothing may
//! be opened, logged or allocated lazily there. So the work is done on a few threads that do
//! nothing else.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use tokio::sync::oneshot;

use crate::{
    cgroup::{self, Cgroup, Limits},
    network::Links,
    spec,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {step}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot set its limits")]
    Limits(#[source] cgroup::Error),
    #[error("the threads that attach code are gone")]
    Stopped,
}

impl Error {
    /// The container had already ended; another one will do.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Step { source, .. } => source.raw_os_error() == Some(libc::ESRCH),
            Self::Limits(cgroup::Error::File { source, .. }) => {
                source.kind() == io::ErrorKind::NotFound
            }
            _ => false,
        }
    }
}

/// Turns a container that runs only our shim into one that may run one function's code.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) pidfd: Arc<OwnedFd>,
    pub(crate) cgroup: Cgroup,
    pub(crate) limits: Limits,
    /// Bytes of `/tmp` from now on.
    pub(crate) tmp_bytes: u64,
    pub(crate) code: PathBuf,
    pub(crate) dependencies: Option<PathBuf>,
    /// The host's end of the container's cable, to be cut.
    pub(crate) cut: Option<String>,
}

type Job = (Claim, oneshot::Sender<Result<(), Error>>);

/// A few threads that carry out claims. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Claimers {
    jobs: mpsc::SyncSender<Job>,
}

impl Claimers {
    pub(crate) fn start(threads: usize) -> Result<Self, Error> {
        // Bounded by the number of claims that may run at once.
        let (jobs, queue) = mpsc::sync_channel::<Job>(1024);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            let worker = Worker::new()?;
            thread::Builder::new()
                .name(format!("claim-{number}"))
                .spawn(move || worker.serve(&queue))
                .map_err(step("start a thread"))?;
        }
        Ok(Self { jobs })
    }

    /// At most once for a container: a second mount would hide the first. After an error the
    /// container must not be used for anything.
    pub(crate) async fn claim(&self, claim: Claim) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.jobs
            .try_send((claim, reply))
            .map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}

struct Worker {
    host: File,
    links: Links,
    targets: Targets,
}

/// Paths inside the container, ready for the kernel.
struct Targets {
    code: CString,
    dependencies: CString,
    tmp: CString,
    sockets: CString,
}

impl Worker {
    fn new() -> Result<Self, Error> {
        let host = File::open("/proc/self/ns/mnt").map_err(step("open the mount namespace"))?;
        let links = Links::open().map_err(step("open a socket"))?;
        let path = |path: &str| CString::new(path).expect("our own paths have no NUL");
        let targets = Targets {
            code: path(spec::CODE),
            dependencies: path(spec::DEPENDENCIES),
            tmp: path(spec::TMP),
            sockets: path(spec::SOCKET_DIR),
        };
        Ok(Self {
            host,
            links,
            targets,
        })
    }

    fn serve(&self, queue: &Mutex<mpsc::Receiver<Job>>) {
        // SAFETY: takes a flag; from here on this thread has a root and working directory of its
        // own, which nothing else refers to.
        let unshared = unsafe { libc::unshare(libc::CLONE_FS) };
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((claim, reply)) = job else { return };
            let result = if unshared == 0 {
                self.claim(&claim)
            } else {
                Err(Error::Step {
                    step: "separate the thread's working directory",
                    source: io::Error::from_raw_os_error(libc::EPERM),
                })
            };
            // Whoever asked may have given up; then the container is removed by them.
            let _ = reply.send(result);
        }
    }

    fn claim(&self, claim: &Claim) -> Result<(), Error> {
        claim.cgroup.set(&claim.limits).map_err(Error::Limits)?;
        if let Some(link) = &claim.cut {
            self.links.down(link).map_err(step("cut the network"))?;
        }
        let code = detached(&claim.code)?;
        let dependencies = claim.dependencies.as_deref().map(detached).transpose()?;
        let size = CString::new(format!("size={}", claim.tmp_bytes)).expect("digits have no NUL");

        self.enter(&claim.pidfd)?;
        let result = self.targets.attach(&code, dependencies.as_ref(), &size);
        self.leave();
        result
    }

    /// By pidfd and not by a kept namespace descriptor: after the container's death this answers
    /// ESRCH, while a descriptor would still let us in and keep its mounts alive.
    fn enter(&self, pidfd: &OwnedFd) -> Result<(), Error> {
        // SAFETY: takes a descriptor that is open for as long as it is borrowed.
        check(unsafe { libc::setns(pidfd.as_raw_fd(), libc::CLONE_NEWNS) })
            .map_err(step("enter the container"))
    }

    fn leave(&self) {
        // SAFETY: as in `enter`.
        let back = unsafe { libc::setns(self.host.as_raw_fd(), libc::CLONE_NEWNS) };
        if back != 0 {
            // Every path that this thread opens from now on would be the container's, and the
            // host's files could be mistaken for a function's. There is no safe way to go on.
            std::process::abort();
        }
    }
}

impl Targets {
    /// Runs inside the container's mount namespace.
    fn attach(
        &self,
        code: &OwnedFd,
        dependencies: Option<&OwnedFd>,
        size: &CStr,
    ) -> Result<(), Error> {
        move_to(code, &self.code).map_err(step("attach the code"))?;
        if let Some(dependencies) = dependencies {
            move_to(dependencies, &self.dependencies).map_err(step("attach the dependencies"))?;
        }
        // SAFETY: four valid strings; a remount changes nothing but the options.
        check(unsafe {
            libc::mount(
                c"tmpfs".as_ptr(),
                self.tmp.as_ptr(),
                c"tmpfs".as_ptr(),
                libc::MS_REMOUNT | libc::MS_NOSUID | libc::MS_NODEV,
                size.as_ptr().cast(),
            )
        })
        .map_err(step("size /tmp"))?;
        // The socket's directory lies on the host's disk. The shim has made its socket; a function
        // has no business there, and could fill the disk. Connecting needs no write.
        set_attributes(libc::AT_FDCWD, &self.sockets, 0, libc::MOUNT_ATTR_RDONLY, 0)
            .map_err(step("protect the socket's directory"))
    }
}

/// A private copy of one mount, attached nowhere, read-only before anybody can see it.
fn detached(directory: &Path) -> Result<OwnedFd, Error> {
    let path = CString::new(directory.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
        .map_err(step("open the code"))?;
    // AT_RECURSIVE is left out: mounts below the directory are not part of it.
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: a valid string; the flags are numbers.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    check(fd).map_err(step("open the code"))?;
    // SAFETY: the call above returned this descriptor, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_attributes(
        fd.as_raw_fd(),
        c"",
        libc::AT_EMPTY_PATH,
        attributes,
        libc::MS_PRIVATE,
    )
    .map_err(step("protect the code"))?;
    Ok(fd)
}

fn set_attributes(
    fd: libc::c_int,
    path: &CStr,
    flags: libc::c_int,
    attributes: u64,
    propagation: libc::c_ulong,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    // SAFETY: a valid string, and a structure of the size that is given with it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    check(i32::try_from(result).unwrap_or(-1))
}

fn move_to(mount: &OwnedFd, target: &CStr) -> io::Result<()> {
    // SAFETY: two valid strings and an open descriptor.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(i32::try_from(result).unwrap_or(-1))
}

/// Binds `source` at `target` on the host, so that nothing mounted below it later shows up in
/// containers.
pub(crate) fn bind_private(source: &Path, target: &Path) -> io::Result<()> {
    let text = |path: &Path| {
        CString::new(path.as_os_str().as_bytes())
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
    };
    let (source, target) = (text(source)?, text(target)?);
    let mount = |from: &CStr, flags| {
        // SAFETY: valid strings; a bind or a change of propagation takes no type and no data.
        check(unsafe {
            libc::mount(
                from.as_ptr(),
                target.as_ptr(),
                std::ptr::null(),
                flags,
                std::ptr::null(),
            )
        })
    };
    mount(&source, libc::MS_BIND)?;
    mount(c"none", libc::MS_PRIVATE)
}

/// Detaches a mount of the host's; users of it keep it until they end.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: a valid string.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Step { step, source }
}
