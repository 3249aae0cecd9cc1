//! The command line: from the first argument to what is asked.

/// Answer to `--version`.
pub const VERSION: &[u8] = concat!("pause ", env!("CARGO_PKG_VERSION"), "\n").as_bytes();

/// Answer to `--help`.
pub const HELP: &[u8] = b"\
Usage: pause [-v|-V|--version|-h|--help]
Holds a pod's namespaces and reaps orphans until SIGTERM or SIGINT.
";

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Request<'a> {
    /// Hold the namespaces until told to stop.
    Sleep,
    /// Print [`VERSION`].
    Version,
    /// Print [`HELP`].
    Help,
    /// Nothing that is known: refuse, and show it.
    Unknown(&'a [u8]),
}

/// Reads the first argument, if there is one. It decides alone, because each of them ends the
/// program before another could be looked at.
pub fn parse(argument: Option<&[u8]>) -> Request<'_> {
    match argument {
        None => Request::Sleep,
        // Comparisons, where patterns would read better: rustc compares a pattern byte by byte.
        Some(a) if a == b"-v" || a == b"-V" || a == b"--version" => Request::Version,
        Some(a) if a == b"-h" || a == b"--help" => Request::Help,
        Some(other) => Request::Unknown(other),
    }
}
