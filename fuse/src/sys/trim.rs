//! Memory that was given back to the allocator, given back to the system.

/// Gives back what the allocator keeps of memory that is free. After many large buffers at once it keeps most of their
/// memory, in as many places as there were threads. It waits for each of these places for as long as that takes,
/// milliseconds at most: not for threads that answer.
pub(crate) fn give_back_memory() {
    // Other allocators than glibc's give it back by themselves, or are not there.
    #[cfg(target_env = "gnu")]
    // SAFETY: a number in, a number out; it may be called at any time, and frees nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes from which on each block is a mapping of its own: half a chunk of the usual size. What comes and goes by the hundred are
/// chunks, and what they are made of.
#[cfg(target_env = "gnu")]
const APART_FROM: libc::c_int = 128 << 10;

/// Has the allocator give back large blocks when they are freed. By itself it learns from the first one that is freed to keep
/// them, cuts them up for the next of another size, and grows to several times what is used.
pub(crate) fn keep_large_blocks_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two numbers in, one out; it may be called at any time, and changes nothing of what is in use.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, APART_FROM);
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    /// Anonymous memory of this process, KiB.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        line.unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Promise: memory that is free is given back, also where a little that is in use lies between.
    #[test]
    fn what_is_free_between_what_is_used_is_given_back() {
        let mut blocks: Vec<_> = (0..32_768).map(|_| Some(vec![1_u8; 4096])).collect();
        for (number, block) in blocks.iter_mut().enumerate() {
            if number % 64 != 0 {
                *block = None;
            }
        }
        let before = resident();
        give_back_memory();
        // Half of the 126 MiB: other tests run meanwhile.
        let after = resident();
        assert!(after + (63 << 10) < before, "{before} KiB and then {after}");
        assert_eq!(blocks.iter().flatten().count(), 512);
    }
}
