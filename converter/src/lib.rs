//! Converts images to lazily startable ones: library and command-line tool.
