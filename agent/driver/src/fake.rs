//! An in-memory driver for tests: slow starts, failed starts, crashes, out of memory.
