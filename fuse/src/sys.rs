//! The system calls no safe crate covers: the only unsafe code of the project.
#![expect(unsafe_code, reason = "this module is where unsafe code lives")]

mod descriptors;
mod inherited;
mod lease;
mod mapping;
mod open_files;
mod page;
mod priority;
mod replace;
mod shared;
mod trim;

pub(crate) use descriptors::{leave_descriptors, spawn_with_only};
pub(crate) use inherited::inherited;
pub(crate) use lease::is_open_elsewhere;
pub(crate) use mapping::Mapping;
pub(crate) use open_files::raise_open_files;
pub(crate) use page::page_size;
pub(crate) use priority::lower_this_thread;
pub(crate) use replace::replace;
pub(crate) use shared::SharedNumbers;
pub(crate) use trim::{give_back_memory, keep_large_blocks_apart};
