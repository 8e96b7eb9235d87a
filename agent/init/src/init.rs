//! PID 1 of every container. A program of its own: see `build.rs`.
//!
//! Why not run the language's interpreter as PID 1: the kernel drops signals that PID 1 has no
//! handler for (so SIGTERM would do nothing), and orphans would stay zombies until the pids limit
//! stops the function. Why not an existing init: this one has no allocator, no threads and no
//! configuration. It calls the kernel directly, without a C library, because that is less code
//! than linking one statically, needs none to be installed, and leaves an idle instance with
//! about 20 KiB resident for it.
//!
//! What it does not do: it closes no descriptor and changes no environment, since the runtime
//! passes exactly what the program should have. It needs no parent-death signal for the program:
//! when PID 1 of a PID namespace ends, the kernel kills all that is left in it.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

// What the kernel passes on the stack is not a C call, so the first instructions are by hand:
// give the stack pointer to `start` and align the stack as the calling convention asks.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rdi",
    "and $-16, %rsp",
    "call {start}",
    start = sym start,
    options(att_syntax)
);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, #0", "mov x0, sp", "bl {start}", start = sym start);

/// System call numbers.
#[cfg(target_arch = "x86_64")]
mod nr {
    pub const WRITE: usize = 1;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod nr {
    pub const WRITE: usize = 64;
    pub const EXIT_GROUP: usize = 94;
    pub const KILL: usize = 129;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
}

const SIG_SETMASK: usize = 2;
const SIGCHLD: usize = 17;
const WNOHANG: usize = 1;
const EINTR: isize = -4;
/// Bytes in the kernel's signal set.
const SET: usize = 8;

/// Calls the kernel; a negative result is an error number.
///
/// # Safety
/// The arguments must be what the kernel expects of call `number`: pointers valid for what it
/// reads and writes. Unused arguments are ignored.
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the registers are those of the kernel's convention, every register that it may
    // overwrite is declared, and the caller answers for the arguments. The fifth argument is zero
    // for the one call that has it (clone's thread pointer).
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") 0,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
        #[cfg(target_arch = "aarch64")]
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") 0,
            options(nostack)
        );
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(125)
}

fn exit(status: usize) -> ! {
    loop {
        // SAFETY: takes a number; does not return.
        unsafe { call(nr::EXIT_GROUP, status, 0, 0, 0) };
    }
}

fn complain(text: &[u8]) {
    // SAFETY: the pointer and length describe one slice; a failed write loses a message only.
    unsafe { call(nr::WRITE, 2, text.as_ptr() as usize, text.len(), 0) };
}

fn set_mask(mask: u64) {
    // SAFETY: the new set is valid for reading and the old one is not asked for.
    unsafe { call(nr::RT_SIGPROCMASK, SIG_SETMASK, &raw const mask as usize, 0, SET) };
}

/// # Safety
/// `stack` is the stack pointer that the kernel starts a program with: the number of arguments,
/// the arguments, a null pointer, the environment, a null pointer.
unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the layout above; the strings outlive the process.
    let (count, arguments) = unsafe { (*stack, stack.add(1)) };
    if count < 2 {
        complain(b"init: no program given\n");
        exit(127);
    }
    // SAFETY: as above; there are at least two arguments.
    let (program, environment) = unsafe { (arguments.add(1), arguments.add(count + 1)) };

    // Everything is blocked before the fork: a signal that arrives in between waits in the queue
    // instead of being dropped, since PID 1 has no default actions.
    set_mask(u64::MAX);
    // SAFETY: a fork: no new stack, no shared memory; this process has one thread.
    let child = unsafe { call(nr::CLONE, SIGCHLD, 0, 0, 0) };
    if child < 0 {
        complain(b"init: cannot fork\n");
        exit(126);
    }
    if child == 0 {
        set_mask(0);
        // SAFETY: a string, and two null-terminated arrays of strings, all from the kernel.
        unsafe { call(nr::EXECVE, *program, program as usize, environment as usize, 0) };
        complain(b"init: cannot execute ");
        // SAFETY: the array has at least one element.
        let mut name = unsafe { *program } as *const u8;
        // Byte by byte: measuring the length first would become a call of the C library's.
        // SAFETY: `program` points to a string, which ends in a zero byte.
        while let byte @ 1.. = unsafe { *name } {
            complain(&[byte]);
            // SAFETY: the byte was not the last one.
            name = unsafe { name.add(1) };
        }
        complain(b"\n");
        exit(127);
    }
    exit(serve(child))
}

/// Reaps and forwards until the program has ended; its exit status.
fn serve(child: isize) -> usize {
    let all = u64::MAX;
    loop {
        // SAFETY: the set is valid; neither information nor a time limit is asked for.
        let signal = unsafe { call(nr::RT_SIGTIMEDWAIT, &raw const all as usize, 0, 0, SET) };
        if signal == EINTR {
            continue;
        }
        if signal < 0 {
            return 125;
        }
        let signal = signal.unsigned_abs();
        if signal != SIGCHLD {
            // SAFETY: takes numbers; that the program may be gone is an ignored error.
            unsafe { call(nr::KILL, child.unsigned_abs(), signal, 0, 0) };
            continue;
        }
        // One SIGCHLD may stand for several children.
        loop {
            let mut status = 0_i32;
            // SAFETY: `status` is a valid place for the result; -1 means any child.
            let reaped =
                unsafe { call(nr::WAIT4, usize::MAX, &raw mut status as usize, WNOHANG, 0) };
            if reaped == child {
                return exit_status(status.unsigned_abs() as usize);
            }
            if reaped <= 0 {
                break;
            }
        }
    }
}

/// The exit status that says the same as a wait status: a signal becomes 128 + its number.
fn exit_status(wait_status: usize) -> usize {
    let signal = wait_status & 0x7f;
    if signal == 0 { (wait_status >> 8) & 0xff } else { 128 + signal }
}
