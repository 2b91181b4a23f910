//! Reads the requested ranges of files and streams them.

pub(crate) mod buffers;
pub(crate) mod reader;
pub(crate) mod upload_stream;
