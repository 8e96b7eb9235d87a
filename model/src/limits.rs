//! Every limit of the platform, in one place. Facades may be narrower, never wider.

/// Longest function, namespace, key or project name, in bytes. Gcore allows 26; the native API 63.
pub const NAME_MAX: usize = 63;
/// Longest node name, in bytes: a host name's own limit.
pub const NODE_NAME_MAX: usize = 253;
/// Labels of one node, or in one selector, and all their keys and values together.
pub const LABELS_MAX: usize = 64;
pub const LABELS_TOTAL_MAX_BYTES: usize = 4 * 1024;
/// Longest key and longest value of a label, in bytes.
pub const LABEL_PART_MAX: usize = 63;
/// Ids of removed nodes that are remembered, so that they stay out; the oldest go first.
pub const REMOVED_NODES_KEPT: usize = 4_096;
/// Longest source given as text, in characters (Gcore `code_text`).
pub const CODE_TEXT_MAX_CHARS: usize = 100_000;
/// Longest dependency list, in characters (Gcore `dependencies`).
pub const DEPENDENCIES_MAX_CHARS: usize = 100_000;
/// Longest description, in characters.
pub const DESCRIPTION_MAX_CHARS: usize = 255;
/// Longest handler name, in characters (Gcore `main_method`).
pub const HANDLER_MAX_CHARS: usize = 100;
/// Longest environment variable name and value, in characters.
pub const ENV_KEY_MAX_CHARS: usize = 255;
pub const ENV_VALUE_MAX_CHARS: usize = 255;
/// All environment variables of one function or namespace together, in bytes of names and values.
/// Ours: a Raft entry is at most 64 KiB and carries at most one such map.
pub const ENV_TOTAL_MAX_BYTES: usize = 32 * 1024;
/// Longest request timeout. Gcore stops at 180 s; the model at Tencent's 900 s.
pub const TIMEOUT_MAX_SECS: u32 = 900;
/// What a timeout of 0 ("server default") means.
pub const TIMEOUT_DEFAULT_SECS: u32 = 60;
/// Bound on a cold start, apart from the request's own timeout.
pub const INIT_TIMEOUT_DEFAULT_SECS: u32 = 30;
/// Most instances of one function.
pub const INSTANCES_MAX: u32 = 50;
/// Most requests at once in one instance.
pub const CONCURRENCY_MAX: u32 = 1_000;
pub const MEMORY_MIN_MIB: u32 = 16;
pub const MEMORY_MAX_MIB: u32 = 32 * 1024;
pub const CPU_MIN_MILLIS: u32 = 10;
pub const CPU_MAX_MILLIS: u32 = 64_000;
/// Largest Raft entry; anything bigger is an artifact and the entry holds its digest.
pub const ENTRY_MAX_BYTES: usize = 64 * 1024;
/// Annotations of one function, all names and values together.
pub const ANNOTATIONS_TOTAL_MAX_BYTES: usize = 8 * 1024;
/// Functions that one key may be bound to.
pub const KEY_FUNCTIONS_MAX: usize = 100;
/// Keys named by one function.
pub const FUNCTION_KEYS_MAX: usize = 100;
/// Largest artifact: an uploaded or built code or dependency archive.
pub const ARTIFACT_MAX_BYTES: u64 = 512 * 1024 * 1024;
/// Why something failed, kept in replicated state; the full text is in the build log or logs.
pub const REASON_MAX_CHARS: usize = 1_000;
/// Finished tasks kept; the oldest go first.
pub const TASKS_KEPT: usize = 1_000;
/// Most machines that one join token lets in.
pub const JOIN_TOKEN_USES_MAX: u32 = 10_000;
/// Join tokens kept at a time; expired and used ones leave when another is made.
pub const JOIN_TOKENS_MAX: usize = 1_000;
/// Controllers of one cluster, those that only listen included.
pub const MEMBERS_MAX: usize = 9;
/// Longest `host:port` of a controller, and longest name of one, in bytes.
pub const ADDRESS_MAX: usize = 300;
